"""``smallvit run``."""

from pathlib import Path

from smallvit.cli.method_options import PretrainOptions
from smallvit.cli.options import DataOptions, GivenOptions, RuntimeOptions, Switch
from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.core.words import needed
from smallvit.data.files.config import DataConfig
from smallvit.runs.config import FinetuneConfig, LabelConfig, TeacherConfig


def run_command(
    name: str | None = None,
    /,
    *,
    out: Path | None = None,
    dry_run: Switch = False,
    given: GivenOptions,
    which: DataOptions = DataOptions(),
    how: RuntimeOptions = RuntimeOptions(),
    data: DataConfig = DataConfig(),
    model: ModelConfig = ModelConfig(),
    pretrain: PretrainOptions = PretrainOptions(),  # pyright: ignore[reportInvalidTypeForm]
    teacher: TeacherConfig = TeacherConfig(),
    label: LabelConfig = LabelConfig(),
    finetune: FinetuneConfig = FinetuneConfig(),
) -> None:
    """Run every stage of a recipe and show in a leaderboard what each brought.

    Called again with the same --out, it does only what is missing; a stage that was stopped goes
    on where it was.

    Values that are not given are the recipe's.

    Args:
        name: Shipped recipe (``smallvit recipes ls``) or file, as --recipe names one too.
        out: Folder of all its runs; by default a new one under the runs folder.
        dry_run: Say how long each stage would take, and write nothing.
        given: What of these was given.
        which: Data.
        how: Device and precision.
        data: Data settings.
        model: Model settings.
        pretrain: Stage 1.
        teacher: The annotator.
        label: Its score maps.
        finetune: Stage 2.
    """
    from smallvit.leaderboard.runner import bench_runs  # late: help is to be quick
    from smallvit.runs.chain import plan_recipe, run_recipe
    from smallvit.runs.options import to_settings
    from smallvit.runs.request import open_recipe

    if name is None and which.recipe is None:
        raise ConfigError(f"run needs {needed('run')}")
    if None not in (name, which.recipe) and name != which.recipe:
        raise ConfigError(f"{name} and --recipe {which.recipe} are two recipes: give one")
    recipe, label_name = open_recipe(name or which.recipe, to_settings(given.options))
    if dry_run:
        plan_recipe(recipe, label_name)
        return
    folder, runs = run_recipe(recipe, out=out, argv=given.argv)
    bench_runs(runs, folder / "leaderboard", title=f"{label_name}: what each stage brought")
