"""``smallvit bench``."""

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from cyclopts import Parameter

from smallvit.cli.options import Given, GivenOptions, Switch
from smallvit.core import places
from smallvit.core.config import Layer, resolve
from smallvit.core.errors import ConfigError, DataError, InterruptedRunError, suggest
from smallvit.core.run_folder import find_runs, open_run
from smallvit.engine.config import RuntimeConfig
from smallvit.leaderboard.protocol import ROBUST, BenchConfig


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

    launcher: Literal["local", "ray"] = "local"
    jobs: int = 1
    node_cpus: float = 1
    node_gpus: float | None = None
    dry_run: Switch = False

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ConfigError(f"--jobs must be at least 1, got {self.jobs}")
        if self.node_cpus <= 0:
            raise ConfigError(f"--node-cpus must be above 0, got {self.node_cpus}")
        if self.node_gpus is not None and self.node_gpus < 0:
            raise ConfigError(f"--node-gpus must not be negative, got {self.node_gpus}")


def bench_command(
    *runs: str,
    out: Path | None = None,
    data: str | None = None,
    robust: Switch = False,
    measured: Annotated[BenchConfig, Parameter(name="*")] = BenchConfig(),
    suite: SuiteOptions = SuiteOptions(),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    offline: Switch = False,
    given: GivenOptions,
) -> None:
    """Score fine-tuned runs on their test split and put them in a leaderboard.

    Given the name of a suite instead, it makes the suite's runs first. What is measured once is
    kept with the run, so a second call measures only what is new. An option that takes several
    values is repeated: --attacks fgsm --attacks pgd.

    Args:
        runs: Run folders, or one suite: a shipped one or a file. Without any, every finished
            fine-tuned run under the runs folder.
        out: Folder of the leaderboard's files, by default ``leaderboard`` in the runs folder; of a
            suite, the folder of its runs.
        data: Where the runs' images are, if not where they were; they are known by their content.
        robust: Measure robustness too: probes, generated corruptions, FGSM, PGD and noise, on 1,000
            test images; other options add to it or replace a part.
        measured: What is measured.
        suite: How a suite's runs are made.
        device: Device to compute on.
        precision: Precision of matrix products.
        offline: Download nothing.
        given: What of these was given.
    """
    # Imported late: the help of this command does not wait for torch.
    from smallvit.leaderboard.suite import find_suite

    over = (ROBUST if robust else {}) | _of(BenchConfig, given)
    runtime_config = RuntimeConfig(device=device, precision=precision)
    named = [name for name in runs if not Path(name).is_dir() and find_suite(name) is not None]
    if named and len(runs) > 1:
        raise ConfigError(f"{named[0]} is a suite, which is given alone")
    try:
        if named and data is not None:
            raise ConfigError("--data is for runs: a suite names its own data, leave it out")
        if named:
            _bench_suite(named[0], out, over, suite, runtime_config, given.argv)
        else:
            _bench_runs(runs, out, data, over, runtime_config, _of(SuiteOptions, given))
    except KeyboardInterrupt:
        raise InterruptedRunError(
            signal.SIGINT,
            "interrupted; what was measured is kept with its run, the same command goes on",
        ) from None


def _of(cls: type, given: Given) -> dict[str, Any]:
    """Return the options given that are settings of a class."""
    return {key: given.options[key] for key in get_type_hints(cls) if key in given.options}


def _bench_runs(
    names: tuple[str, ...],
    out: Path | None,
    data: str | None,
    over: dict[str, Any],
    runtime_config: RuntimeConfig,
    of_suites: Iterable[str],
) -> None:
    """Score runs by their folders, or all there are."""
    from smallvit.leaderboard.runner import bench_runs, finetuned_runs
    from smallvit.leaderboard.suite import shipped_suites

    for name in names:
        if not (Path(name) / "result.json").is_file():
            raise _no_run(Path(name), shipped_suites())
    if of_suites:
        options = ", ".join(f"--{key.replace('_', '-')}" for key in of_suites)
        raise ConfigError(
            f"{options} is for suites: name one ({', '.join(shipped_suites())} or a YAML file), "
            "or leave it out"
        )
    config = resolve(BenchConfig, [Layer(source="command line", values=over)])
    chosen = [open_run(Path(name)) for name in names] if names else finetuned_runs()
    bench_runs(chosen, out, config=config, place=data, runtime_config=runtime_config)


def _no_run(path: Path, suites: list[str]) -> DataError:
    """Say what is there in place of a run or suite."""
    if dead := places.dead_link(path):
        return DataError(f"{path} {dead}")
    inside = len(list(find_runs(path))) if path.is_dir() else 0
    if inside:
        return DataError(
            f"{path} is no run but holds {inside}: name them, or take all that are fine-tuned with "
            f"SMALLVIT_RUNS_DIR={path} smallvit bench"
        )
    return DataError(
        f"no run and no suite {str(path)!r}{suggest(str(path), suites)}, or a YAML file; "
        "'smallvit runs ls' shows the runs"
    )


def _bench_suite(
    name: str,
    out: Path | None,
    over: dict[str, Any],
    options: SuiteOptions,
    runtime_config: RuntimeConfig,
    argv: Sequence[str],
) -> None:
    """Make what is missing of a suite, and its leaderboard of what there is."""
    from smallvit.leaderboard.launcher import LocalLauncher, RayLauncher
    from smallvit.leaderboard.runner import bench_runs
    from smallvit.leaderboard.suite import plan_suite, read_suite
    from smallvit.leaderboard.suite_progress import print_plan
    from smallvit.leaderboard.suite_run import run_suite, whole_suite_lock

    suite = read_suite(name)
    layers = [
        Layer(source=f"{suite.path}: bench", values=suite.config.bench),
        Layer(source="command line", values=over),
    ]
    config = resolve(BenchConfig, layers)
    config.check()
    plan = plan_suite(suite, out)
    if options.dry_run:
        print_plan(plan)
        return
    launcher = (
        RayLauncher(options.node_cpus, options.node_gpus)
        if options.launcher == "ray"
        else LocalLauncher(options.jobs)
    )
    made = run_suite(plan, launcher, argv=argv)
    if made.runs:
        with whole_suite_lock(plan):
            bench_runs(
                made.runs,
                plan.folder / "leaderboard",
                title=suite.config.description or suite.name,
                config=config,
                runtime_config=runtime_config,
                notes=made.notes,
            )
    made.raise_for_failures()
