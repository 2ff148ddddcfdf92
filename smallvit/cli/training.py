"""What the training commands have in common."""

from functools import partial

from smallvit.cli.options import DataOptions, FolderOptions, TrainOptions, given, overrides
from smallvit.core.console import console
from smallvit.core.errors import ConfigError
from smallvit.core.places import apply_offline
from smallvit.core.run_folder import Run
from smallvit.runs.config import Recipe, Stage
from smallvit.runs.outcome import describe_outcome
from smallvit.runs.recipe import load_recipe, open_unfinished, say_fit

NEXT = {
    "pretrain": "next: smallvit finetune --init {run} --token-label",
    "teacher": "next: smallvit label --teacher {run}",
}


def train(stage: Stage, which: DataOptions, training: TrainOptions, where: FolderOptions) -> None:
    """Run one training stage with the options given."""
    from smallvit.runs.adopt import run_teacher
    from smallvit.runs.stage import run_stage

    apply_offline(which.offline)
    run_it = run_teacher if stage == "teacher" else partial(run_stage, stage=stage)
    run = run_it(
        load_for(stage, which, training),
        out=where.out,
        overwrite=where.overwrite,
        resume=training.resume,
        dry_run=where.dry_run,
        argv=given.argv,
    )
    if run is not None:
        following = NEXT[stage].format(run=run.path)
        if not run.env["dataset"]["class_names"]:
            following = f"next: smallvit finetune --init {run.path} --data IMAGES-WITH-LABELS"
        say_done(run, following)


def load_for(stage: Stage, which: DataOptions, training: TrainOptions) -> Recipe:
    """Resolve the recipe of a command and say which one it is; a resumed run brings its own."""
    from smallvit.engine.runtime import say_precision

    settings = overrides(stage)
    if training.resume is not None:
        if which.recipe is not None:
            raise ConfigError("--resume brings its own recipe: leave --recipe out")
        open_unfinished(training.resume, stage)
        own = str(training.resume / "recipe.yaml")
        return load_recipe(own, settings, same_data=True)[0]
    recipe, name = load_recipe(which.recipe, settings)
    say_recipe(name)
    say_fit(recipe, name)
    say_precision(recipe.runtime)
    return recipe


def say_recipe(name: str) -> None:
    """Say which recipe is used."""
    console.print(f"recipe: {name}", markup=False, highlight=False, soft_wrap=True)


def say_done(run: Run, following: str) -> None:
    """Say how a run ended, where it is and what to do next."""
    console.print(
        f"{describe_outcome(run)}\nrun: {run.path}\n{following}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
