"""Where a stage's network starts: the weights of a run, of an export or of timm."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smallvit.core import places
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import Run, open_run
from smallvit.data.loader import Dataset
from smallvit.inference.export import (
    exported_model,
    find_timm_weights,
    initialise_from,
    initialise_from_timm,
)
from smallvit.models.tokens import AbstractBackbone
from smallvit.pretrain.dino import DinoConfig
from smallvit.run.provenance import check_leak, join_extra_data, other_data
from smallvit.run.recipe import OF_NAMED_DATA

logger = logging.getLogger("smallvit")
TIMM = "timm:"


def start_from(
    backbone: AbstractBackbone, start: str, dataset: Dataset, *, allow_leak: bool = False
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Fill a network with the weights of a run, of an export or of timm.

    Args:
        backbone: Network to fill.
        start: Folder of the run or export, or ``timm:NAME``.
        dataset: What the network is to be trained on.
        allow_leak: Take weights that may have seen held-out images of it; it is recorded.

    Returns:
        Facts for result.json, and the cost of the runs that it builds on, by stage.

    Raises:
        ConfigError: If the weights are not for such a network, or timm has none of that name.
        DataError: If they are not there, or broken.
    """
    cost: dict[str, dict[str, float]] = {}
    if start.startswith(TIMM):
        name = find_timm_weights(start.removeprefix(TIMM))
        said = f"timm weights {name} (trained on what their tag says)"
        facts = {"init": "weights", "extra_data": said}
        notes = initialise_from_timm(backbone, name, offline=places.offline())
    elif _is_export(Path(start)):
        facts = {"init": "weights", "extra_data": f"unknown (weights of {Path(start).name})"}
        logger.warning("%s does not say what it was trained on: extra_data is unknown", start)
        notes = initialise_from(backbone, Path(start), dataset.class_names)
    else:
        run = open_run(Path(start))
        stage = run.result["stage"]
        if stage == "label":
            raise ConfigError(f"--init {start} holds score maps, no network: name its teacher")
        extra = join_extra_data(
            other_data(run, dataset, "--init", allow_leak=allow_leak),
            run.result.get("extra_data", "none"),
        )
        facts = {"init": stage, "extra_data": extra}
        if stage == "pretrain":
            facts["start_method"] = pretrain_method(run)
        cost = total_cost(run)
        notes = initialise_from(backbone, run.path / "export", dataset.class_names)
    facts["extra_data"] = check_leak(
        facts["extra_data"], dataset.name, allow=allow_leak, option=f"--init {start}"
    )
    logger.info("weights of %s", start)
    for note in notes:
        logger.info("  %s", note)
    if not backbone.model.num_classes:
        logger.info("  heads of the method, optimizer and schedule start anew")
    return facts, cost


def start_settings(start: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a start brings to those that were given, which win.

    A run brings its model and data, an export and timm's weights their model. To another model no
    sizes are brought, and to data that are named nothing that is said of others.

    Args:
        start: Folder of a run or export, or ``timm:NAME``.
        settings: What was given, nested.

    Raises:
        ConfigError: If timm has no weights of that name.
        DataError: If there is neither a finished run nor an export.
    """
    if start.startswith(TIMM):
        name = find_timm_weights(start.removeprefix(TIMM))
        brought: dict[str, Any] = {"model": {"name": name.partition(".")[0]}}
    elif _is_export(Path(start)):
        brought = {"model": exported_model(Path(start))}
    else:
        recipe = open_run(Path(start)).recipe
        brought = {key: recipe.get(key, {}) for key in ("model", "data")}
    given = settings.get("model") or {}
    if given.get("name") not in (None, brought["model"].get("name")):
        del brought["model"]
    given = settings.get("data") or {}
    if given.get("dataset") is not None or given.get("path") is not None:
        data = brought.get("data", {})
        brought["data"] = {key: data[key] for key in data if key not in OF_NAMED_DATA}
    return brought


def cost_of(run: Run) -> dict[str, float]:
    """Return samples seen and seconds spent by a run."""
    result = run.result
    return {"samples_seen": result.get("samples_seen", 0), "wall_s": result.get("wall_s", 0.0)}


def total_cost(run: Run) -> dict[str, dict[str, float]]:
    """Return the cost of a run and of those that it builds on, by stage."""
    stage, own = run.result["stage"], cost_of(run)
    upstream = run.result.get("upstream", {})
    earlier = upstream.get(stage, {})
    return upstream | {stage: {key: own[key] + earlier.get(key, 0) for key in own}}


def pretrain_method(run: Run) -> str:
    """Return the method of a run of stage 1."""
    method = run.recipe.get("pretrain", {}).get("method", {})
    return str(method.get("name", DinoConfig().name))


def _is_export(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / "result.json").is_file()
