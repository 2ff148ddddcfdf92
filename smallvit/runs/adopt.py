"""Taking a trained network as the teacher of a data set, instead of training one."""

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models import get_pretrained_cfg

from smallvit.core import places
from smallvit.core.errors import ConfigError, DataError
from smallvit.core.model_config import ModelConfig
from smallvit.core.run_folder import Run, what_is_at
from smallvit.data.dataset import Dataset
from smallvit.data.views import eval_batches
from smallvit.engine.runtime import Runtime
from smallvit.inference.export import (
    WEIGHTS,
    exported_model,
    find_timm_weights,
    initialise_from_timm,
    read_export,
)
from smallvit.models.convert.adapt import adapt, position_grid
from smallvit.models.convert.checkpoint import read_checkpoint
from smallvit.models.registry import check_fit, create_exported, model_arguments, settings_from
from smallvit.models.tokens import AbstractBackbone
from smallvit.parallel.launch import refuse_several
from smallvit.runs.classifier import judge_classifier, refuse_chance, score_classifier
from smallvit.runs.config import Call, Recipe
from smallvit.runs.data import require_labels, say_other_grey
from smallvit.runs.finish import export_network
from smallvit.runs.learned import NOTHING, Learned
from smallvit.runs.monitor import EVAL_BATCH
from smallvit.runs.provenance import check_leak, other_data
from smallvit.runs.record import working_run
from smallvit.runs.session import Session, open_session
from smallvit.runs.start import (
    TIMM,
    cost_of,
    data_settings,
    find_start,
    timm_data,
    unknown_data,
)
from smallvit.teachers.adopt import (
    Colours,
    fit_classifier,
    linear_classifier,
    match_colours,
    mean_pooling,
    read_features,
    set_classifier,
)

logger = logging.getLogger("smallvit")
TAKE_ANOTHER = "take another network, or train one with smallvit teacher"
Kind = Literal["timm", "file", "folder"]
OPTION = "--from"
LISTED = 12  # class names of a message


@dataclass(kw_only=True)
class Adopted:
    """A trained network, built for a data set's images.

    Attributes:
        backbone: With its weights, on the host.
        architecture: timm's name.
        arguments: All arguments that build it anew.
        colours: Mean and standard deviation that its images were normalised with.
        extra_data: What it has seen beside the data set.
        knows_classes: Whether its classifier is for the data set's classes.
        init: What it comes from, for result.json.
        upstream: Cost of the runs that it builds on, by stage.
        notes: One line for each weight that was resampled or not loaded.
        learned: The images that the runs which it comes from learned.
    """

    backbone: AbstractBackbone
    architecture: str
    arguments: dict[str, Any]
    colours: tuple[Colours, Colours]
    extra_data: str
    knows_classes: bool = False
    init: str = "weights"
    upstream: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    learned: Learned = NOTHING


def run_adopt(recipe: Recipe, call: Call) -> Run | None:
    """Make a finished teacher run of a network that was trained elsewhere.

    A classifier of the data set's classes is taken as it is. Else a linear one is fitted on the
    labelled training images, unaugmented, with all other weights frozen; it reads the mean of the
    patch tokens, so that the score maps are that classifier at every place. A run to continue is
    made again, which takes seconds.

    Args:
        recipe: Resolved settings; ``teacher.adopt`` is the folder of a run or export, a file of
            weights, or ``timm:NAME``. ``teacher.model`` is the network of a file of weights, and
            its patch size counts for all.
        call: Where to, and whether at all.

    Returns:
        The run; ``None`` after a dry run.

    Raises:
        ConfigError: If the network is of other classes, of unfitting sizes or below chance.
        DataError: If its weights or the data are missing or broken.
    """
    start = recipe.teacher.adopt
    assert start is not None
    refuse_several("adopting a teacher")
    if call.resume is not None:
        call = replace(call, out=call.resume, overwrite=True, resume=None)
    with open_session(recipe, "teacher", call) as session:
        dataset, runtime = session.dataset, session.runtime
        require_labels(dataset, "`smallvit teacher`")
        adopted = _open(start, recipe.teacher.model, dataset, allow_leak=recipe.data.allow_leak)
        backbone = adopted.backbone.to(runtime.device)
        if not adopted.knows_classes:
            linear_classifier(backbone)
        backbone.grid(dataset.image_size)
        if call.dry_run:
            logger.info("dry run of teacher: settings, data and weights of %s are fine", start)
            return None
        # recipe.yaml is as it was asked for: `smallvit run` compares it on its second call.
        with working_run(
            session,
            _describe(recipe, start, dataset, adopted),
            learns="nothing" if adopted.knows_classes else "labels",
            learned=adopted.learned,
        ) as (folder, record):
            record |= _adopt(folder, start, session, adopted)
        return Run(folder)


def _adopt(folder: Path, start: str, session: Session, adopted: Adopted) -> dict[str, Any]:
    """Fit the network to the data set, score and export it; return what result.json says of it."""
    dataset, runtime, backbone = session.dataset, session.runtime, adopted.backbone
    started = time.monotonic()
    size = "{} px, {} x {} tokens".format(dataset.image_size, *backbone.grid(dataset.image_size))
    logger.info("weights of %s: %s, images of %s", start, adopted.architecture, size)
    colours = match_colours(
        backbone.model, theirs=adopted.colours, ours=(dataset.mean, dataset.std)
    )
    for note in (*adopted.notes, *([colours] if colours else [])):
        logger.info("  %s", note)
    samples = 0
    if adopted.knows_classes:
        logger.info("classifier of these %d classes: taken as it is", dataset.num_classes)
    else:
        _fit_classifier(backbone, dataset, runtime)
        samples = len(dataset.splits["labelled"])
    logger.info("seen beside %s: %s", dataset.name, adopted.extra_data)
    scores = score_classifier(backbone, dataset, "val", runtime)
    refuse_chance(scores, dataset, who=f"{OPTION} {start}", remedy=TAKE_ANOTHER)
    metrics = {f"val/{name}": value for name, value in scores.items() if name != "n"}
    classifier = "taken as it was" if adopted.knows_classes else "fitted on its training images"
    export_network(
        folder,
        backbone,
        dataset,
        adopted.arguments,
        title=f"{adopted.architecture} as a teacher of {dataset.name}",
        origin=(
            f"Weights of {start}, which saw other data: {adopted.extra_data}. "
            f"Classifier {classifier}."
        ),
        metrics=metrics,
        token_head=backbone.aux_head,
    )
    wall_s = time.monotonic() - started
    return {
        "steps": 0,
        "samples_seen": samples,
        "passes": samples / len(dataset.splits["labelled"]),
        "wall_s": wall_s,
        "images_per_s": samples / wall_s,
        "selected_on": "adopted, nothing to select",
        "metrics": metrics,
        **judge_classifier(backbone, dataset, runtime, stage="teacher", remedy=TAKE_ANOTHER),
    }


def adopt_settings(start: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a network to adopt brings to those that were given, which win.

    Args:
        start: Folder of a run or export, file of weights, or ``timm:NAME``.
        settings: What was given, nested.

    Raises:
        ConfigError: If another network is named than it is, or none for a file of weights.
        DataError: If it is not there.
    """
    kind, given = _kind(start), (settings.get("teacher") or {}).get("model") or {}
    if kind == "file":
        if not Path(start).is_file():
            raise ConfigError(f"{OPTION} {start} {what_is_at(Path(start))}")
        if "name" not in given:
            raise ConfigError(
                f"{OPTION} {start} holds weights alone: give their network with --model NAME"
            )
        return {}
    others = sorted(set(given) - {"patch_size"})
    if others:
        option = "model" if others[0] == "name" else f"model.{others[0].replace('_', '-')}"
        raise ConfigError(f"{OPTION} {start} brings its own network: leave --{option} out")
    if kind == "timm":
        name = find_timm_weights(start.removeprefix(TIMM)).partition(".")[0]
        return {"teacher": {"model": {"name": name}}}
    found = find_start(start, OPTION)
    brought: dict[str, Any] = {"teacher": {"model": exported_model(_export_folder(found))}}
    if isinstance(found, Run):
        brought["data"] = data_settings(found, settings)
    return brought


def _kind(start: str) -> Kind:
    if start.startswith(TIMM):
        return "timm"
    path = Path(start)
    of_export = path.name == WEIGHTS and (path.parent / "config.json").is_file()
    of_run = path.parent.name == "checkpoints" and (path.parents[1] / "result.json").is_file()
    weights = path.suffix in (".safetensors", ".pt", ".pth")
    weights |= path.is_file() and path.suffix not in (".json", ".yaml")
    return "file" if weights and not of_export and not of_run else "folder"


def _export_folder(found: Run | Path) -> Path:
    return found.path / "export" if isinstance(found, Run) else found


def _open(start: str, model: ModelConfig, dataset: Dataset, *, allow_leak: bool) -> Adopted:
    """Build the network with its weights and find out what it has seen."""
    kind = _kind(start)
    if kind == "timm":
        adopted = _open_timm(start.removeprefix(TIMM), model, dataset)
    elif kind == "file":
        adopted = _open_file(Path(start), model, dataset)
    elif isinstance(found := find_start(start, OPTION), Run):
        adopted = _open_export(_export_folder(found), model, dataset)
        adopted.init = found.result["stage"]
        say_other_grey(found, dataset, OPTION)
        seen = other_data(found, dataset, OPTION, allow_leak=allow_leak)
        adopted.learned, adopted.extra_data = seen.learned, seen.extra_data
        # The key of the stage "teacher" is for the run that is made here.
        stage = "adopted" if adopted.init == "teacher" else adopted.init
        adopted.upstream = {**found.result.get("upstream", {}), stage: cost_of(found)}
    else:
        adopted = _open_export(found, model, dataset)
        adopted.extra_data = unknown_data(found)
    adopted.extra_data = check_leak(
        adopted.extra_data, dataset.name, allow=allow_leak, option=f"{OPTION} {start}"
    )
    return adopted


def _open_timm(name: str, model: ModelConfig, dataset: Dataset) -> Adopted:
    name = find_timm_weights(name)
    model = _named(model, name.partition(".")[0])
    architecture, arguments, backbone = _build(model, dataset)
    notes = initialise_from_timm(backbone, name, offline=places.offline())
    config = get_pretrained_cfg(name)
    assert config is not None
    return Adopted(
        backbone=backbone,
        architecture=architecture,
        arguments=arguments,
        colours=(_colours(config.mean), _colours(config.std)),
        extra_data=timm_data(name),
        notes=notes,
    )


def _open_file(path: Path, model: ModelConfig, dataset: Dataset) -> Adopted:
    weights, notes = read_checkpoint(path)
    architecture, arguments, backbone = _build(model, dataset)
    try:
        adapted, changes = adapt(weights, backbone.model, same_classes=False)
    except ConfigError as error:
        raise ConfigError(
            f"{OPTION} {path} is for another network than {model.name}: {error}: name its own with "
            "--model; `smallvit convert` reads the names of the papers' code"
        ) from error
    backbone.model.load_state_dict(adapted, strict=False)
    facts: Any = backbone.model.pretrained_cfg
    return Adopted(
        backbone=backbone,
        architecture=architecture,
        arguments=arguments,
        colours=(_colours(facts["mean"]), _colours(facts["std"])),
        extra_data=unknown_data(path),
        notes=[*notes, *changes],
    )


def _open_export(folder: Path, model: ModelConfig, dataset: Dataset) -> Adopted:
    source = read_export(folder)
    config = json.loads((folder / "config.json").read_text())
    known = _class_names(config)
    if known and known != dataset.class_names:
        raise ConfigError(
            f"{OPTION} {folder} knows {len(known)} classes ({_listed(known)}), {dataset.name} has "
            f"{dataset.num_classes} ({_listed(dataset.class_names)}): take a network of the "
            "same, a pretrain run, which gets a classifier, or train one with smallvit teacher"
        )
    architecture = config["architecture"]
    if "model_args" in config:
        arguments = {**config["model_args"], "num_classes": dataset.num_classes}
        sizes = {"img_size": dataset.image_size, "patch_size": model.patch_size}
        arguments |= {key: v for key, v in sizes.items() if key in arguments and v is not None}
        backbone = _build_exactly(architecture, arguments, dataset, pool=not known)
    else:
        architecture, arguments, backbone = _build(_named(model, architecture), dataset)
    weights, notes = adapt(
        source.model.state_dict(),
        backbone.model,
        grid=position_grid(source.model),
        same_classes=bool(known),
    )
    backbone.model.load_state_dict(weights, strict=False)
    backbone.aux_head = source.aux_head if known else None
    facts = {**(getattr(source.model, "pretrained_cfg", None) or {})}
    facts |= config.get("pretrained_cfg") or {}
    return Adopted(
        backbone=backbone,
        architecture=architecture,
        arguments=arguments,
        colours=(_colours(facts["mean"]), _colours(facts["std"])),
        extra_data="none",
        knows_classes=bool(known),
        notes=notes,
    )


def _build(model: ModelConfig, dataset: Dataset) -> tuple[str, dict[str, Any], AbstractBackbone]:
    """Build a network that is to get a new classifier, for the images of a data set."""
    architecture, arguments = model_arguments(
        model, num_classes=dataset.num_classes, image_size=dataset.image_size
    )
    return architecture, arguments, _build_exactly(architecture, arguments, dataset, pool=True)


def _build_exactly(
    architecture: str, arguments: dict[str, Any], dataset: Dataset, *, pool: bool
) -> AbstractBackbone:
    """Build a network; where its pooling is to be the mean, ``arguments`` are changed to say so."""
    backbone = create_exported(architecture, arguments)
    pooling = mean_pooling(backbone) if pool else {}
    if pooling:
        arguments |= pooling
        backbone = create_exported(architecture, arguments)
    check_fit(backbone, architecture, dataset.image_size)
    return backbone


def _named(model: ModelConfig, name: str) -> ModelConfig:
    """Return the settings of the network that it is, if another or none was named."""
    return model if model.name == name else ModelConfig(name=name)


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes of an export; none where it has no classifier or numbers for names."""
    names = tuple(config.get("label_names") or ())
    numbered = all(re.fullmatch(r"class \d+", name) for name in names)  # by smallvit convert
    return () if numbered else names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _colours(values: Sequence[float]) -> Colours:
    red, green, blue = values
    return (red, green, blue)


def _fit_classifier(backbone: AbstractBackbone, dataset: Dataset, runtime: Runtime) -> None:
    """Fit a classifier on the labelled training images, and put it into the network."""
    patches, pooled, labels = [], [], []
    for images, batch_labels in eval_batches(dataset, dataset.splits["labelled"], EVAL_BATCH):
        with runtime.autocast():
            of_patches, of_image = read_features(backbone, images)
        patches.append(of_patches)
        pooled.append(of_image)
        labels.append(batch_labels)
    mean, read, target = torch.cat(patches), torch.cat(pooled), torch.cat(labels)
    if not (mean.isfinite().all() and read.isfinite().all()):
        raise DataError("the network's features are NaN or infinite: its weights are broken")
    what = "mean patch tokens"
    rows, row_labels = mean, target
    if not torch.allclose(mean, read, rtol=1e-2, atol=1e-2 * float(mean.abs().mean())):
        # The image logits read something else: one classifier has to serve both.
        what = "mean patch tokens and on what the image logits read"
        rows, row_labels = torch.cat([mean, read]), torch.cat([target, target])
    weight, bias = fit_classifier(rows, row_labels, num_classes=dataset.num_classes)
    set_classifier(backbone, weight, bias)
    found = mean.cpu() @ weight.T + bias
    right = (found.argmax(dim=1) == target.cpu()).float().mean().item()
    logger.info(
        "classifier: a new linear one of %d classes, fitted on the %s of %s labelled training "
        "images, which it gets right to %.2f%%; all other weights stay",
        dataset.num_classes,
        what,
        f"{len(target):,}",
        100 * right,
    )


def _describe(recipe: Recipe, start: str, dataset: Dataset, adopted: Adopted) -> dict[str, Any]:
    """Return what result.json says from the start."""
    model = settings_from(adopted.architecture, adopted.arguments)
    return {
        "stage": "teacher",
        "dataset": dataset.name,
        "model": ModelConfig(**model).name,
        "seed": recipe.seed,
        "params": sum(p.numel() for p in adopted.backbone.model.parameters()),
        "num_labels": len(dataset.splits["labelled"]),
        "label_fraction": recipe.data.label_fraction,
        "total_steps": 0,
        "upstream": adopted.upstream,
        "init": adopted.init,
        "token_labels": False,
        "extra_data": adopted.extra_data,
        "adopted": start,
        "classifier": "as it was" if adopted.knows_classes else "fitted",
    }
