"""What supervises the patch tokens of stage 2: a file of score maps, or a teacher in every step."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from smallvit.core.errors import ConfigError
from smallvit.core.places import dead_link
from smallvit.core.run_folder import Run
from smallvit.data.dataset import Dataset
from smallvit.engine.runtime import Runtime
from smallvit.finetuning.online import OnlineTeacher
from smallvit.models.measure import measure
from smallvit.models.tokens import AbstractBackbone
from smallvit.runs.annotator import open_annotator
from smallvit.runs.config import FinetuneConfig
from smallvit.runs.learned import NOTHING, Learned
from smallvit.runs.provenance import check_leak, join_extra_data, other_data
from smallvit.runs.start import cost_of, total_cost
from smallvit.teachers.score_maps import open_score_maps

logger = logging.getLogger("smallvit")
SCORE_MAPS = "score_maps.safetensors"


@dataclass(frozen=True, kw_only=True)
class TokenLabels:
    """Where the score maps of a run come from.

    Attributes:
        reader: Returns the stored maps of samples by their place in the labelled split; ``None``
            where none are stored.
        teacher: Makes maps in each step; ``None`` where stored ones are read.
        facts: For result.json.
        upstream: Cost of the runs that they were made by, by stage.
        learned: The images that the teacher learned.
    """

    reader: Callable[[Int[Tensor, " B"]], Float[Tensor, "B C h w"]] | None = None
    teacher: OnlineTeacher | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    upstream: dict[str, dict[str, float]] = field(default_factory=dict)
    learned: Learned = NOTHING


def open_token_labels(
    config: FinetuneConfig,
    student: AbstractBackbone,
    dataset: Dataset,
    runtime: Runtime,
    *,
    allow_leak: bool = False,
) -> TokenLabels:
    """Open what the settings of token labeling name.

    Args:
        config: Settings of stage 2.
        student: The network that is to be trained, for the cost of a teacher beside it.
        dataset: Images and splits.
        runtime: Device.
        allow_leak: Take maps or a teacher that may have seen held-out images; it is recorded.

    Raises:
        ConfigError: If nothing is named, or the teacher is of other classes or data.
        DataError: If the file or run is missing, broken or of other data.
    """
    if not config.token_label.token_weight and config.token_label.cls_target == "label":
        logger.warning(
            "token_label.token_weight 0 with token_label.cls_target label: the maps teach nothing, "
            "set cls_target pooled or blend"
        )
    if config.token_label.source == "ema":
        said = {"model": "running average of the student", "source": "ema"}
        return TokenLabels(facts={"teacher": said})
    if config.token_label.source == "online":
        return _open_online(config, student, dataset, runtime, allow_leak=allow_leak)
    if config.score_maps is None:
        raise ConfigError("token labeling needs --score-maps FILE or --teacher RUN")
    path = _find_maps(config.score_maps)
    maps, header = open_score_maps(path, dataset)
    extra_data, learned = header.extra_data, NOTHING
    upstream: dict[str, dict[str, float]] = {}
    if (path.parent / "result.json").is_file():
        label_run = Run(path.parent)
        upstream = label_run.result.get("upstream", {}) | {"label": cost_of(label_run)}
        seen = other_data(label_run, dataset, "--score-maps", allow_leak=allow_leak)
        extra_data, learned = join_extra_data(seen.extra_data, extra_data), seen.learned
    extra_data = check_leak(
        extra_data, dataset.name, allow=allow_leak, option=f"--score-maps {path}"
    )
    said = {
        "model": header.teacher,
        "weights": header.teacher_hash,
        "val_top1": header.teacher_val_top1,
        "extra_data": extra_data,
    }
    return TokenLabels(
        reader=maps.to(runtime.device).dense,
        facts={"teacher": said, "extra_data": extra_data},
        upstream=upstream,
        learned=learned,
    )


def _find_maps(path: Path) -> Path:
    """Return the file of score maps that was named by itself or by its run.

    Raises:
        ConfigError: If there is none.
    """
    named, file = f"--score-maps {path}", path / SCORE_MAPS if path.is_dir() else path
    if file.is_file():
        return file
    stage = Run(path).result.get("stage") if (path / "result.json").is_file() else None
    if stage in ("teacher", "finetune"):
        raise ConfigError(
            f"{named} is a {stage} run: `smallvit label --teacher {path}` writes its maps"
        )
    if stage == "label":
        raise ConfigError(
            f"{named} has no {SCORE_MAPS}: smallvit label --resume {path} writes them"
        )
    what = "holds no score maps" if path.exists() else "is not there"
    raise ConfigError(f"{named} {dead_link(path) or what}: smallvit label writes them")


def _open_online(
    config: FinetuneConfig,
    student: AbstractBackbone,
    dataset: Dataset,
    runtime: Runtime,
    *,
    allow_leak: bool,
) -> TokenLabels:
    if config.teacher is None:
        raise ConfigError("token_label.source online needs --teacher RUN")
    annotator = open_annotator(config.teacher, dataset, runtime, allow_leak=allow_leak)
    backbone, run = annotator.teacher.backbone, annotator.run
    own = measure(student, dataset.image_size).macs
    theirs = measure(backbone, dataset.image_size).macs
    logger.info(
        "online teacher: %.1f million multiply-adds an image in each step, beside the %.1f of a "
        "step of the student (three forward passes' worth); stored maps cost none",
        theirs / 1e6,
        3 * own / 1e6,
    )
    said = {
        "model": run.result["model"],
        "run": str(run.path),
        "source": "online",
        "weights": annotator.weights,
        "val_top1": annotator.scores["val"],
        "extra_data": annotator.extra_data,
    }
    return TokenLabels(
        teacher=OnlineTeacher(annotator.teacher),
        facts={"teacher": said, "extra_data": annotator.extra_data},
        upstream=total_cost(run),
        learned=annotator.learned,
    )
