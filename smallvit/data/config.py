"""Settings of views and augmentation; nothing here imports torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError

AutoAugmentPolicy = Literal["cifar10", "svhn", "imagenet"]  # the datasets they were learned on
Policy = Literal[
    "none",
    "autoaugment",
    "autoaugment-cifar10",
    "autoaugment-svhn",
    "autoaugment-imagenet",
    "randaugment",
    "trivialaugment",
    "3-augment",
]
AutoAugmentRules = Literal["torchvision", "deepvoltaire"]
ErasingAspect = Literal["log-uniform", "uniform"]
Fraction = Annotated[float, Range(ge=0, le=1)]
# Of brightness, contrast, saturation and hue.
Jitter = tuple[Fraction, Fraction, Fraction, Annotated[float, Range(ge=0, le=0.5)]]


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """The views of stage 1; the defaults are those of Gani et al. for images of 32 pixels.

    Attributes:
        num_global: Large views.
        num_local: Small views beside the large ones.
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

    num_global: Annotated[int, Range(ge=1, le=2)] = 2
    num_local: Annotated[int, Range(ge=0, le=32)] = 8
    local_size: Annotated[float, Range(gt=0, le=1)] = 0.5
    global_scale: tuple[Fraction, Fraction] = (0.7, 1.0)
    local_scale: tuple[Fraction, Fraction] = (0.2, 0.5)
    ratio: Annotated[tuple[float, float], Range(gt=0)] = (0.75, 4 / 3)
    color_jitter: Jitter = (0.4, 0.4, 0.2, 0.1)
    color_jitter_prob: Fraction = 0.8
    grey_prob: Fraction = 0.2
    blur_prob: tuple[Fraction, Fraction, Fraction] = (1.0, 0.1, 0.5)
    blur_sigma: Annotated[tuple[float, float], Range(gt=0)] = (0.1, 2.0)
    solarize_prob: Fraction = 0.2

    def __post_init__(self) -> None:
        for name in ("global_scale", "local_scale", "ratio", "blur_sigma"):
            check_bounds(f"method.views.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What stage 2 does to an image before the network sees it.

    Attributes:
        crop: Pad and crop at the same size, random resized crop, or the image as it is.
        padding: Padding of ``pad`` as a fraction of the side; 0.125 is 4 pixels at 32.
        scale: Area of a resized crop as a fraction of the image's.
        ratio: Aspect ratio of a resized crop, width over height.
        policy: Augmentation policy; ``autoaugment`` takes the one learned on the dataset, or
            ImageNet's where there is none.
        autoaugment_rules: How AutoAugment's operations are done: as torchvision does, or as the
            code of DeepVoltaire that the papers on small data use.
        randaugment_ops: Operations an image, of RandAugment.
        randaugment_magnitude: Their magnitude, of RandAugment, from 0 to 30.
        color_jitter: Strength of brightness, contrast, saturation and hue.
        erasing_prob: Probability of erasing a rectangle of each image.
        erasing_aspect: Whether its height over width is uniform or its logarithm.
        cutmix_alpha: Shares of CutMix follow Beta(alpha, alpha); 0 turns it off.
        mixup_alpha: Shares of MixUp follow Beta(alpha, alpha); 0 turns it off.
        mix_prob: Probability that an image is mixed, by either.
        repeats: How often each image comes in a row, each time augmented anew. An epoch has as many
            samples as before, and so shows only one in ``repeats`` of the images.
    """

    crop: Literal["pad", "resized", "none"] = "pad"
    padding: Annotated[float, Range(gt=0, le=0.5)] = 0.125
    scale: tuple[Fraction, Fraction] = (0.35, 1.0)
    ratio: Annotated[tuple[float, float], Range(gt=0)] = (0.75, 4 / 3)
    policy: Policy = "none"
    autoaugment_rules: AutoAugmentRules = "torchvision"
    randaugment_ops: Annotated[int, Range(ge=1, le=8)] = 2
    randaugment_magnitude: Annotated[int, Range(ge=0, le=30)] = 9
    color_jitter: Jitter = (0.0, 0.0, 0.0, 0.0)
    erasing_prob: Fraction = 0.0
    erasing_aspect: ErasingAspect = "log-uniform"
    cutmix_alpha: Annotated[float, Range(ge=0)] = 0.0
    mixup_alpha: Annotated[float, Range(ge=0)] = 0.0
    mix_prob: Fraction = 1.0
    repeats: Annotated[int, Range(ge=1, le=16)] = 1

    def __post_init__(self) -> None:
        check_bounds("augment.scale", self.scale)
        check_bounds("augment.ratio", self.ratio)


def check_bounds(name: str, bounds: tuple[float, float]) -> None:
    """Refuse a pair whose lower bound is not below or at its upper one, or is 0.

    Raises:
        ConfigError: With the name and the value.
    """
    if not 0 < bounds[0] <= bounds[1]:
        raise ConfigError(f"{name} must be (low, high) with 0 < low <= high, got {bounds}")
