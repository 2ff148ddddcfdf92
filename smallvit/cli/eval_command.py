"""``smallvit eval``."""

from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smallvit.cli.options import Switch
from smallvit.cli.tables import print_text
from smallvit.engine.config import RuntimeConfig
from smallvit.evaluate.config import Readout


def eval_command(
    run: Path,
    /,
    *,
    split: Literal["val", "test"] = "val",
    data: str | None = None,
    knn: Switch = False,
    linear: Switch = False,
    readout: Readout | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
) -> None:
    """Score one run on validation, or on test when asked by name.

    Args:
        run: Run folder.
        split: Held-out split.
        data: Where the run's images are, if not where they were; they are known by their content.
        knn: Add the vote of the 20 nearest labelled training images.
        linear: Add a logistic regression on the labelled training images.
        readout: What to make the logits of: the classifier on pooled features, that plus half of
            the largest token logit of each class, or the mean of the token logits. Without it, what
            the network itself returns: cls+max with a token head of its own (LV-ViT), else cls.
        device: Device to compute on.
        precision: Precision of matrix products.
    """
    from smallvit.runs.score import evaluate_run

    runtime = RuntimeConfig(device=device, precision=precision)
    scored = evaluate_run(
        run,
        split=split,
        knn=knn,
        linear=linear,
        readout=readout,
        place=data,
        runtime_config=runtime,
    )
    title = f"{run} on {split}" + (f", readout {scored.readout}" if scored.readout else "")
    console = Console()
    table = Table(title=title, min_width=min(len(title), console.width))  # else it is folded
    table.add_column("score")
    table.add_column("value", justify="right")
    names = {"commonest": f"naming {scored.commonest!r} always", "mean_per_class": "mean per class"}
    for name, value in scored.metrics.items():
        counted = f"{value:,.0f}" if name == "n" else f"{value:.4f}"
        shown = counted if name in ("n", "nll") else f"{value:.2%}"
        table.add_row(Text(names.get(name, name)), shown)
    console.print(table)
    if scored.fault:
        print_text(f"no accuracy to go by: {scored.fault}")
    if scored.reads:
        print_text(f"{scored.readout}: {scored.reads}")
