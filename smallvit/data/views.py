"""Views made on the device: several of one image for stage 1, image with score map for stage 2.

Shapes in this file:
    V    views of one image
    B    images
    C    classes
    H W  image or view in pixels
    h w  token grid
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.core import rng
from smallvit.core.config import Range
from smallvit.data import augment, geometry
from smallvit.data.augment import AugmentConfig, Fraction, check_bounds
from smallvit.data.batches import LabelledBatch, TokenBox, ViewBatch
from smallvit.data.loader import Dataset, Draw, Order, Split, channel_tensors

ScoreMapReader = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """The views of stage 1; the defaults are those of Gani et al. for images of 32 pixels.

    Attributes:
        num_local: Small views beside the two large ones.
        local_size: Side of a small view as a fraction of the image's.
        global_scale: Area of a large view's crop as a fraction of the image's.
        local_scale: Area of a small view's crop.
        ratio: Aspect ratio of every crop, width over height.
        color_jitter: Strength of brightness, contrast, saturation and hue.
        color_jitter_prob: Probability that colours are changed.
        grey_prob: Probability that colours are dropped.
        blur_prob: Probability of blur in the first large view, the second, and small views.
        blur_sigma: Bounds of the blur's standard deviation, in pixels.
        solarize_prob: Probability of solarizing the second large view.

    Source:
        Gani et al., 2022, https://arxiv.org/abs/2210.07240, training code of
        hananshafi/vits-for-small-scale-datasets@43a7493.
    """

    num_local: Annotated[int, Range(ge=0, le=32)] = 8
    local_size: Annotated[float, Range(gt=0, le=1)] = 0.5
    global_scale: tuple[Fraction, Fraction] = (0.7, 1.0)
    local_scale: tuple[Fraction, Fraction] = (0.2, 0.5)
    ratio: Annotated[tuple[float, float], Range(gt=0)] = (0.75, 4 / 3)
    color_jitter: tuple[Fraction, Fraction, Fraction, Annotated[float, Range(ge=0, le=0.5)]] = (
        0.4,
        0.4,
        0.2,
        0.1,
    )
    color_jitter_prob: Fraction = 0.8
    grey_prob: Fraction = 0.2
    blur_prob: tuple[Fraction, Fraction, Fraction] = (1.0, 0.1, 0.5)
    blur_sigma: Annotated[tuple[float, float], Range(gt=0)] = (0.1, 2.0)
    solarize_prob: Fraction = 0.2

    def __post_init__(self) -> None:
        for name in ("global_scale", "local_scale", "ratio", "blur_sigma"):
            check_bounds(f"method.views.{name}", getattr(self, name))


class ViewBatches:
    """Stage-1 batches by step: a step's views depend on nothing but the seed and the step.

    Args:
        dataset: On the training device.
        order: Which samples each step takes.
        config: The views.
        total_steps: Steps of the whole run.
    """

    def __init__(
        self, dataset: Dataset, order: Order, config: ViewsConfig, total_steps: int
    ) -> None:
        self.dataset = dataset
        self.split = dataset.splits["train"]
        self.order = order
        self.config = config
        self.total_steps = total_steps
        self.mean, self.std = channel_tensors(dataset, order.device)

    def __call__(self, step: int) -> ViewBatch:
        """Make the views of one step."""
        draw = self.order.draw(step)
        images = augment.to_float(self.split.images[self.split.index[draw.position]])
        views = [self._view(images, draw, number) for number in range(2 + self.config.num_local)]
        return ViewBatch(
            global_views=torch.stack(views[:2]),
            local_views=torch.stack(views[2:]) if self.config.num_local else None,
            epoch=step * self.order.batch_size / self.order.size,
            progress=step / self.total_steps,
        )

    def _view(
        self, images: Float[Tensor, "B 3 H W"], draw: Draw, number: int
    ) -> Float[Tensor, "B 3 h w"]:
        config, is_global = self.config, number < 2
        draws = rng.uniform(self.order.seed, f"view/{number}", draw.epoch, draw.position, 5 + 5 + 4)
        crop = geometry.sample_resized_crop(
            draws[:, :5],
            scale=config.global_scale if is_global else config.local_scale,
            ratio=config.ratio,
            hflip=self.dataset.hflip,
        )
        side = self.dataset.image_size
        side = side if is_global else round(side * config.local_size)
        view = geometry.resample(images, crop, (side, side), kernel="bicubic", fill="zero")
        view = augment.jitter_color(
            view.clamp(0, 1),
            draws[:, 5:10],
            strength=config.color_jitter,
            prob=config.color_jitter_prob,
        )
        view = augment.drop_color(view, draws[:, 10] < config.grey_prob)
        low, high = config.blur_sigma
        blurred = draws[:, 11] < config.blur_prob[min(number, 2)]
        view = augment.blur(view, low + (high - low) * draws[:, 12], blurred)
        if number == 1:
            view = augment.solarize(view, draws[:, 13] < config.solarize_prob)
        return augment.normalise(view, self.mean, self.std)


class LabelledBatches:
    """Stage-2 batches by step: augmented images, labels and, where given, score maps.

    Args:
        dataset: On the training device.
        order: Which samples each step takes.
        config: The augmentation.
        score_maps: Returns the teacher's maps (B, C, h, w) of samples by their place in the
            labelled split, or ``None``.
        grid: Student's token grid, which the maps are cropped to.
        mix_token: Whether a box of tokens is taken from another image in every step.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        config: AugmentConfig,
        *,
        score_maps: ScoreMapReader | None = None,
        grid: tuple[int, int] = (1, 1),
        mix_token: bool = False,
    ) -> None:
        self.dataset = dataset
        self.split = dataset.splits["labelled"]
        self.order = order
        self.config = config
        self.score_maps = score_maps
        self.grid = grid
        self.mix_token = mix_token
        self.mean, self.std = channel_tensors(dataset, order.device)

    def __call__(self, step: int) -> LabelledBatch:
        """Make the batch of one step."""
        draw = self.order.draw(step)
        place = self.split.index[draw.position]
        images = augment.to_float(self.split.images[place])
        draws = rng.uniform(self.order.seed, "augment", draw.epoch, draw.position, 5 + 5 + 5)
        config, side = self.config, self.dataset.image_size
        where = self._geometry(draws[:, :5], len(place), side)
        if config.crop != "none" or self.dataset.hflip:
            images = geometry.resample(images, where, (side, side), kernel="bicubic", fill="zero")
            images = images.clamp(0, 1)
        images = augment.jitter_color(
            images, draws[:, 5:10], strength=config.color_jitter, prob=1.0
        )
        images = augment.normalise(images, self.mean, self.std)
        images = augment.erase(images, draws[:, 10:15], prob=config.erasing_prob)
        maps = None
        if self.score_maps is not None:
            maps = geometry.resample(
                self.score_maps(draw.position), where, self.grid, kernel="bilinear", fill="edge"
            )
        return LabelledBatch(
            images=images,
            labels=self.split.labels[place],
            score_maps=maps,
            mix_box=sample_token_box(self.order.seed, step, self.grid) if self.mix_token else None,
        )

    def _geometry(
        self, draws: Float[Tensor, "B 5"], batch_size: int, side: int
    ) -> geometry.Geometry:
        config, hflip = self.config, self.dataset.hflip
        if config.crop == "resized":
            return geometry.sample_resized_crop(
                draws, scale=config.scale, ratio=config.ratio, hflip=hflip
            )
        padding = round(config.padding * side) if config.crop == "pad" else 0
        return geometry.sample_padded_crop(
            draws[:, [0, 1, 4]], padding_px=padding, image_size=side, hflip=hflip
        )


def sample_token_box(seed: int, step: int, grid: tuple[int, int]) -> TokenBox:
    """Sample MixToken's box of one step on the host: its area is uniform, as with CutMix.

    Source:
        Yun et al., 2019, CutMix, https://arxiv.org/abs/1905.04899; Beta(1, 1) is uniform. The box
        is clipped at the border, so its true area may be smaller than the one drawn.
    """
    area, y, x = rng.scalar(seed, "mix_token", step, 3)
    sides = []
    for place, size in ((y, grid[0]), (x, grid[1])):
        length, centre = round(size * area**0.5), int(place * size)
        start = centre - length // 2
        sides.append((max(start, 0), min(start + length, size)))
    (top, bottom), (left, right) = sides
    return TokenBox(top=top, left=left, bottom=bottom, right=right)


def eval_batches(
    dataset: Dataset, split: Split, batch_size: int
) -> Iterator[tuple[Float[Tensor, "B 3 H W"], Int[Tensor, " B"]]]:
    """Walk a split once, in order, without augmentation; the last batch may be smaller."""
    mean, std = channel_tensors(dataset, split.images.device)
    for place in split.index.split(batch_size):
        images = augment.normalise(augment.to_float(split.images[place]), mean, std)
        yield images, split.labels[place]
