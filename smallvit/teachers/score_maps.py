"""Score maps in one file: the teacher's top-k probabilities of every training image.

Shapes in this file:
    N    images, in the order of the labelled training split
    B    images of a batch
    C    classes
    k    listed classes a place
    h w  the teacher's grid
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float16, Int, Int32
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from smallvit.core.errors import DataError
from smallvit.data.loader import Dataset

FORMAT_VERSION = 1


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
        parts, num_classes = [], 0
        for dense in batches:
            num_classes = dense.shape[1]
            prob, index = dense.topk(min(top_k, num_classes), dim=1)
            rest = (1 - prob.sum(dim=1)).clamp(min=0)
            parts.append((prob.half().cpu(), index.int().cpu(), rest.half().cpu()))
        prob, index, rest = (torch.cat(part) for part in zip(*parts, strict=True))
        return cls(prob=prob, index=index, rest=rest, num_classes=num_classes)

    def to(self, device: torch.device) -> "ScoreMaps":
        """Put the maps on a device."""
        return ScoreMaps(
            prob=self.prob.to(device),
            index=self.index.to(device),
            rest=self.rest.to(device),
            num_classes=self.num_classes,
        )

    def dense(self, position: Int[Tensor, " B"]) -> Float[Tensor, "B C h w"]:
        """Return full distributions of the images at ``position`` in the split.

        The channel axis sums to 1 exactly, whatever float16 lost.
        """
        prob, index = self.prob[position].float(), self.index[position].long()
        listed = prob.shape[1]
        unlisted = max(self.num_classes - listed, 1)
        shape = (len(position), self.num_classes, *prob.shape[2:])
        share = (self.rest[position].float() / unlisted)[:, None].expand(shape)
        dense = share.scatter(1, index, prob)
        return dense / dense.sum(dim=1, keepdim=True)


def write_score_maps(path: Path, maps: ScoreMaps, header: ScoreMapHeader) -> None:
    """Write maps and header to one safetensors file, whole or not at all."""
    metadata = {key: json.dumps(value) for key, value in asdict(header).items()}
    partial = path.with_suffix(".part")
    tensors = {"prob": maps.prob, "index": maps.index, "rest": maps.rest}
    try:
        save_file({name: t.contiguous() for name, t in tensors.items()}, partial, metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_score_maps(path: Path) -> tuple[ScoreMaps, ScoreMapHeader]:
    """Read a file of score maps.

    Raises:
        DataError: If it is missing, cut short, of another format, or holds no distributions.
    """
    if not path.is_file():
        raise DataError(f"no score maps at {path}: write them with smallvit label")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in ("prob", "index", "rest")}
        metadata |= {key: tuple(metadata[key]) for key in ("class_names", "grid")}
        header = ScoreMapHeader(**metadata)
        maps = ScoreMaps(**tensors, num_classes=len(header.class_names))
    except (SafetensorError, ValueError, TypeError, KeyError, OSError) as error:
        raise DataError(
            f"{path} is no whole file of score maps ({type(error).__name__}): write it again with "
            "smallvit label"
        ) from error
    if header.version != FORMAT_VERSION:
        raise DataError(f"{path} has format {header.version}; this version reads {FORMAT_VERSION}")
    total = maps.prob.float().sum(dim=1) + maps.rest.float()
    fine = ((total - 1).abs() < 0.01) & (maps.prob >= 0).all(dim=1) & (maps.rest >= 0)
    if not bool(fine.all()):
        raise DataError(f"{path} holds values that are no probabilities: write it again")
    if bool((maps.index < 0).any()) or bool((maps.index >= maps.num_classes).any()):
        raise DataError(f"{path} lists classes outside 0 to {maps.num_classes - 1}: write it again")
    return maps, header


def open_score_maps(path: Path, dataset: Dataset) -> tuple[ScoreMaps, ScoreMapHeader]:
    """Read a file of score maps and check that it was written for this data.

    Raises:
        DataError: If it is missing, broken or of other data.
    """
    maps, header = read_score_maps(path)
    check_score_maps(
        path,
        maps,
        header,
        fingerprint=dataset.fingerprint,
        split_hash=dataset.split_hashes["labelled"],
        class_names=dataset.class_names,
        count=len(dataset.splits["labelled"]),
    )
    return maps, header


def check_score_maps(
    path: Path,
    maps: ScoreMaps,
    header: ScoreMapHeader,
    *,
    fingerprint: str,
    split_hash: str,
    class_names: tuple[str, ...],
    count: int,
) -> None:
    """Refuse maps of other data, another split or order, or other classes.

    Raises:
        DataError: Naming what differs.
    """
    differences = {
        "classes": (header.class_names, class_names),
        "images": (header.fingerprint[:12], fingerprint[:12]),
        "training split": (header.split_hash[:12], split_hash[:12]),
        "number of images": (len(maps.prob), count),
    }
    for what, (theirs, ours) in differences.items():
        if theirs != ours:
            raise DataError(
                f"{path} was written for other {what} ({theirs}, here {ours}): write maps of this "
                "data and split with smallvit label"
            )
