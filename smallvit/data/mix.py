"""CutMix and MixUp: each image takes a part of the image at the mirrored place of its batch.

Shapes in this file:
    B    images
    C    classes
    H W  image in pixels
    h w  token grid
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from smallvit.data.geometry import within

NUM_DRAWS = 5  # whether at all, which of the two, how much, and a place
QUANTILES = 1 << 16


def sample_mask(
    draws: Float[Tensor, "B 5"],
    *,
    cutmix_alpha: float,
    mixup_alpha: float,
    prob: float,
    size: tuple[int, int],
) -> Float[Tensor, "B 1 H W"]:
    """Turn uniform numbers into the part that each pixel takes from the partner.

    A box of ones is CutMix, an even value MixUp. Where both are on, each image has one of them
    with equal probability. Shares follow Beta(alpha, alpha), by 65,536 of its quantiles; the box
    has that share's area before it is cut at the border, as in torchvision.

    Args:
        draws: Uniform numbers in [0, 1).
        cutmix_alpha: Of CutMix; 0 turns it off.
        mixup_alpha: Of MixUp; 0 turns it off.
        prob: Probability that an image is mixed at all.
        size: Side of the images (H, W), in pixels.

    Source:
        Yun et al., 2019, CutMix, https://arxiv.org/abs/1905.04899, appendix A; Zhang et al., 2018,
        mixup, https://arxiv.org/abs/1710.09412. Both draw one share for a whole batch.
    """
    mixed = (draws[:, 0] < prob).float()
    use_box = draws[:, 1] < (0.5 if cutmix_alpha and mixup_alpha else float(cutmix_alpha > 0))
    share = torch.where(
        use_box,
        _beta(draws[:, 2], cutmix_alpha or 1.0),
        _beta(draws[:, 2], mixup_alpha or 1.0),
    )
    half = 0.5 * share.sqrt()
    inside = []
    for length, center in zip(size, draws[:, 3:].T, strict=True):
        middle, reach = (center * length).floor(), (half * length).floor()
        inside.append(within(length, middle - reach, middle + reach))
    box = inside[0][:, :, None] * inside[1][:, None]
    mask = torch.where(use_box[:, None, None], box, share[:, None, None])
    return (mask * mixed[:, None, None])[:, None]


def blend_partner(
    values: Float[Tensor, "B C H W"], mask: Float[Tensor, "B 1 H W"]
) -> Float[Tensor, "B C H W"]:
    """Take the masked part of the image at the mirrored place of the batch.

    The image in the middle of an odd batch is its own partner.
    """
    return torch.lerp(values, values.flip(0), mask)


def mask_on_grid(mask: Float[Tensor, "B 1 H W"], grid: tuple[int, int]) -> Float[Tensor, "B 1 h w"]:
    """Return the part of each cell that the partner covers, for mixing score maps alike."""
    return F.adaptive_avg_pool2d(mask, grid)


def _beta(draws: Float[Tensor, " B"], alpha: float) -> Float[Tensor, " B"]:
    if alpha == 1.0:
        return draws
    table = _beta_quantiles(alpha, draws.device)
    return table[(draws * QUANTILES).long()]


@lru_cache(maxsize=8)
def _beta_quantiles(alpha: float, device: torch.device) -> Float[Tensor, " quantiles"]:
    from scipy.special import betaincinv

    middle = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    return torch.from_numpy(betaincinv(alpha, alpha, middle.numpy())).float().to(device)
