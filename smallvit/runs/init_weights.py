"""The weights that a network begins with: of a run, of an export or of timm."""

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
    initialize_from,
    initialize_from_timm,
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
class Init:
    """What a network begins with; fresh weights where nothing else is said.

    Attributes:
        facts: For result.json: the stage of the run that it comes from, what it saw beside the data
            set, and the cost of the runs that it builds on, by stage.
        learned: The images that those runs learned.
    """

    facts: dict[str, Any] = field(
        default_factory=lambda: {"init": "scratch", "extra_data": "none", "upstream": {}}
    )
    learned: Learned = NOTHING


def trace_init(init: str, dataset: Dataset, *, option: str = INIT, allow_leak: bool) -> Init:
    """Say what the weights of a run, of an export or of timm have seen beside a data set.

    Args:
        init: Folder of the run or export, a file of weights, or ``timm:NAME``.
        dataset: What the network is to be trained on.
        option: What named it, for messages.
        allow_leak: Take weights that may have seen held-out images; it is recorded.

    Raises:
        ConfigError: If they are not there, or may have seen held-out images.
        DataError: If their run did not finish, or its record is broken.
    """
    facts: dict[str, Any] = {"init": "weights", "upstream": {}}
    learned = NOTHING
    if init.startswith(TIMM):
        name = find_timm_weights(init.removeprefix(TIMM))
        facts["extra_data"] = f"timm weights {name} (trained on what their tag says)"
    elif isinstance(found := find_weights(init, option), Run):
        say_other_grey(found, dataset, option)
        seen = other_data(found, dataset, option, allow_leak=allow_leak)
        stage, learned = found.result["stage"], seen.learned
        facts = {"init": stage, "extra_data": seen.extra_data, "upstream": total_cost(found)}
        if stage == "pretrain":
            facts["start_method"] = pretrain_method(found)
    else:
        logger.warning("%s does not say what it was trained on: extra_data is unknown", found)
        facts["extra_data"] = f"unknown (weights of {found.name})"
    facts["extra_data"] = check_leak(
        facts["extra_data"], dataset.name, allow=allow_leak, option=f"{option} {init}"
    )
    return Init(facts=facts, learned=learned)


def load_init(
    backbone: AbstractBackbone, init: str | None, dataset: Dataset, *, allow_leak: bool
) -> Init:
    """Fill a network with the weights of a run, of an export or of timm.

    Args:
        backbone: Network to fill.
        init: As for ``trace_init``; ``None`` and ``scratch`` leave the fresh weights.
        dataset: As for ``trace_init``.
        allow_leak: As for ``trace_init``.

    Raises:
        ConfigError: If they are not there, may have seen held-out images, or are not for such a
            network.
        DataError: If they are broken, or their run did not finish.
    """
    if init in (None, "scratch"):
        return Init()
    folder = None if init.startswith(TIMM) else find_export(init)
    traced = trace_init(init, dataset, allow_leak=allow_leak)
    if folder is None:
        name = find_timm_weights(init.removeprefix(TIMM))
        notes = initialize_from_timm(backbone, name, offline=places.offline())
    else:
        notes = initialize_from(backbone, folder, dataset.class_names)
    logger.info("weights of %s", init)
    for note in notes:
        logger.info("  %s", note)
    if not backbone.model.num_classes:
        logger.info("  heads of the method, optimizer and schedule start anew")
    return traced


def say_origin(facts: Mapping[str, Any]) -> str:
    """Say in one sentence what a network was trained from and on, for its card."""
    init, extra = facts["init"], facts["extra_data"]
    known = {"scratch": "from scratch", "weights": "from other weights"}
    seen = "" if extra == "none" else f", which saw other data: {extra}"
    return f"Trained by smallvit {known.get(init, f'from a {init} run')}{seen}."


def is_weights_file(init: str) -> bool:
    """Tell whether weights are named by a file that is of no run and no export."""
    path = Path(init)
    of_export = path.name == WEIGHTS and (path.parent / "config.json").is_file()
    of_run = path.parent.name == "checkpoints" and (path.parents[1] / "result.json").is_file()
    weights = path.suffix in (".safetensors", ".pt", ".pth")
    weights |= path.is_file() and path.suffix not in (".json", ".yaml")
    return weights and not (of_export or of_run or path.is_dir())


def find_weights(init: str, option: str) -> Run | Path:
    """Find what is named as ``find_init`` does, or return the file of weights that it is."""
    return Path(init) if is_weights_file(init) else find_init(init, option)


def find_init(init: str, option: str = INIT) -> Run | Path:
    """Find the run or the export that is named by its folder or its file of weights.

    Args:
        init: What was named.
        option: What named it, for messages.

    Returns:
        The finished run; or the folder of an export that is not of a run.

    Raises:
        ConfigError: If it is neither; the message says what it is and what to name instead.
        DataError: If the run did not finish, or its record is broken.
    """
    path = Path(init)
    folder = path.parent if path.name == WEIGHTS and path.is_file() else path
    if folder.name == "export" and (folder.parent / "result.json").is_file():
        folder = folder.parent
    if (folder / "result.json").is_file():
        run = open_run(folder, option=option)
        if run.result["stage"] == "label":
            raise ConfigError(f"{option} {init} holds score maps, no network: name its teacher")
        return run
    if (folder / "config.json").is_file():
        return folder
    raise ConfigError(f"{option} {init} {what_is_at(path)}")


def find_export(init: str, option: str = INIT) -> Path:
    """Find the export that is named by itself or by its run, as ``find_init`` does."""
    found = find_init(init, option)
    return found.path / "export" if isinstance(found, Run) else found


def init_settings(
    init: str, settings: Mapping[str, Any], *, option: str = INIT, exported: bool = False
) -> dict[str, Any]:
    """Return the settings that weights bring to those that were given, which win.

    A run brings its model and data, an export and timm's weights their model. To another model no
    sizes are brought, and to data that are named nothing that is said of others.

    Args:
        init: Folder of a run or export, or ``timm:NAME``.
        settings: What was given, nested.
        option: What named it, for messages.
        exported: Whether the model of a run is that of its export, whatever its settings say.

    Raises:
        ConfigError: If timm has no weights of that name, or there is neither a run nor an export.
        DataError: If the run did not finish.
    """
    brought: dict[str, Any] = {}
    if init.startswith(TIMM):
        name = find_timm_weights(init.removeprefix(TIMM))
        brought["model"] = {"name": name.partition(".")[0]}
    else:
        found = find_init(init, option)
        if exported or not isinstance(found, Run):
            brought["model"] = exported_model(find_export(init, option))
        else:
            brought["model"] = found.recipe.get("model", {})
        if isinstance(found, Run):
            brought["data"] = _data_settings(found, settings)
    named = settings.get("model") or {}
    if named.get("name") not in (None, brought["model"].get("name")):
        del brought["model"]
    return brought


def _data_settings(run: Run, settings: Mapping[str, Any]) -> dict[str, Any]:
    data = dict(run.recipe.get("data") or {})
    data.pop("allow_leak", None)  # that was said of what that run builds on
    scale = run.env["dataset"].get("grey_range")
    if isinstance(scale, list):
        # What all files of its data decided: the same picture is to have the same pixels.
        data["grey_range"] = scale
    named = settings.get("data") or {}
    if named.get("dataset") is not None or named.get("path") is not None:
        data = {key: data[key] for key in data if key not in OF_NAMED_DATA}
    return data


def total_cost(run: Run) -> dict[str, dict[str, float]]:
    """Return the samples seen and seconds spent by a run and those it builds on, by stage."""
    result, upstream = run.result, run.result.get("upstream", {})
    earlier = upstream.get(result["stage"], {})
    cost = {key: result.get(key, 0) + earlier.get(key, 0) for key in ("samples_seen", "wall_s")}
    return upstream | {result["stage"]: cost}


def pretrain_method(run: Run) -> str:
    """Return the method of a run of stage 1."""
    method = run.recipe.get("pretrain", {}).get("method", {})
    return str(method.get("name", DinoConfig().name))
