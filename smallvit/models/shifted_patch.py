"""Shifted patch tokenization: patches that also see half a patch beyond their edges.

Shapes in this file:
    B    images
    N    patch tokens, row-major over the token grid (N = h * w)
    D    embed dim
    P    numbers in the shifted patches of one token (P = 5 * patch_size ** 2 * c)
    c    colours, or channels of a feature map
    H W  image in pixels, or feature map
    h w  token grid

Source:
    Lee et al., 2021, Vision Transformer for Small-Size Datasets,
    https://arxiv.org/abs/2112.13492, section 3.1; aanna0701/SPT_LSA_ViT@54bd796,
    models/SPT.py.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn


def shifted_patches(x: Float[Tensor, "B H W c"], patch_size: int) -> Float[Tensor, "B h w P"]:
    """Cut a map, and the map moved along its four diagonals, into patches.

    The map moves by half a patch, rounded down, and zeros follow it, so each token sees twice the
    height and width of its patch.

    Args:
        x: Images or features, channels last; both sides are multiples of the patch.
        patch_size: Side of a patch.

    Returns:
        Each patch by row, column, move (none; down-right; down-left; up-right; up-left), channel.
    """
    shift, (height, width) = patch_size // 2, x.shape[1:3]
    padded = F.pad(x, (0, 0, shift, shift, shift, shift))
    corners = [(1, 1), (0, 0), (0, 2), (2, 0), (2, 2)]  # of each view, in shifts
    moved = [
        padded[:, shift * top : shift * top + height, shift * left : shift * left + width]
        .unflatten(2, (-1, patch_size))
        .unflatten(1, (-1, patch_size))
        .transpose(2, 3)  # (B, h, p, w, p, c) -> (B, h, w, p, p, c)
        for top, left in corners
    ]
    # The views are copied here for the first time.
    return torch.stack(moved, dim=-2).flatten(3)


class ShiftedPatchProjection(nn.Module):
    """Norm and projection of ``shifted_patches``, in the place of a patch embedding's convolution.

    Args:
        patch_size: Pixels of a patch.
        embed_dim: D.
        in_chans: Colours.
    """

    def __init__(self, *, patch_size: int, embed_dim: int, in_chans: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        num_inputs = 5 * in_chans * patch_size**2
        self.norm = nn.LayerNorm(num_inputs)
        self.linear = nn.Linear(num_inputs, embed_dim)

    def forward(self, images: Float[Tensor, "B c H W"]) -> Float[Tensor, "B D h w"]:
        """Embed the patches."""
        x = shifted_patches(images.movedim(1, -1), self.patch_size)
        return self.linear(self.norm(x)).movedim(-1, 1)


class ShiftedPatchMerging(nn.Module):
    """Shifted patch tokenization of features, in the place of Swin's patch merging.

    Args:
        in_chans: Channels of the features.
        embed_dim: D.
    """

    def __init__(self, *, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(20 * in_chans)
        self.reduction = nn.Linear(20 * in_chans, embed_dim)

    def forward(self, x: Float[Tensor, "B H W c"]) -> Float[Tensor, "B h w D"]:
        """Merge cells two by two; odd sides are padded with zeros, as timm does."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        return self.reduction(self.norm(shifted_patches(x, 2)))


def create_patch_embed(
    *,
    img_size: tuple[int, int],
    patch_size: int,
    embed_dim: int,
    in_chans: int = 3,
    output_fmt: Literal["NHWC", "NLC"] = "NHWC",
    shifted: bool = True,
) -> PatchEmbed:
    """Build timm's patch embedding for any size that the patch divides.

    Args:
        img_size: Height and width that the model is made for, in pixels.
        patch_size: Pixels of a patch.
        embed_dim: D.
        in_chans: Colours.
        output_fmt: Whether to give the token grid (B, h, w, D) or rows of tokens (B, N, D).
        shifted: Whether patches see half a patch beyond their edges.
    """
    patch_embed = PatchEmbed(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        embed_dim=embed_dim,
        output_fmt=output_fmt,
        strict_img_size=False,
    )
    if shifted:
        patch_embed.proj = ShiftedPatchProjection(  # pyright: ignore[reportAttributeAccessIssue]
            patch_size=patch_size, embed_dim=embed_dim, in_chans=in_chans
        )
    return patch_embed
