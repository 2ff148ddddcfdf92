"""``smallvit bench``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from smallvit.bench.launcher import LauncherName, open_launcher
from smallvit.bench.protocol import BenchConfig
from smallvit.bench.runner import bench_runs
from smallvit.bench.suite import Suite, find_suite, plan_suite, read_suite
from smallvit.bench.suite_progress import print_plan
from smallvit.bench.suite_run import run_suite, whole_suite_lock
from smallvit.cli.options import given
from smallvit.cli.training import apply_offline
from smallvit.core import places
from smallvit.core.config import Layer, merge, resolve
from smallvit.core.errors import ConfigError, DataError
from smallvit.core.run_folder import find_runs, open_run
from smallvit.engine.runtime import RuntimeConfig

# All that needs no further package and no further data, on a part of the test images.
ROBUST: dict[str, Any] = {
    "probes": True,
    "corruptions": "generated",
    "attacks": ("fgsm", "pgd"),
    "ood": ("noise",),
    "subset": 1000,
}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """How a suite's runs are made.

    Attributes:
        launcher: On this machine, or as tasks of Ray.
        jobs: Runs made at a time on this machine.
        node_cpus: Cores that a run asks Ray for.
        node_gpus: GPUs that a run asks Ray for; by default 1 where the cluster has any.
        dry_run: Print the suite's cells and what is missing, make nothing.
    """

    launcher: LauncherName = "local"
    jobs: int = 1
    node_cpus: float = 1
    node_gpus: float | None = None
    dry_run: Annotated[bool, Parameter(negative="")] = False


SUITE_OPTIONS = ("launcher", "jobs", "node_cpus", "node_gpus", "dry_run")
NOT_MEASURED = ("runs", "out", "device", "precision", "robust", "offline", *SUITE_OPTIONS)


def bench_command(
    *runs: str,
    out: Path | None = None,
    robust: Annotated[bool, Parameter(negative="")] = False,
    measured: Annotated[BenchConfig, Parameter(name="*")] = BenchConfig(),
    suite: SuiteOptions = SuiteOptions(),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    offline: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Score fine-tuned runs on their test split and put them in a leaderboard.

    Given the name of a suite instead, it makes the suite's runs first. What is measured once is
    kept with the run, so a second call measures only what is new.

    Args:
        runs: Run folders, or a suite: a shipped one or a file. Without any, every finished
            fine-tuned run under the runs folder.
        out: Folder of the leaderboard's files, by default ``leaderboard`` in the runs folder; of a
            suite, the folder of its runs.
        robust: Measure robustness too: probes, generated corruptions, FGSM, PGD and noise, on 1,000
            test images; other options add to it or replace a part.
        measured: What is measured.
        suite: How a suite's runs are made.
        device: Device to compute on.
        precision: Precision of matrix products.
        offline: Download nothing.
    """
    apply_offline(offline)
    runtime = RuntimeConfig(device=device, precision=precision)
    over = merge(
        ROBUST if robust else {},
        {key: value for key, value in given.values.items() if key not in NOT_MEASURED},
    )
    name = runs[0] if len(runs) == 1 else None
    if name is not None and not Path(name).is_dir():
        if find_suite(name) is None and Path(name).exists():
            raise ConfigError(f"{name} is neither a run folder nor a suite file")
        _bench_suite(read_suite(name), out, over, suite, runtime)
        return
    of_suites = [f"--{key.replace('_', '-')}" for key in SUITE_OPTIONS if key in given.values]
    if of_suites:
        raise ConfigError(f"{', '.join(of_suites)} is for suites: name one, or leave it out")
    chosen = [open_run(Path(path), stage="finetune") for path in runs] or [
        run
        for run in find_runs(places.runs_dir())
        if run.completed and run.result["stage"] == "finetune"
    ]
    if not chosen:
        raise DataError(
            f"no finished fine-tuned run under {places.runs_dir()}: smallvit finetune makes one"
        )
    config = resolve(BenchConfig, [Layer(source="command line", values=over)])
    folder = out or places.runs_dir() / "leaderboard"
    bench_runs(chosen, folder, title="Leaderboard", config=config, runtime_config=runtime)


def _bench_suite(
    suite: Suite,
    out: Path | None,
    over: dict[str, Any],
    options: SuiteOptions,
    runtime: RuntimeConfig,
) -> None:
    """Make what is missing of a suite, and its leaderboard of what there is."""
    layers = [
        Layer(source=f"{suite.path}: bench", values=suite.config.bench),
        Layer(source="command line", values=over),
    ]
    config = resolve(BenchConfig, layers)
    plan = plan_suite(suite, out)
    if options.dry_run:
        print_plan(plan)
        return
    launcher = open_launcher(
        options.launcher,
        jobs=options.jobs,
        num_cpus=options.node_cpus,
        num_gpus=options.node_gpus,
    )
    made = run_suite(plan, launcher, argv=given.argv)
    if made.runs:
        with whole_suite_lock(plan):
            bench_runs(
                made.runs,
                plan.folder / "leaderboard",
                title=suite.config.description or suite.name,
                config=config,
                runtime_config=runtime,
                notes=made.notes,
            )
    made.raise_for_failures()
