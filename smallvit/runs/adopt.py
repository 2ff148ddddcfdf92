"""Taking a trained network as the teacher of a data set, instead of training one."""

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from timm.models import get_pretrained_cfg

from smallvit.core import places
from smallvit.core.errors import ConfigError, DataError
from smallvit.core.model_config import ModelConfig
from smallvit.core.run_folder import Run, what_is_at
from smallvit.data.dataset import Dataset
from smallvit.data.files.class_lists import some
from smallvit.data.views import eval_batches
from smallvit.engine.runtime import Runtime
from smallvit.inference.export import find_timm_weights, initialize_from_timm, read_export
from smallvit.models.convert.adapt import adapt, position_grid
from smallvit.models.convert.checkpoint import read_checkpoint
from smallvit.models.registry import check_fit, create_exported, model_arguments, settings_from
from smallvit.models.tokens import AbstractBackbone
from smallvit.parallel.launch import refuse_several
from smallvit.runs.classifier import describe_yardstick, judge_classifier, refuse_chance
from smallvit.runs.config import Call, Recipe
from smallvit.runs.data import require_labels
from smallvit.runs.init_weights import (
    TIMM,
    find_export,
    init_settings,
    is_weights_file,
    trace_init,
)
from smallvit.runs.job import describe_run, export_network
from smallvit.runs.monitor import EVAL_BATCH
from smallvit.runs.session import Session, open_session, working_run
from smallvit.teachers.adopt import (
    fit_classifier,
    linear_classifier,
    match_colors,
    mean_pooling,
    read_features,
    set_classifier,
)

logger = logging.getLogger("smallvit")
TAKE_ANOTHER = "take another network, or train one with smallvit teacher"
OPTION = "--from"
LISTED = 12  # class names of a message


@dataclass(kw_only=True)
class Adopted:
    """A trained network, built for a data set's images.

    Attributes:
        backbone: With its weights.
        architecture: timm's name.
        arguments: All arguments that build it anew.
        pixels: ``mean`` and ``std`` that its images were normalised with.
        knows_classes: Whether its classifier is for the data set's classes.
        notes: One line for each weight that was resampled or not loaded.
    """

    backbone: AbstractBackbone
    architecture: str
    arguments: dict[str, Any]
    pixels: Mapping[str, Any] = field(default_factory=dict)
    knows_classes: bool = False
    notes: Sequence[str] = ()


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
    init = recipe.teacher.adopt
    assert init is not None
    refuse_several("adopting a teacher")
    if call.resume is not None:
        call = replace(call, out=call.resume, overwrite=True, resume=None)
    with open_session(recipe, "teacher", call) as session:
        dataset = session.dataset
        require_labels(dataset, "`smallvit teacher`")
        adopted = _open(init, recipe.teacher.model, dataset)
        traced = trace_init(init, dataset, option=OPTION, allow_leak=recipe.data.allow_leak)
        backbone = adopted.backbone.to(session.runtime.device)
        if not adopted.knows_classes:
            linear_classifier(backbone)
        backbone.grid(dataset.image_size)
        if call.dry_run:
            logger.info("dry run of teacher: settings, data and weights of %s are fine", init)
            return None
        facts = traced.facts
        if facts["init"] == "teacher":  # that key of the costs is for the run that is made here
            facts["upstream"]["adopted"] = facts["upstream"].pop("teacher")
        model = ModelConfig(**settings_from(adopted.architecture, adopted.arguments)).name
        facts = describe_run(session, recipe, "teacher", model, backbone.model, total_steps=0) | {
            "upstream": facts["upstream"],
            "init": facts["init"],
            "token_labels": False,
            "extra_data": facts["extra_data"],
            "adopted": init,
            "classifier": "as it was" if adopted.knows_classes else "fitted",
        }
        # recipe.yaml is as it was asked for: `smallvit run` compares it on its second call.
        learns = "nothing" if adopted.knows_classes else "labels"
        with working_run(session, facts, learns=learns, learned=traced.learned) as (folder, record):
            record |= _adopt(folder, init, session, adopted, facts["extra_data"])
        return Run(folder)


def _adopt(
    folder: Path, init: str, session: Session, adopted: Adopted, extra_data: str
) -> dict[str, Any]:
    """Fit the network to the data set, score and export it; return what result.json says of it."""
    dataset, runtime, backbone = session.dataset, session.runtime, adopted.backbone
    started = time.monotonic()
    size = "{} px, {} x {} tokens".format(dataset.image_size, *backbone.grid(dataset.image_size))
    logger.info("weights of %s: %s, images of %s", init, adopted.architecture, size)
    trained = tuple(adopted.pixels["mean"]), tuple(adopted.pixels["std"])
    matched = match_colors(backbone.model, trained=trained, now=(dataset.mean, dataset.std))
    for note in filter(None, (*adopted.notes, matched)):
        logger.info("  %s", note)
    samples = 0
    if adopted.knows_classes:
        logger.info("classifier of these %d classes: taken as it is", dataset.num_classes)
    else:
        _fit_classifier(backbone, dataset, runtime)
        samples = len(dataset.splits["labelled"])
    logger.info("seen beside %s: %s", dataset.name, extra_data)
    scores, yardstick = judge_classifier(backbone, dataset, "val", runtime)
    refuse_chance(scores["nll"], yardstick, who=f"{OPTION} {init}", remedy=TAKE_ANOTHER)
    metrics = {f"val/{name}": value for name, value in scores.items() if name != "n"}
    classifier = "taken as it was" if adopted.knows_classes else "fitted on its training images"
    export_network(
        folder,
        backbone,
        dataset,
        adopted.arguments,
        title=f"{adopted.architecture} as a teacher of {dataset.name}",
        origin=(f"Weights of {init}, which saw other data: {extra_data}. Classifier {classifier}."),
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
        **describe_yardstick(yardstick, stage="teacher", remedy=TAKE_ANOTHER),
    }


def adopt_settings(init: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a network to adopt brings to those that were given, which win.

    Args:
        init: Folder of a run or export, file of weights, or ``timm:NAME``.
        settings: What was given, nested.

    Raises:
        ConfigError: If another network is named than it is, or none for a file of weights.
        DataError: If it is not there.
    """
    named = (settings.get("teacher") or {}).get("model") or {}
    if not init.startswith(TIMM) and is_weights_file(init):
        if not Path(init).is_file():
            raise ConfigError(f"{OPTION} {init} {what_is_at(Path(init))}")
        if "name" not in named:
            raise ConfigError(
                f"{OPTION} {init} holds weights alone: give their network with --model NAME"
            )
        return {}
    others = sorted(set(named) - {"patch_size"})
    if others:
        option = "model" if others[0] == "name" else f"model.{others[0].replace('_', '-')}"
        raise ConfigError(f"{OPTION} {init} brings its own network: leave --{option} out")
    brought = init_settings(init, settings, option=OPTION, exported=True)
    brought["teacher"] = {"model": brought.pop("model")}
    return brought


def _open(init: str, model: ModelConfig, dataset: Dataset) -> Adopted:
    """Build the network with its weights."""
    if init.startswith(TIMM):
        name = find_timm_weights(init.removeprefix(TIMM))
        adopted = _build(_named(model, name.partition(".")[0]), dataset)
        adopted.notes = initialize_from_timm(adopted.backbone, name, offline=places.offline())
        config = get_pretrained_cfg(name)
        assert config is not None
        adopted.pixels = {"mean": config.mean, "std": config.std}
        return adopted
    if not is_weights_file(init):
        return _open_export(find_export(init, OPTION), model, dataset)
    weights, notes = read_checkpoint(Path(init))
    adopted = _build(model, dataset)
    network = adopted.backbone.model
    try:
        adapted = adapt(weights, network, same_classes=False)
    except ConfigError as error:
        raise ConfigError(
            f"{OPTION} {init} is for another network than {model.name}: {error}: name its own with "
            "--model; `smallvit convert` reads the names of the papers' code"
        ) from error
    network.load_state_dict(adapted[0], strict=False)
    adopted.notes = [*notes, *adapted[1]]
    pixels: Any = network.pretrained_cfg
    adopted.pixels = pixels
    return adopted


def _open_export(folder: Path, model: ModelConfig, dataset: Dataset) -> Adopted:
    source = read_export(folder)
    config = json.loads((folder / "config.json").read_text())
    known = _class_names(config)
    if known and known != dataset.class_names:
        raise ConfigError(
            f"{OPTION} {folder} knows {len(known)} classes ({some(known, LISTED)}), "
            f"{dataset.name} has {dataset.num_classes} ({some(dataset.class_names, LISTED)}): take "
            "a network of the same, a pretrain run, which gets a classifier, or train one with "
            "smallvit teacher"
        )
    architecture = config["architecture"]
    if "model_args" in config:
        arguments = {**config["model_args"], "num_classes": dataset.num_classes}
        sizes = {"img_size": dataset.image_size, "patch_size": model.patch_size}
        arguments |= {key: v for key, v in sizes.items() if key in arguments and v is not None}
        adopted = _build_exactly(architecture, arguments, dataset, pool=not known)
    else:
        adopted = _build(_named(model, architecture), dataset)
    network = adopted.backbone.model
    weights, adopted.notes = adapt(
        source.model.state_dict(),
        network,
        grid=position_grid(source.model),
        same_classes=bool(known),
    )
    network.load_state_dict(weights, strict=False)
    adopted.knows_classes = bool(known)
    adopted.backbone.aux_head = source.aux_head if known else None
    pixels: Any = getattr(source.model, "pretrained_cfg", None)
    adopted.pixels = {**(pixels or {}), **(config.get("pretrained_cfg") or {})}
    return adopted


def _build(model: ModelConfig, dataset: Dataset) -> Adopted:
    """Build a network that is to get a new classifier, for the images of a data set."""
    architecture, arguments = model_arguments(
        model, num_classes=dataset.num_classes, image_size=dataset.image_size
    )
    return _build_exactly(architecture, arguments, dataset, pool=True)


def _build_exactly(
    architecture: str, arguments: dict[str, Any], dataset: Dataset, *, pool: bool
) -> Adopted:
    """Build a network; ``pool`` asks for the mean as its pooling where it can have that."""
    backbone = create_exported(architecture, arguments)
    pooling = mean_pooling(backbone) if pool else {}
    if pooling:
        arguments = arguments | pooling
        backbone = create_exported(architecture, arguments)
    check_fit(backbone, architecture, dataset.image_size)
    return Adopted(backbone=backbone, architecture=architecture, arguments=arguments)


def _named(model: ModelConfig, name: str) -> ModelConfig:
    """Return the settings of the network that it is, if another or none was named."""
    return model if model.name == name else ModelConfig(name=name)


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes of an export; none where it has no classifier or numbers for names."""
    names = tuple(config.get("label_names") or ())
    numbered = all(re.fullmatch(r"class \d+", name) for name in names)  # by smallvit convert
    return () if numbered else names


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
