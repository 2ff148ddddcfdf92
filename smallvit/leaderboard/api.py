"""The leaderboard, and all stages of a recipe up to it, as Python functions."""

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, get_type_hints

from smallvit.core.alone import alone
from smallvit.core.config import Layer, resolve
from smallvit.core.errors import ConfigError
from smallvit.core.python_call import python_call
from smallvit.core.run_folder import Run, open_run
from smallvit.engine.config import Compile, Device, Precision, RuntimeConfig
from smallvit.leaderboard.protocol import ROBUST, AttackName, BenchConfig, Corruptions
from smallvit.leaderboard.runner import BenchResult, bench_runs, finetuned_runs
from smallvit.runs.chain import plan_recipe, run_recipe
from smallvit.runs.options import DataLike, RunLike, Section, read_arguments, to_settings
from smallvit.runs.request import open_recipe


def run(
    recipe: Path | str,
    *,
    data: DataLike | None = None,
    model: str | Section | None = None,
    pretrain: Section | None = None,
    teacher: Section | None = None,
    label: Section | None = None,
    finetune: Section | None = None,
    dataset: str | None = None,
    seed: int | None = None,
    device: Device | None = None,
    precision: Precision | None = None,
    compile: Compile | None = None,
    deterministic: bool | None = None,
    grad_checkpointing: bool | None = None,
    micro_batch: int | None = None,
    out: Path | str | None = None,
    offline: bool = False,
    dry_run: bool = False,
    verbose: bool = True,
    **more: Any,
) -> BenchResult | None:
    """Run every stage of a recipe and compare in a leaderboard what each brought.

    ``run("generic/32px", data="pets", pretrain={"schedule": {"epochs": 50}})``. Called again with
    the same ``out``, it does only what is missing.

    Args:
        recipe: Shipped recipe or file.
        data: Name of a data set, path of images, or a mapping of data settings.
        model: Name of the network of both stages, or a mapping of its settings.
        pretrain: Settings of stage 1.
        teacher: Settings of the annotator.
        label: Settings of its score maps.
        finetune: Settings of stage 2.
        dataset: Name of a data set, or ``hf:owner/name@revision`` of the Hub.
        seed: Seed of everything but the splits.
        device: Device to compute on.
        precision: Precision of matrix products.
        compile: Whether networks are compiled; auto does so on a CUDA device.
        deterministic: On a CUDA device, use only operations that give the same bits every time.
        grad_checkpointing: Compute blocks again in the backward pass: less memory, more time.
        micro_batch: Images of one forward and backward pass, at most; a step adds up several.
        out: Folder of all its runs; by default a new one under the runs folder.
        offline: Download nothing.
        dry_run: Say how long each stage would take, and write nothing.
        verbose: Show progress, in a notebook in one line.
        **more: Settings by their dotted names; ``arms=["scratch", "ssl"]`` chooses among the
            fine-tuned runs.

    Returns:
        The leaderboard; ``None`` after a dry run.

    Raises:
        SmallViTError: What the command line would print, with its exit code.
    """
    return _run(locals())


@alone()
def _run(arguments: dict[str, Any]) -> BenchResult | None:
    verbose, offline = arguments.pop("verbose"), arguments.pop("offline")
    with python_call(verbose=verbose, offline=offline):
        options = read_arguments(arguments)
        settings = to_settings(options)
        recipe, label = open_recipe(options["recipe"], settings, source="arguments")
        if options["dry_run"]:
            plan_recipe(recipe, label)
            return None
        folder, runs = run_recipe(recipe, out=options.get("out"))
        title = f"{label}: what each stage brought"
        return bench_runs(runs, folder / "leaderboard", title=title)


@alone()
def bench(
    runs: RunLike | Iterable[RunLike] | None = None,
    *,
    out: Path | str | None = None,
    data: Path | str | None = None,
    robust: bool = False,
    probes: bool | None = None,
    corruptions: Corruptions | None = None,
    archive: Path | str | None = None,
    attacks: Sequence[AttackName] | None = None,
    eps: Sequence[float] | None = None,
    pgd_steps: int | None = None,
    pgd_restarts: int | None = None,
    ood: Sequence[str] | None = None,
    subset: int | None = None,
    cost: bool | None = None,
    seed: int | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
    offline: bool = False,
    verbose: bool = True,
    **more: Any,
) -> BenchResult:
    """Score fine-tuned runs on their test split and write a leaderboard.

    ``bench(run, corruptions="generated").to_html("report.html")``

    Args:
        runs: Finished fine-tuned runs or their folders, one or several; by default every one under
            the runs folder.
        out: Folder of its files; by default ``leaderboard`` in the runs folder.
        data: Where the runs' images are, if not where they were.
        robust: Measure robustness too: probes, generated corruptions, FGSM, PGD and noise, on 1,000
            test images; other arguments add to it or replace a part.
        probes: Score the backbone too, by k-NN and a linear probe on the labelled images.
        corruptions: Corrupted images to score: made here (``"generated"``), those of the published
            archive (``"official"``), ``"both"``, or ``"none"``.
        archive: Folder of the published archive.
        attacks: ``"fgsm"``, ``"pgd"`` and ``"autoattack"``.
        eps: Largest changes of a colour that attacks may make, in levels of 255.
        pgd_steps: Gradients of a restart of PGD.
        pgd_restarts: Random places that PGD starts from.
        ood: Sets that the classifier should be less sure of: ``"noise"``, data sets or folders.
        subset: Test images that are corrupted and attacked, drawn by the seed; by default all.
        cost: Time the network, as is done by default.
        seed: Of corruptions, attacks, noise and the subset.
        device: Device to compute on.
        precision: Precision of matrix products.
        offline: Download nothing.
        verbose: Show progress, in a notebook in one line.
        **more: Refused, with the name that is meant.

    Raises:
        ConfigError: If one is not there, there is no run among them, or a setting is unknown or
            out of range.
        DataError: If a run did not finish, or none can be scored.
    """
    arguments = locals()
    with python_call(verbose=verbose, offline=offline):
        measured = {key: arguments[key] for key in get_type_hints(BenchConfig)}
        named = {key: value for key, value in {**measured, **more}.items() if value is not None}
        values = (ROBUST if robust else {}) | named
        config = resolve(BenchConfig, [Layer(source="arguments", values=values)])
        opened = finetuned_runs() if runs is None else _open(runs)
        if not opened:
            raise ConfigError("bench needs runs: name at least one")
        return bench_runs(
            opened,
            None if out is None else Path(out),
            config=config,
            place=data,
            runtime_config=RuntimeConfig(device=device, precision=precision),
        )


def _open(runs: Any) -> list[Run]:
    listed: list[Any] = [runs]
    if isinstance(runs, Iterable) and not isinstance(runs, Run | str | PathLike):
        listed = list(runs)
    for run in listed:
        if not isinstance(run, Run | str | PathLike):
            raise ConfigError(
                f"bench takes runs or their folders, not {type(run).__name__} ({run!r}): give what "
                'sv.finetune returned, or a path such as "runs/digits/..."'
            )
    paths = [run.path if isinstance(run, Run) else Path(run).expanduser() for run in listed]
    return [open_run(path) for path in paths]
