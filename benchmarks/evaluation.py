"""Scoring a network: test accuracy and nearest neighbours, against a DataLoader of PIL images.

Both compute the top-1 accuracy of the classifier on the test images, and that of a weighted vote of
the 20 nearest training images by the network's features. Ours is what ``smallvit eval --knn`` does:
packed images in batches. The reference is the usual way: PIL images through torchvision's
evaluation transforms in a DataLoader with one worker a core, timm's model, and the vote as DINO's
evaluation has it, image by class, over chunks of the test images. The images lie in memory for
both: reading files is another claim (benchmarks/packing.py).

Both have the same weights, images, batch, threads and float32, and must score the same. They are
timed in turn, a figure is the median of the rounds; images are those of both splits. A small
network shows the data's share, gani_vit the network's own; ours in bfloat16 stands beside.

    python benchmarks/evaluation.py [--quick]

Shapes in this file:
    B    images of a batch
    N M  images of the bank, and of those that are scored
    D    embed dim
    H W  image in pixels
"""

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from claims import alternate, print_claims, state
from jaxtyping import Float, Int, UInt8
from labeling import AS_IT_IS, Numbered
from token_labeling import with_classes
from torch import Tensor, nn
from torch.utils.data import DataLoader
from views import make_images, packed

from smallvit.core.model_config import ModelConfig
from smallvit.data.dataset import Dataset, Split
from smallvit.data.views import eval_batches
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.evaluate.classify import classification_metrics, predict_logits
from smallvit.evaluate.config import NUM_NEIGHBORS, TEMPERATURE
from smallvit.evaluate.knn import extract_features, knn_top1
from smallvit.models.registry import create_backbone
from smallvit.models.tokens import AbstractBackbone
from smallvit.runs.monitor import EVAL_BATCH

MODELS = ("resnet8_small", "gani_vit")
NUM_CLASSES = 10


def score_ours(backbone: AbstractBackbone, dataset: Dataset, runtime: Runtime) -> list[float]:
    """Return top-1 accuracy and that of the neighbours' vote."""

    def batches(split: str) -> Any:
        return eval_batches(dataset, dataset.splits[split], EVAL_BATCH)

    logits = predict_logits(backbone, batches("test"), autocast=runtime.autocast)
    bank, test = (
        extract_features(backbone, batches(split), autocast=runtime.autocast)
        for split in ("labelled", "test")
    )
    return [
        classification_metrics(*logits)["top1"],
        knn_top1(*bank, *test, num_classes=NUM_CLASSES),
    ]


@torch.no_grad()
def score_reference(
    model: nn.Module, loaders: list[DataLoader[Any]], labels: list[Int[Tensor, " N"]]
) -> list[float]:
    """Return the same two accuracies, computed the usual way."""
    model.eval()
    correct = 0
    for images, numbers in loaders[1]:
        logits = model(images)
        correct += (logits.argmax(dim=1) == labels[1][numbers]).sum().item()
    bank, test = (
        torch.cat([read_features(model, images) for images, _ in loader]) for loader in loaders
    )
    vote = neighbours_vote(F.normalize(bank, dim=1), labels[0], F.normalize(test, dim=1), labels[1])
    return [correct / len(labels[1]), vote]


def read_features(model: Any, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
    """Return what the classifier reads."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def neighbours_vote(
    bank: Float[Tensor, "N D"],
    bank_labels: Int[Tensor, " N"],
    test: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
) -> float:
    """Let the nearest images vote, their weights spread over one-hot classes.

    Source:
        Caron et al., 2021, https://arxiv.org/abs/2104.14294, section 4.1; a hundred chunks of test
        images as in facebookresearch/dino, eval_knn.py, rendered anew.
    """
    correct, size = 0, max(1, len(test) // 100)
    for first in range(0, len(test), size):
        similarity, nearest = (test[first : first + size] @ bank.T).topk(NUM_NEIGHBORS, dim=1)
        one_hot = F.one_hot(bank_labels[nearest], NUM_CLASSES)
        votes = (one_hot * (similarity / TEMPERATURE).exp()[:, :, None]).sum(dim=1)
        correct += (votes.argmax(dim=1) == labels[first : first + size]).sum().item()
    return correct / len(test)


def make_data(pixels: UInt8[Tensor, "N 3 H W"], num_test: int) -> Dataset:
    """Pack made images, the last ones as test images."""
    dataset = with_classes(packed(pixels, torch.device("cpu")), NUM_CLASSES)
    split = dataset.splits["labelled"]
    parts = {"labelled": split.index[:-num_test], "test": split.index[-num_test:]}
    splits = {
        name: Split(images=split.images, labels=split.labels, index=index)
        for name, index in parts.items()
    }
    return replace(dataset, splits=splits)


def compare(
    name: str, pixels: UInt8[Tensor, "N 3 H W"], num_test: int, rounds: int
) -> dict[str, float]:
    """Time all ways in turn; return images a second of each.

    Args:
        name: The network.
        pixels: Images of both splits.
        num_test: Test images among them, the last ones.
        rounds: Rounds that count.
    """
    dataset = make_data(pixels, num_test)
    runtimes = {
        "ours": open_runtime(RuntimeConfig(device="cpu", precision="fp32")),
        "ours, bf16": open_runtime(RuntimeConfig(device="cpu", precision="bf16")),
    }
    torch.manual_seed(0)
    backbone = create_backbone(ModelConfig(name=name), num_classes=NUM_CLASSES, image_size=32)
    loaders = [
        DataLoader(
            Numbered(part, AS_IT_IS),
            EVAL_BATCH,
            num_workers=torch.get_num_threads(),
            persistent_workers=True,
        )
        for part in (pixels[:-num_test], pixels[-num_test:])
    ]
    splits = [dataset.splits[part] for part in ("labelled", "test")]
    labels = [split.labels[split.index] for split in splits]
    expected = score_reference(backbone.model, loaders, labels)  # starts the workers
    mine = score_ours(backbone, dataset, runtimes["ours"])
    # Images at a tie may fall either way by rounding.
    torch.testing.assert_close(mine, expected, rtol=0, atol=2.5 / num_test)

    def timed(ours: str | None) -> float:
        start = time.perf_counter()
        if ours is None:
            score_reference(backbone.model, loaders, labels)
        else:
            score_ours(backbone, dataset, runtimes[ours])
        return len(pixels) / (time.perf_counter() - start)

    ways = {way: lambda way=way: timed(way) for way in runtimes}
    found = alternate({**ways, "reference": lambda: timed(None)}, rounds)
    return {way: statistics.median(values) for way, values in found.items()}


def main() -> None:
    """Time both networks and print the claims as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one network, fewer images and rounds")
    quick = parser.parse_args().quick
    count, num_test, rounds = (512, 128, 1) if quick else (6144, 2048, 5)
    pixels = make_images(count)
    claims = []
    for name in MODELS[:1] if quick else MODELS:
        speeds = compare(name, pixels, num_test, rounds)
        print(
            f"{name}, {count:,} images of 32 px, {torch.get_num_threads()} threads, median of "
            f"{rounds} rounds; images/s: "
            + ", ".join(f"{way} {speed:,.0f}" for way, speed in speeds.items()),
            flush=True,
        )
        claim = f"test accuracy and k-NN of {name}, against PIL images in a DataLoader"
        for way, precision in (("ours", "float32"), ("ours, bf16", "bf16 against float32")):
            claims.append(
                state(f"{claim}, {precision}", speeds[way], speeds["reference"], "images/s")
            )
    print_claims(claims)


if __name__ == "__main__":
    main()
