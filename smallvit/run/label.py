"""Writing a teacher's score maps."""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from smallvit.core import places
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import (
    Run,
    create_folder,
    new_folder,
    open_run,
    write_json,
    write_recipe,
)
from smallvit.data.views import eval_batches
from smallvit.engine.runtime import open_runtime
from smallvit.inference.export import read_export, weights_hash
from smallvit.run.data import load_dataset, require_labels
from smallvit.run.provenance import other_data
from smallvit.run.recipe import Recipe, stage_values
from smallvit.run.stage import (
    describe_environment,
    recorded,
    score_classifier,
)
from smallvit.teachers.score_maps import ScoreMapHeader, ScoreMaps, write_score_maps
from smallvit.teachers.teacher import Teacher

logger = logging.getLogger("smallvit")
SCORE_MAPS = "score_maps.safetensors"
ALL_CLASSES = 10  # up to so many classes, every one is listed


def run_label(
    recipe: Recipe,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    argv: Sequence[str] = (),
) -> Run | None:
    """Write the score maps of the labelled training split.

    Args:
        recipe: Resolved settings; ``label.teacher`` names the teacher's run.
        out: Run folder; ``None`` names one under the runs folder.
        overwrite: Replace an earlier run in ``out``.
        dry_run: Check everything, but write nothing.
        argv: Command line, for env.json.

    Returns:
        The run with ``score_maps.safetensors`` in it; ``None`` after a dry run.

    Raises:
        ConfigError: If there is no teacher, or it is of other data, classes or splits.
        DataError: If the teacher's run or the data is missing or broken.
    """
    config = recipe.label
    if config.teacher is None:
        raise ConfigError("no teacher named: give --teacher RUN; 'smallvit teacher' trains one")
    run = open_run(config.teacher)
    if run.result["stage"] not in ("teacher", "finetune"):
        raise ConfigError(f"{run.path} is a {run.result['stage']} run and cannot classify")
    runtime = open_runtime(recipe.runtime)
    dataset = load_dataset(recipe.data).to(runtime.device)
    require_labels(dataset, "`smallvit label`")
    theirs = tuple(run.env["dataset"]["class_names"])
    if theirs != dataset.class_names:
        raise ConfigError(
            f"--teacher {run.path} knows {len(theirs)} classes ({', '.join(theirs[:3])}, ...), "
            f"{dataset.name} has {dataset.num_classes} ({', '.join(dataset.class_names[:3])}, ...)"
        )
    if other_data(run, dataset, "--teacher") != "none":
        raise ConfigError(
            f"--teacher {run.path} was trained on other images ({run.env['dataset']['name']}) "
            f"than {dataset.name} at {dataset.image_size} px: train one with smallvit teacher"
        )
    backbone = read_export(run.path / "export").to(runtime.device)
    teacher = Teacher(backbone)
    if dry_run:
        logger.info("dry run of label: settings, data and teacher are fine")
        return None
    result = run.result
    folder = out or new_folder(
        places.runs_dir(), dataset.name, f"label-{result['model']}-s{recipe.seed}"
    )
    create_folder(folder, overwrite=overwrite)
    write_recipe(folder / "recipe.yaml", stage_values(recipe, "label"))
    provenance = {
        "teacher": {"run": str(run.path), "model": result["model"]},
        "extra_data": result.get("extra_data", "none"),
    }
    write_json(folder / "env.json", describe_environment(dataset, runtime, argv, provenance))
    facts = {
        "stage": "label",
        "dataset": dataset.name,
        "model": result["model"],
        "seed": recipe.seed,
        "upstream": {
            **result.get("upstream", {}),
            "teacher": {key: result[key] for key in ("samples_seen", "wall_s")},
        },
        **provenance,
    }
    labelled = dataset.splits["labelled"]
    with recorded(folder, facts, resumed=False) as record:
        start = time.monotonic()
        all_classes = dataset.num_classes <= ALL_CLASSES
        top_k = config.top_k or (dataset.num_classes if all_classes else 5)

        def dense() -> Iterator[torch.Tensor]:
            for images, _ in eval_batches(dataset, labelled, config.batch_size):
                with runtime.autocast():
                    yield teacher(images)

        maps = ScoreMaps.from_dense(dense(), top_k)
        wall_s = time.monotonic() - start
        scores = {
            split: score_classifier(backbone, dataset, split, runtime)["top1"]
            for split in ("labelled", "val")
        }
        pooled = [
            maps.dense(place).mean(dim=(2, 3)).argmax(dim=1)
            for place in torch.arange(len(labelled)).split(4096)
        ]
        labels = labelled.labels[labelled.index].cpu()
        agreement = (torch.cat(pooled) == labels).float().mean()
        header = ScoreMapHeader(
            dataset=dataset.name,
            fingerprint=dataset.fingerprint,
            split_hash=dataset.split_hashes["labelled"],
            class_names=dataset.class_names,
            grid=(maps.prob.shape[2], maps.prob.shape[3]),
            image_size=dataset.image_size,
            teacher=result["model"],
            teacher_hash=weights_hash(backbone.model),
            teacher_train_top1=scores["labelled"],
            teacher_val_top1=scores["val"],
            extra_data=result.get("extra_data", "none"),
        )
        write_score_maps(folder / SCORE_MAPS, maps, header)
        grid = f"{header.grid[0]}x{header.grid[1]}"
        logger.info(
            "score maps of %d images, %d of %d classes a place on a %s grid, %.0f images/s; "
            "teacher: train %.2f%%, val %.2f%%; pooled map agrees with the label on %.2f%%",
            len(labelled),
            maps.prob.shape[1],
            dataset.num_classes,
            grid,
            len(labelled) / wall_s,
            100 * scores["labelled"],
            100 * scores["val"],
            100 * agreement.item(),
        )
        record |= {
            "samples_seen": len(labelled),
            "wall_s": wall_s,
            "images_per_s": len(labelled) / wall_s,
            "metrics": {
                "train/teacher_top1": scores["labelled"],
                "val/teacher_top1": scores["val"],
                "train/pooled_agreement": agreement.item(),
            },
        }
    return Run(folder)
