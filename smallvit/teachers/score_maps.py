"""Score maps in one file: the teacher's top-k probabilities of every training image.

Shapes in this file:
    N    images, in the order of the labelled training split
    B    images of a batch
    C    classes
    k    listed classes a place
    h w  the teacher's grid
"""

import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Float16, Int, Int32
from torch import Tensor

from smallvit.core.config import Layer, resolve
from smallvit.core.errors import ConfigError, DataError, explained
from smallvit.data.dataset import Dataset
from smallvit.teachers.tensor_file import read_tensors, write_tensors

FORMAT_VERSION = 1
TENSORS = {"index": torch.int32, "prob": torch.float16, "rest": torch.float16}  # wider ones first
CHECKED = 4096  # images whose values are checked at a time: little memory beside the maps


@dataclass(frozen=True, kw_only=True)
class ScoreMapHeader:
    """What a file of score maps belongs to.

    Attributes:
        version: Format of the file.
        dataset: Name of the dataset.
        fingerprint: Hash of its class names, labels and pixels.
        split_hash: Hash of the labelled training split, in order.
        class_names: In the order of the channels.
        grid: The teacher's grid (h, w).
        image_size: Side of the images that the teacher saw, in pixels.
        teacher: Architecture of the teacher.
        teacher_hash: SHA-256 of its weights.
        teacher_train_top1: Its accuracy on the labelled training split.
        teacher_val_top1: Its accuracy on validation.
        extra_data: What else the teacher was trained on; ``"none"`` for this dataset alone.
        temperature: What its logits were divided by.
        flip: Whether its probabilities are the mean over each image and its mirror image.
    """

    version: int = FORMAT_VERSION
    dataset: str
    fingerprint: str
    split_hash: str
    class_names: tuple[str, ...]
    grid: tuple[int, int]
    image_size: int
    teacher: str
    teacher_hash: str
    teacher_train_top1: float
    teacher_val_top1: float
    extra_data: str
    temperature: float = 1.0
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class ScoreMaps:
    """Sparse score maps of a whole split.

    Attributes:
        prob: Probability of the listed classes, in falling order.
        index: Which classes they are.
        rest: Probability of all classes not listed, spread evenly over them when read.
        num_classes: C.
    """

    prob: Float16[Tensor, "N k h w"]
    index: Int32[Tensor, "N k h w"]
    rest: Float16[Tensor, "N h w"]
    num_classes: int

    @classmethod
    def from_dense(cls, batches: Iterable[Float[Tensor, "_ C h w"]], top_k: int) -> "ScoreMaps":
        """Keep the ``top_k`` classes of every place.

        Source:
            Jiang et al., 2021, https://arxiv.org/abs/2104.10858 keeps five logits.
            zihangJiang/TokenLabeling@9dbfd59, tlt/data/mixup.py:9-35 fills the others with logit
            0, which lets an unlisted class outrank a listed one; here they share the rest.
        """
        return cls.join([cls.from_batch(dense, top_k) for dense in batches])

    @classmethod
    def from_batch(cls, dense: Float[Tensor, "B C h w"], top_k: int) -> "ScoreMaps":
        """Keep the ``top_k`` classes of every place of one batch, on the CPU.

        Raises:
            DataError: If a map holds NaN or infinite values.
        """
        num_classes = dense.shape[1]
        prob, index = dense.topk(min(top_k, num_classes), dim=1)
        rest = (1 - prob.sum(dim=1)).clamp(min=0)
        prob, index, rest = prob.half().cpu(), index.int().cpu(), rest.half().cpu()
        # NaN and infinity are the largest of their place, so that the top holds them.
        if not bool(prob[:, 0].isfinite().all()):
            raise DataError(
                "the teacher answers with NaN or infinite probabilities: train it again, or raise "
                "label.temperature if that is small"
            )
        return cls(prob=prob, index=index, rest=rest, num_classes=num_classes)

    @classmethod
    def join(cls, parts: Sequence["ScoreMaps"]) -> "ScoreMaps":
        """Put the maps of several batches one after the other."""
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
        return cls(**joined, num_classes=parts[0].num_classes)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a file, by name."""
        return {name: getattr(self, name) for name in TENSORS}

    def to(self, device: torch.device) -> "ScoreMaps":
        """Put the maps on a device."""
        return replace(self, **{name: each.to(device) for name, each in self.tensors.items()})

    def dense(self, position: Int[Tensor, " B"]) -> Float[Tensor, "B C h w"]:
        """Return full distributions of the images at ``position`` in the split.

        The channel axis sums to 1 exactly, whatever float16 lost. In memory the classes of a place
        are neighbours, (B, h, w, C), which moving the maps and the loss work on.
        """
        prob = self.prob[position].flatten(2).mT.float()  # (B, h w, k)
        index = self.index[position].flatten(2).mT.long()
        rest = self.rest[position].flatten(1)[:, :, None].float()
        unlisted = self.num_classes - prob.shape[2]
        total = prob.sum(dim=2, keepdim=True) + (rest if unlisted else 0)
        share = rest / (max(unlisted, 1) * total)
        dense = share.expand(-1, -1, self.num_classes).scatter(2, index, prob / total)
        return dense.mT.unflatten(2, self.prob.shape[2:])


def write_score_maps(path: Path, maps: ScoreMaps, header: ScoreMapHeader) -> None:
    """Write maps and header to one safetensors file, whole or not at all.

    The same maps and header give the same bytes.

    Raises:
        DataError: If it cannot be written.
    """
    write_tensors(path, maps.tensors, asdict(header))


def read_score_maps(path: Path) -> tuple[ScoreMaps, ScoreMapHeader]:
    """Read a file of score maps.

    Raises:
        ConfigError: If it is not there.
        DataError: If it is cut short, altered, of another format, or holds no distributions.
    """
    if not path.is_file():
        raise ConfigError(f"no score maps at {path}: write them with smallvit label")
    again = _again(path)
    try:
        tensors, metadata = read_tensors(path)
    except DataError as error:
        raise DataError(f"{error}: {again}") from error
    version = metadata.get("version")
    if version is not None and version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format {version}, this version reads {FORMAT_VERSION}: {again}"
        )
    layer = Layer(source=str(path), values=metadata)
    with explained(
        lambda error: f"{path} is no whole file of score maps ({type(error).__name__}): {again}",
        TypeError,
        KeyError,
    ):
        try:
            header = resolve(ScoreMapHeader, [layer])
        except ConfigError as error:
            raise DataError(f"{error}: no whole file of score maps, {again}") from error
        _check_shapes(path, tensors, header)
        maps = ScoreMaps(**tensors, num_classes=len(header.class_names))
    for chunk in torch.arange(len(maps.prob)).split(CHECKED):
        prob, index, rest = maps.prob[chunk], maps.index[chunk], maps.rest[chunk]
        total = prob.float().sum(dim=1) + rest.float()
        fine = ((total - 1).abs() < 0.01) & (prob >= 0).all(dim=1) & (rest >= 0)
        if not bool(fine.all()):
            raise DataError(f"{path} holds values that are no probabilities: {again}")
        if bool((index < 0).any()) or bool((index >= maps.num_classes).any()):
            raise DataError(f"{path} lists classes outside 0 to {maps.num_classes - 1}: {again}")
    return maps, header


def _again(path: Path) -> str:
    """Say how a broken file is written again; in the folder of its run, by going on with that."""
    if (path.parent / "result.json").is_file():
        return f"remove it, then smallvit label --resume {path.parent} writes it again"
    return "write it again with smallvit label"


def _check_shapes(path: Path, tensors: dict[str, Tensor], header: ScoreMapHeader) -> None:
    """Refuse tensors whose shapes or types do not go together, or not with the header."""
    prob, classes = tensors["prob"], len(header.class_names)
    count, listed, *_ = (*prob.shape, 0, 0)
    wanted = {"prob": (count, listed, *header.grid), "rest": (count, *header.grid)}
    wanted["index"] = wanted["prob"]
    fits = [tensors[name].shape == wanted[name] for name in TENSORS]
    fits += [tensors[name].dtype == dtype for name, dtype in TENSORS.items()]
    if not all(fits) or not 1 <= listed <= classes:
        shapes = ", ".join(
            f"{name} {str(tensors[name].dtype).removeprefix('torch.')} {tuple(tensors[name].shape)}"
            for name in ("prob", "index", "rest")
        )
        height, width = header.grid
        raise DataError(
            f"{path} holds tensors that do not fit a {height}x{width} grid and {classes} classes "
            f"({shapes}): {_again(path)}"
        )


def open_score_maps(path: Path, dataset: Dataset) -> tuple[ScoreMaps, ScoreMapHeader]:
    """Read a file of score maps and check that it was written for this data.

    Args:
        path: The file.
        dataset: Data that it must be of.

    Raises:
        ConfigError: If it is not there.
        DataError: If it is broken or of other data.
    """
    maps, header = read_score_maps(path)
    split_hash, count = dataset.split_hashes["labelled"], len(dataset.splits["labelled"])
    differences = {
        "classes": _first_difference(header.class_names, dataset.class_names),
        "images": (header.fingerprint[:12], dataset.fingerprint[:12]),
        "training split": (header.split_hash[:12], split_hash[:12]),
        "number of images": (len(maps.prob), count),
    }
    for what, (written, here) in differences.items():
        if written != here:
            raise DataError(
                f"{path} was written for other {what} ({written}, here {here}): leave --score-maps "
                "out to have a teacher and maps of this data made, or name such maps"
            )
    return maps, header


def _first_difference(theirs: Sequence[str], ours: Sequence[str]) -> tuple[str, str]:
    """Describe two lists of classes by their lengths, or by the first class that differs."""
    if len(theirs) != len(ours):
        return f"{len(theirs)} classes", f"{len(ours)}"
    for number, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        if their != our:
            return f"class {number} is {their!r}", repr(our)
    return "", ""


logger = logging.getLogger("smallvit")


class Parts:
    """Parts of a split's score maps in one folder, each a whole file.

    A part is named by the position of its first image. A broken part, and all after it, are made
    again.

    Args:
        folder: Where they lie; it need not be there.
        identity: What they are of, by name: other parts are refused.
        num_classes: C.

    Raises:
        ConfigError: If the parts that are there are of something else.
    """

    def __init__(self, folder: Path, identity: dict[str, str], num_classes: int) -> None:
        self.folder = folder
        self.identity = identity
        self.num_classes = num_classes
        self.done = 0  # images
        self.wall_s = 0.0  # spent on them
        self._paths: list[Path] = []
        while (path := self._path(self.done)).is_file():
            try:
                tensors, header = read_tensors(path)
            except DataError as error:
                logger.warning("%s: made again from here", error)
                break
            changed = [key for key, value in identity.items() if header.get(key) != value]
            if changed:
                raise ConfigError(
                    f"{path} was written with other {' and '.join(changed)}: put them back, or "
                    "start a new run"
                )
            self._count(path, len(tensors["prob"]), header["wall_s"])

    def write(self, batches: list[ScoreMaps], wall_s: float) -> None:
        """Add one part, made of some batches.

        Raises:
            DataError: If it cannot be written; those before it are whole.
        """
        self.folder.mkdir(exist_ok=True)
        maps, path = ScoreMaps.join(batches), self._path(self.done)
        write_tensors(path, maps.tensors, {**self.identity, "wall_s": wall_s})
        self._count(path, len(maps.prob), wall_s)

    def join(self) -> ScoreMaps:
        """Return all of them as one."""
        parts = [read_tensors(path)[0] for path in self._paths]
        return ScoreMaps.join([ScoreMaps(**each, num_classes=self.num_classes) for each in parts])

    def remove(self) -> None:
        """Remove them all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:09d}.safetensors"

    def _count(self, path: Path, num: int, wall_s: float) -> None:
        self._paths.append(path)
        self.done += num
        self.wall_s += wall_s
