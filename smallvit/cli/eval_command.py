"""``smallvit eval``."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from smallvit.engine.runtime import RuntimeConfig
from smallvit.run.score import score_run


def eval_command(
    run: Path,
    /,
    *,
    split: Literal["val", "test"] = "val",
    knn: Annotated[bool, Parameter(negative="")] = False,
    linear: Annotated[bool, Parameter(negative="")] = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> None:
    """Score one run on validation, or on test when asked by name.

    Args:
        run: Run folder.
        split: Held-out split.
        knn: Add the vote of the 20 nearest labelled training images.
        linear: Add a logistic regression on the labelled training images.
        device: Device to compute on.
        precision: Precision of matrix products.
    """
    runtime = RuntimeConfig(device=device, precision=precision)
    scores = score_run(run, split=split, knn=knn, linear=linear, runtime_config=runtime)
    table = Table(title=f"{run} on {split}")
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        counted = f"{value:,.0f}" if name == "n" else f"{value:.4f}"
        shown = counted if name in ("n", "nll") else f"{value:.2%}"
        table.add_row(name, shown)
    Console().print(table)
