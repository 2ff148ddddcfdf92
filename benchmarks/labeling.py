"""Score maps of a training split: one file made in batches, against one file an image.

Ours is what ``smallvit label`` does between reading the data and checking the file: packed images
normalised in batches, the teacher, its likeliest classes, and one safetensors file. The reference
is the usual way: PIL images through torchvision's evaluation transforms in a DataLoader with one
worker a core, the classifier as a 1 x 1 convolution over the last feature map, and one file an
image. The plain reference runs the network in batches, as the published code of token labeling
does; a second one looks at one augmented copy at a time, as labels made in a training loop do.

All have the same network, weights, images, threads and float32; the maps must be the same. They are
timed in turn, a figure is the median of the rounds. Ours in bfloat16 is the third claim.

    python benchmarks/labeling.py [--quick]

Shapes in this file:
    B    images of a batch
    C    classes
    N    images of the data set
    H W  image in pixels
    h w  the teacher's grid
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from claims import alternate, print_claims, state
from jaxtyping import Float, UInt8
from PIL import Image
from token_labeling import with_classes
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms
from views import MEAN, STD, make_images, packed

from smallvit.core.model_config import ModelConfig
from smallvit.data.dataset import Dataset
from smallvit.data.views import eval_batches
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.models.registry import create_backbone
from smallvit.runs.config import LabelConfig
from smallvit.teachers.score_maps import ScoreMapHeader, ScoreMaps, write_score_maps
from smallvit.teachers.teacher import Teacher

MODEL = "resnet20_small"
NUM_CLASSES, TOP_K = 100, 5
BATCH = LabelConfig().batch_size
AS_IT_IS = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
AUGMENTED = transforms.Compose(
    [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), *AS_IT_IS.transforms]
)


class Numbered(TorchDataset[tuple[Tensor, int]]):
    """PIL images, transformed, each with its number."""

    def __init__(self, pixels: UInt8[Tensor, "N 3 H W"], change: Callable[..., Tensor]) -> None:
        self.images = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
        self.change = change

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(self.images[index]), index


class DenseHead(nn.Module):
    """A residual network with its classifier at every place of the last feature map."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.network = teacher.backbone.model
        classifier: nn.Linear = self.network.get_classifier()  # pyright: ignore
        self.classify = nn.Conv2d(classifier.in_features, classifier.out_features, 1)
        with torch.no_grad():
            self.classify.weight.copy_(classifier.weight[:, :, None, None])
            self.classify.bias.copy_(classifier.bias)  # pyright: ignore

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Return probabilities at every place."""
        return F.softmax(self.classify(self.network.forward_features(images)), dim=1)


def label_ours(teacher: Teacher, dataset: Dataset, runtime: Runtime, folder: Path) -> ScoreMaps:
    """Label a split in batches and write one file."""
    parts = []
    for images, _ in eval_batches(dataset, dataset.splits["labelled"], BATCH):
        with runtime.autocast():
            parts.append(ScoreMaps.from_batch(teacher(images), TOP_K))
    maps = ScoreMaps.join(parts)
    header = ScoreMapHeader(
        dataset=dataset.name,
        fingerprint="",
        split_hash="",
        class_names=dataset.class_names,
        grid=(maps.prob.shape[2], maps.prob.shape[3]),
        image_size=dataset.image_size,
        teacher=MODEL,
        teacher_hash="",
        teacher_train_top1=0.0,
        teacher_val_top1=0.0,
        extra_data="none",
    )
    write_score_maps(folder / "score_maps.safetensors", maps, header)
    return maps


@torch.no_grad()
def label_reference(
    network: nn.Module, loader: DataLoader[tuple[Tensor, int]], folder: Path
) -> None:
    """Label the usual way: the likeliest classes of each image in a file of its own.

    Source:
        zihangJiang/TokenLabeling@bd50ea5, generate_label.py:237-252, rendered anew.
    """
    for images, numbers in loader:
        value, index = network(images).topk(TOP_K, dim=1)
        for i, number in enumerate(numbers):
            torch.save(torch.stack([value[i].half(), index[i].half()]), folder / f"{number}.pt")


def check_same_maps(maps: ScoreMaps, folder: Path, numbers: Sequence[int]) -> None:
    """Assert that the files of the reference hold what ours hold."""
    for number in numbers:
        value, _ = torch.load(folder / f"{number}.pt")
        torch.testing.assert_close(value, maps.prob[number], rtol=2e-3, atol=1e-4)


def create_teacher() -> Teacher:
    """Build the default annotator with weights that do not depend on anything."""
    torch.manual_seed(0)
    config = ModelConfig(name=MODEL)
    return Teacher(create_backbone(config, num_classes=NUM_CLASSES, image_size=32))


def compare(pixels: UInt8[Tensor, "N 3 H W"], single: int, rounds: int) -> dict[str, list[float]]:
    """Time all ways in turn; return images a second of each round.

    Args:
        pixels: The images.
        single: Images that the reference which takes one at a time labels in a round.
        rounds: Rounds that count.
    """
    fp32 = open_runtime(RuntimeConfig(device="cpu", precision="fp32"))
    bf16 = open_runtime(RuntimeConfig(device="cpu", precision="bf16"))
    dataset = with_classes(packed(pixels, fp32.device), NUM_CLASSES)
    teacher = create_teacher()
    network = DenseHead(teacher).eval()
    workers = torch.get_num_threads()
    batched = DataLoader(
        Numbered(pixels, AS_IT_IS), BATCH, num_workers=workers, persistent_workers=True
    )
    one_by_one = DataLoader(
        Numbered(pixels[:single], AUGMENTED), 1, num_workers=workers, persistent_workers=True
    )

    def timed(work: Callable[[Path], object], count: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            work(Path(folder))
            return count / (time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        maps = label_ours(teacher, dataset, fp32, Path(folder))
        label_reference(network, batched, Path(folder))  # starts the workers
        check_same_maps(maps, Path(folder), range(0, len(pixels), 37))
    return alternate(
        {
            "ours": lambda: timed(
                lambda folder: label_ours(teacher, dataset, fp32, folder), len(pixels)
            ),
            "ours, bf16": lambda: timed(
                lambda folder: label_ours(teacher, dataset, bf16, folder), len(pixels)
            ),
            "batches": lambda: timed(
                lambda folder: label_reference(network, batched, folder), len(pixels)
            ),
            "one at a time": lambda: timed(
                lambda folder: label_reference(network, one_by_one, folder), single
            ),
        },
        rounds,
    )


def main() -> None:
    """Time all ways and print the claims as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    quick = parser.parse_args().quick
    count, single, rounds = (512, 64, 1) if quick else (4096, 512, 5)
    found = compare(make_images(count), single, rounds)
    speeds = {name: statistics.median(values) for name, values in found.items()}
    print(
        f"{count:,} images of 32 px by {MODEL}, {NUM_CLASSES} classes, {torch.get_num_threads()} "
        f"threads, median of {rounds} rounds; images/s: "
        + ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
    )
    claims = {
        ("ours", "batches"): "one file, against PIL images in a DataLoader and one file an image",
        ("ours", "one at a time"): "one file, against one augmented image at a time",
        ("ours, bf16", "batches"): "one file in bf16, against a DataLoader and one file an image "
        "in float32",
    }
    print_claims(
        [
            state(
                f"score maps of a training split by {MODEL}: {claim}",
                speeds[ours],
                speeds[reference],
                "images/s",
            )
            for (ours, reference), claim in claims.items()
        ]
    )


if __name__ == "__main__":
    main()
