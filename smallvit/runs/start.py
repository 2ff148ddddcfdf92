"""Where a stage's network starts: the weights of a run, of an export or of timm."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smallvit.core import places
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import Run, open_run, what_is_at
from smallvit.data.dataset import Dataset
from smallvit.inference.export import (
    WEIGHTS,
    exported_model,
    find_timm_weights,
    initialise_from,
    initialise_from_timm,
)
from smallvit.models.tokens import AbstractBackbone
from smallvit.pretraining.config import DinoConfig
from smallvit.runs.data import say_other_grey
from smallvit.runs.learned import NOTHING, Learned
from smallvit.runs.provenance import check_leak, other_data
from smallvit.runs.recipe import OF_NAMED_DATA

logger = logging.getLogger("smallvit")
TIMM = "timm:"
INIT = "--init"


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a network builds on; nothing where its weights are fresh.

    Attributes:
        facts: For result.json.
        cost: Cost of the runs that it builds on, by stage.
        learned: The images that they learned.
    """

    facts: dict[str, Any] = field(default_factory=lambda: {"init": "scratch", "extra_data": "none"})
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    learned: Learned = NOTHING


def start_from(
    backbone: AbstractBackbone, start: str | None, dataset: Dataset, *, allow_leak: bool = False
) -> Start:
    """Fill a network with the weights of a run, of an export or of timm.

    Args:
        backbone: Network to fill.
        start: Folder of the run or export, or ``timm:NAME``; ``None`` and ``scratch`` leave the
            fresh weights.
        dataset: What the network is to be trained on.
        allow_leak: Take weights that may have seen held-out images of it; it is recorded.

    Raises:
        ConfigError: If they are not there, are not for such a network, or timm has none of that
            name.
        DataError: If they are broken, or their run did not finish.
    """
    if start in (None, "scratch"):
        return Start()
    cost: dict[str, dict[str, float]] = {}
    learned = NOTHING
    if start.startswith(TIMM):
        name = find_timm_weights(start.removeprefix(TIMM))
        facts = {"init": "weights", "extra_data": timm_data(name)}
        notes = initialise_from_timm(backbone, name, offline=places.offline())
    else:
        found = find_start(start)
        if isinstance(found, Run):
            folder, stage = found.path / "export", found.result["stage"]
            say_other_grey(found, dataset, INIT)
            seen = other_data(found, dataset, INIT, allow_leak=allow_leak)
            learned, cost = seen.learned, total_cost(found)
            facts = {"init": stage, "extra_data": seen.extra_data}
            if stage == "pretrain":
                facts["start_method"] = pretrain_method(found)
        else:
            folder = found
            facts = {"init": "weights", "extra_data": unknown_data(folder)}
        notes = initialise_from(backbone, folder, dataset.class_names)
    facts["extra_data"] = check_leak(
        facts["extra_data"], dataset.name, allow=allow_leak, option=f"{INIT} {start}"
    )
    logger.info("weights of %s", start)
    for note in notes:
        logger.info("  %s", note)
    if not backbone.model.num_classes:
        logger.info("  heads of the method, optimizer and schedule start anew")
    return Start(facts=facts, cost=cost, learned=learned)


def timm_data(name: str) -> str:
    """Say what timm's weights of that name were trained on."""
    return f"timm weights {name} (trained on what their tag says)"


def unknown_data(path: Path) -> str:
    """Say, and warn, that weights do not say what they were trained on."""
    logger.warning("%s does not say what it was trained on: extra_data is unknown", path)
    return f"unknown (weights of {path.name})"


def origin(facts: Mapping[str, Any]) -> str:
    """Say in one sentence what a network was trained from and on, for its card."""
    init = facts["init"]
    start = {"scratch": "from scratch", "weights": "from other weights"}.get(
        init, f"from a {init} run"
    )
    seen = f", which saw other data: {extra}" if (extra := facts["extra_data"]) != "none" else ""
    return f"Trained by smallvit {start}{seen}."


def find_start(start: str, option: str = INIT) -> Run | Path:
    """Find the run or the export that a start names, by its folder or its file of weights.

    Args:
        start: What was named.
        option: What named it, for messages.

    Returns:
        The finished run; or the folder of an export that is not of a run.

    Raises:
        ConfigError: If it is neither; the message says what it is and what to name instead.
        DataError: If the run did not finish, or its record is broken.
    """
    path = Path(start)
    folder = path.parent if path.name == WEIGHTS and path.is_file() else path
    if folder.name == "export" and (folder.parent / "result.json").is_file():
        folder = folder.parent
    if (folder / "result.json").is_file():
        run = open_run(folder, option=option)
        if run.result["stage"] == "label":
            raise ConfigError(f"{option} {start} holds score maps, no network: name its teacher")
        return run
    if (folder / "config.json").is_file():
        return folder
    raise ConfigError(f"{option} {start} {what_is_at(path)}")


def start_settings(start: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a start brings to those that were given, which win.

    A run brings its model and data, an export and timm's weights their model. To another model no
    sizes are brought, and to data that are named nothing that is said of others.

    Args:
        start: Folder of a run or export, or ``timm:NAME``.
        settings: What was given, nested.

    Raises:
        ConfigError: If timm has no weights of that name, or there is neither a run nor an export.
        DataError: If the run did not finish.
    """
    if start.startswith(TIMM):
        name = find_timm_weights(start.removeprefix(TIMM))
        brought: dict[str, Any] = {"model": {"name": name.partition(".")[0]}}
    elif isinstance(found := find_start(start), Run):
        brought = {"model": found.recipe.get("model", {}), "data": data_settings(found, settings)}
    else:
        brought = {"model": exported_model(found)}
    given = settings.get("model") or {}
    if given.get("name") not in (None, brought["model"].get("name")):
        del brought["model"]
    return brought


def data_settings(run: Run, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of data that a run brings to those that were given.

    To data that are named nothing is brought that is said of others.

    Args:
        run: Run that a new one builds on.
        settings: What was given, nested.
    """
    data = dict(run.recipe.get("data") or {})
    data.pop("allow_leak", None)  # that was said of what that run builds on
    scale = run.env["dataset"].get("grey_range")
    if isinstance(scale, list):
        # What all files of its data decided: the same picture is to have the same pixels.
        data["grey_range"] = scale
    given = settings.get("data") or {}
    if given.get("dataset") is not None or given.get("path") is not None:
        data = {key: data[key] for key in data if key not in OF_NAMED_DATA}
    return data


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
