"""Stage 2: a step of token labeling against the usual way of doing it, data included.

Both train the ViT of Gani et al. on the same made images and score maps (8 x 8 places, 200 classes,
5 of them listed), with the same weights, batch, threads, class token and patch token losses and
MixToken. Each image is padded and cropped, mirrored, put through CIFAR-10's AutoAugment and erased;
its score map is cropped and mirrored with it. CutMix and MixUp are off, as in the published code,
where MixToken takes their place.

Ours is the step of ``smallvit finetune --token-label`` in bfloat16 (``--runtime.precision bf16``),
and once more in float32. The reference renders the published code: PIL images one at a time in a
DataLoader with one worker a core, each with its own map and crop box; maps spread over all classes
in a Python loop over the images and cropped by roi_align; timm's own model with torch's default
attention, tokens mixed on the way in and their outputs back on the way out, soft targets as sums of
log-softmaxes, timm's AdamW, and the loss on the host at every step. It runs in float32, the default
of a CPU, and once in bfloat16. Its maps lie in memory, where the published code opens a file an
image: the faster way. Its loss must equal ours on a common batch.

All are timed in turn in one process, on the same threads; a figure is the median of the rounds.

    python benchmarks/finetune.py [--quick]

Shapes in this file:
    B    images
    C    classes
    D    embed dim
    N    patch tokens (N = h * w); of a data set, its images
    k    classes of a place that are listed
    h w  token grid
    H W  image in pixels
"""

import argparse
import math
import random
import statistics
import time
from dataclasses import replace
from typing import Literal

import timm
import torch
from claims import alternate, print_claims, state
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim._optim_factory import create_optimizer_v2
from token_labeling import CONFIG, IMAGE_SIZE, TOKEN_LABEL, Way, make_maps, with_classes
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms
from torchvision.ops import roi_align
from views import MEAN, STD, make_images, packed

from smallvit.core.model_config import ModelConfig
from smallvit.data.batches import LabeledBatch
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import open_runtime
from smallvit.models.registry import model_arguments
from smallvit.teachers.score_maps import ScoreMaps

MODEL = "gani_vit"
NUM_CLASSES, GRID = 200, 8
AUGMENT = replace(CONFIG.augment, policy="autoaugment-cifar10", cutmix_alpha=0.0, mixup_alpha=0.0)
BF16, FLOAT32 = "ours, bf16", "ours, float32"
REFERENCE, REFERENCE_BF16 = "reference, float32", "reference, bf16"
Precision = Literal["fp32", "bf16"]
PRECISIONS: dict[str, Precision] = {BF16: "bf16", FLOAT32: "fp32"}
REFERENCES: dict[str, Precision] = {REFERENCE: "fp32", REFERENCE_BF16: "bf16"}
Sample = tuple[Tensor, Tensor, Tensor, Tensor, int]


class PerImage(TorchDataset[Sample]):
    """PIL images, each cropped, mirrored and augmented together with its score map.

    Args:
        pixels: The images.
        maps: Their score maps.
    """

    def __init__(self, pixels: UInt8[Tensor, "N 3 H W"], maps: ScoreMaps) -> None:
        self.images = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
        self.maps = maps
        self.padding = round(AUGMENT.padding * IMAGE_SIZE)
        self.change = transforms.Compose(
            [
                transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                transforms.RandomErasing(AUGMENT.erasing_prob, (0.02, 0.4)),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Return image, listed probabilities and classes, the rest's share, crop box and label."""
        padded = ImageOps.expand(self.images[index], self.padding)
        left, top = (random.randint(0, 2 * self.padding) for _ in range(2))
        image = padded.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))
        box = torch.tensor([left, top, left, top]) - self.padding + torch.tensor([0, 0, 32, 32])
        listed = torch.stack([self.maps.prob[index].float(), self.maps.index[index].float()])
        rest = self.maps.rest[index].float() / (NUM_CLASSES - listed.shape[1])
        if random.random() < 0.5:
            image = ImageOps.mirror(image)
            listed, rest = listed.flip(-1), rest.flip(-1)
            box = torch.tensor([32 - box[2], box[1], 32 - box[0], box[3]])
        return (
            torch.as_tensor(self.change(image)),
            listed,
            rest,
            box / IMAGE_SIZE,
            index % NUM_CLASSES,
        )


def crop_maps(
    listed: Float[Tensor, "B 2 k h w"], rest: Float[Tensor, "B h w"], boxes: Float[Tensor, "B 4"]
) -> Float[Tensor, "B C h w"]:
    """Spread the listed classes over all, image by image, and crop each map.

    Args:
        listed: Probabilities, and the classes that they are of.
        rest: Probability of every other class.
        boxes: Crops as fractions of the image, (left, top, right, bottom).

    Source:
        zihangJiang/TokenLabeling@9dbfd59, tlt/data/mixup.py, rendered anew. There a second crop
        gives the class token's target, which is the image's label here.
    """
    dense = rest[:, None].repeat(1, NUM_CLASSES, 1, 1)
    for full, (values, classes) in zip(dense, listed, strict=True):
        full.scatter_(0, classes.long(), values)
    grid = listed.shape[-1]
    rows = torch.arange(len(boxes), dtype=boxes.dtype)[:, None]
    cropped = roi_align(dense, torch.cat([rows, boxes * grid], dim=1), grid, aligned=True)
    return cropped / cropped.sum(dim=1, keepdim=True)


class TokenLabelled(nn.Module):
    """The network of the reference: timm's ViT, a classifier of patch tokens, and MixToken.

    Source:
        zihangJiang/TokenLabeling@9dbfd59, tlt/models/lvvit.py:189-221, rendered anew.
    """

    def __init__(self) -> None:
        super().__init__()
        config = ModelConfig(name=MODEL)
        name, arguments = model_arguments(config, num_classes=NUM_CLASSES, image_size=IMAGE_SIZE)
        model = timm.create_model(name.removeprefix("timm/"), **arguments)
        assert isinstance(model, VisionTransformer)
        self.model = model
        self.token_head = nn.Linear(model.embed_dim, NUM_CLASSES)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], box: tuple[int, int, int, int]
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B N C"]]:
        """Return logits of images and tokens; ``box`` is (top, bottom, left, right), in tokens."""
        top, bottom, left, right = box
        patches = self.model.patch_embed(images)
        mixed = patches.clone()
        mixed[:, top:bottom, left:right] = patches.flip(0)[:, top:bottom, left:right]
        x = self.model.blocks(self.model.norm_pre(self.model._pos_embed(mixed)))
        x = self.model.norm(x)
        logits = self.model.head(self.model.fc_norm(x[:, 0]))
        tokens = self.token_head(x[:, 1:]).unflatten(1, (GRID, GRID))
        unmixed = tokens.clone()
        unmixed[:, top:bottom, left:right] = tokens.flip(0)[:, top:bottom, left:right]
        return logits, unmixed.flatten(1, 2)


class Reference:
    """Token labeling the usual way.

    Args:
        pixels: The images.
        maps: Their score maps.
        ours: Takes its weights.
        batch_size: Images of a step.
        steps: Steps of a round.
        precision: Of the forward pass.
    """

    def __init__(
        self,
        pixels: UInt8[Tensor, "N 3 H W"],
        maps: ScoreMaps,
        ours: Way,
        *,
        batch_size: int,
        steps: int,
        precision: Precision,
    ) -> None:
        data = PerImage(pixels, maps)
        # An iteration ends with the last step: nothing is made beside what is timed next.
        self.loader = DataLoader(
            data,
            batch_size,
            sampler=RandomSampler(data, num_samples=steps * batch_size),
            num_workers=torch.get_num_threads(),
            persistent_workers=True,
        )
        self.network = TokenLabelled().train()
        self.network.model.load_state_dict(ours.objective.student.model.state_dict())
        assert ours.objective.token_head is not None
        self.network.token_head.load_state_dict(ours.objective.token_head.state_dict())
        self.optimizer = create_optimizer_v2(
            self.network, opt="adamw", lr=CONFIG.optim.lr, weight_decay=CONFIG.optim.weight_decay
        )
        self.criterion = SoftTargetCrossEntropy()
        self.precision = precision

    def loss(
        self,
        images: Float[Tensor, "B 3 H W"],
        labels: Int[Tensor, " B"],
        maps: Float[Tensor, "B C h w"],
        box: tuple[int, int, int, int],
    ) -> Float[Tensor, ""]:
        """Return the loss of class token and patch tokens."""
        smoothing = CONFIG.method.label_smoothing
        target = torch.full((len(labels), NUM_CLASSES), smoothing / NUM_CLASSES)
        target.scatter_(1, labels[:, None], 1 - smoothing + smoothing / NUM_CLASSES)
        top, bottom, left, right = box
        share = (bottom - top) * (right - left) / GRID**2
        target = (1 - share) * target + share * target.flip(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            logits, tokens = self.network(images, box)
        per_token = maps.flatten(2).transpose(1, 2).reshape(-1, NUM_CLASSES)
        loss = self.criterion(logits.float(), target)
        of_tokens = self.criterion(tokens.float().reshape(-1, NUM_CLASSES), per_token)
        return loss + TOKEN_LABEL.token_weight * of_tokens

    def run(self) -> float:
        """Take the steps of a round; return the seconds."""
        start = time.perf_counter()
        for images, listed, rest, boxes, labels in self.loader:
            maps = crop_maps(listed, rest, boxes)
            loss = self.loss(images, labels, maps, sample_box())
            if not math.isfinite(loss.item()):
                raise FloatingPointError("the loss of the reference is not finite")
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), CONFIG.optim.grad_clip_norm or 1e9)
            self.optimizer.step()
        return time.perf_counter() - start


def sample_box() -> tuple[int, int, int, int]:
    """Draw the box of MixToken, its area uniform."""
    side = round(GRID * math.sqrt(random.random()))
    sides = []
    for _ in range(2):
        start = random.randrange(GRID) - side // 2
        sides += [max(start, 0), min(start + side, GRID)]
    return sides[0], sides[1], sides[2], sides[3]


def check_same_work(ours: Way, reference: Reference) -> None:
    """Assert that both compute the same loss from the same weights, images, maps and box."""
    batch: LabeledBatch = ours.batches(ours.step)
    box = batch.mix_box
    assert box is not None
    assert batch.score_maps is not None
    torch.manual_seed(0)
    mine = ours.objective(batch).loss
    torch.manual_seed(0)
    sides = (box.top, box.bottom, box.left, box.right)
    other = reference.loss(batch.images, batch.labels, batch.score_maps, sides)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=0)
    print(f"both compute a loss of {mine.item():.5f} from the same weights, images and score maps")


def compare(count: int, batch_size: int, steps: int, rounds: int) -> dict[str, float]:
    """Time all ways in turn; return images a second of each.

    Args:
        count: Images of the data set.
        batch_size: Images of a step.
        steps: Steps of a round.
        rounds: Rounds that count.
    """
    pixels = make_images(count)
    maps = make_maps(count, NUM_CLASSES, GRID)
    ours: dict[str, Way] = {}
    for name, precision in PRECISIONS.items():
        runtime = open_runtime(RuntimeConfig(device="cpu", precision=precision))
        dataset = with_classes(packed(pixels, runtime.device), NUM_CLASSES)
        ours[name] = Way(dataset, MODEL, batch_size, GRID, runtime, AUGMENT)
    references = {
        name: Reference(
            pixels,
            maps,
            ours[FLOAT32],
            batch_size=batch_size,
            steps=steps,
            precision=precision,
        )
        for name, precision in REFERENCES.items()
    }
    check_same_work(ours[FLOAT32], references[REFERENCE])
    ways = {name: lambda way=way: way.train(steps) for name, way in ours.items()}
    ways |= {name: way.run for name, way in references.items()}
    seconds = alternate(ways, rounds)
    return {name: steps * batch_size / statistics.median(s) for name, s in seconds.items()}


def main() -> None:
    """Time all ways and print the claims as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller batches, fewer rounds")
    quick = parser.parse_args().quick
    count, batch_size, steps, rounds = (
        (256, 32, 2, 1) if quick else (2048, CONFIG.optim.batch_size, 4, 5)
    )
    speeds = compare(count, batch_size, steps, rounds)
    print(
        f"images/s with {torch.get_num_threads()} threads, batches of {batch_size}, median of "
        f"{rounds} rounds of {steps} steps: "
        + ", ".join(f"{name} {speed:,.1f}" for name, speed in speeds.items())
    )
    claim = f"stage 2 of {MODEL} with token labels, data included"
    claims = {
        f"{claim}: ours in bf16 against the published way in float32": (BF16, REFERENCE),
        f"{claim}: both in float32": (FLOAT32, REFERENCE),
        f"{claim}: both in bf16": (BF16, REFERENCE_BF16),
    }
    print_claims(
        [
            state(text, speeds[ours], speeds[reference], "images/s")
            for text, (ours, reference) in claims.items()
        ]
    )


if __name__ == "__main__":
    main()
