"""The tokens-to-token stem: overlapping splits of the image, with attention between them.

Shapes in this file:
    B    images
    T    tokens of a split, row-major over its grid
    P    values of a token before a token layer: channels x kernel area
    D    width of a token after it
    E    embed dim of the patches
    M    random features
    c    colours
    H W  image in pixels
    h w  token grid
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.config import use_fused_attn
from torch import Tensor, nn

from smallvit.models.blocks import Mlp, attend

TokenLayer = Literal["performer", "transformer"]

# Keeps the quotient of two sums of features finite: models/token_performer.py.
EPSILON = 1e-8


class SoftSplit(NamedTuple):
    """How an image, or a grid of tokens, is cut into overlapping squares.

    Attributes:
        kernel: Side of a square.
        stride: Distance between two.
        padding: Zeros around the image.
    """

    kernel: int
    stride: int
    padding: int


# By the patch size that they amount to. A grid that the strides divide loses no cell: each split
# of n cells gives n / stride.
SOFT_SPLITS: dict[int, tuple[SoftSplit, ...]] = {
    4: (SoftSplit(3, 2, 1), SoftSplit(3, 2, 1)),
    8: (SoftSplit(3, 2, 1), SoftSplit(3, 2, 1), SoftSplit(3, 2, 1)),
    16: (SoftSplit(7, 4, 2), SoftSplit(3, 2, 1), SoftSplit(3, 2, 1)),
}


class TokensToToken(nn.Module):
    """Cut into overlapping squares, let them attend to each other, cut the result again.

    Args:
        patch_size: 4, 8 or 16: pixels of a cell of the final grid.
        embed_dim: E.
        in_chans: c.
        token_dim: D.
        token_layer: What stands between two splits.
        drop: Dropout of the token layers.

    Source:
        Yuan et al., 2021, Tokens-to-Token ViT, https://arxiv.org/abs/2101.11986, section 3.1.
        Splits of 16 px: yitu-opensource/T2T-ViT@0f63dc9, models/t2t_vit.py:44-97; of 4 and 8 px,
        for images of 32 and 64 px: aanna0701/SPT_LSA_ViT@54bd796, models/t2t.py:167-260. Those
        take square roots of token counts; this one carries the grid along, so that images need
        not be square.
    """

    def __init__(
        self,
        *,
        patch_size: int,
        embed_dim: int,
        in_chans: int = 3,
        token_dim: int = 64,
        token_layer: TokenLayer = "performer",
        drop: float = 0.1,
    ) -> None:
        super().__init__()
        self.splits = SOFT_SPLITS[patch_size]
        widths = [in_chans, token_dim, token_dim][: len(self.splits)]
        areas = [width * split.kernel**2 for width, split in zip(widths, self.splits, strict=True)]
        layer = TokenPerformer if token_layer == "performer" else TokenTransformer
        self.attention1 = layer(in_dim=areas[0], token_dim=token_dim, drop=drop)
        self.attention2 = (
            layer(in_dim=areas[1], token_dim=token_dim, drop=drop) if len(areas) > 2 else None
        )
        self.project = nn.Linear(areas[-1], embed_dim)

    def forward(self, images: Float[Tensor, "B c H W"]) -> Float[Tensor, "B h w E"]:
        """Embed images of any size that the patch divides."""
        middle = [] if self.attention2 is None else [self.attention2]
        layers = [self.attention1, *middle, self.project]
        x = images
        for split, layer in zip(self.splits, layers, strict=True):
            grid = (x.shape[2] // split.stride, x.shape[3] // split.stride)
            squares = F.unfold(x, split.kernel, padding=split.padding, stride=split.stride)
            x = layer(squares.mT).mT.unflatten(2, grid)  # (B, T, D) -> (B, D, h, w)
        return x.permute(0, 2, 3, 1)


class TokenTransformer(nn.Module):
    """Token layer of softmax attention and an MLP.

    Args:
        in_dim: P.
        token_dim: D.
        drop: Dropout after the attention and in the MLP; the authors have none here.

    Source:
        yitu-opensource/T2T-ViT@0f63dc9, models/token_transformer.py.
    """

    def __init__(self, *, in_dim: int, token_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.attn = TokenAttention(in_dim=in_dim, token_dim=token_dim, proj_drop=drop)
        self.norm2 = nn.LayerNorm(token_dim)
        self.mlp = Mlp(embed_dim=token_dim, hidden_dim=token_dim, drop=drop)

    def forward(self, x: Float[Tensor, "B T P"]) -> Float[Tensor, "B T D"]:
        """Narrow the tokens by attention, then add the MLP."""
        x = self.attn(self.norm1(x))
        # The MLP convolves nothing, so the grid may be flat.
        return x + self.mlp(self.norm2(x), (1, x.shape[1]))


class TokenAttention(nn.Module):
    """Attention of one head that changes the width, with its values as the skip connection.

    Args:
        in_dim: P; the scale is its inverse square root, not that of the head's width.
        token_dim: D.
        proj_drop: Dropout after the projection.
    """

    def __init__(self, *, in_dim: int, token_dim: int, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.scale = in_dim**-0.5
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Linear(in_dim, 3 * token_dim, bias=False)
        self.proj = nn.Linear(token_dim, token_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Float[Tensor, "B T P"]) -> Float[Tensor, "B T D"]:
        """Attend, and add to the values."""
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)  # (B, T, 3 D) -> 3 x (B, 1, T, D)
        attended = attend(q, k, v, scale=self.scale, fused=self.fused_attn)
        return (v + self.proj_drop(self.proj(attended)))[:, 0]


class TokenPerformer(nn.Module):
    """Token layer of a cost linear in the tokens: random features stand in for the softmax.

    The features are fixed: ``w`` is drawn with torch's seed when the layer is made, and stored.

    Args:
        in_dim: P.
        token_dim: D.
        kernel_ratio: M over D.
        drop: Dropout after the projection and after the MLP; 0.1 in the authors' code.

    Source:
        Choromanski et al., 2021, Rethinking Attention with Performers,
        https://arxiv.org/abs/2009.14794, section 2.3; yitu-opensource/T2T-ViT@0f63dc9,
        models/token_performer.py:9-59. Theirs gives all rows of ``w`` the length sqrt(M), at
        M = D / 2 that of a Gaussian vector over sqrt(2), so that the kernel is not the softmax's;
        ours are drawn as in the paper. A checkpoint brings its own.
    """

    def __init__(
        self, *, in_dim: int, token_dim: int, kernel_ratio: float = 0.5, drop: float = 0.1
    ) -> None:
        super().__init__()
        self.kqv = nn.Linear(in_dim, 3 * token_dim)
        self.proj = nn.Linear(token_dim, token_dim)
        self.drop = nn.Dropout(drop)
        self.norm1 = nn.LayerNorm(in_dim)
        self.norm2 = nn.LayerNorm(token_dim)
        self.mlp = nn.Sequential(
            nn.Linear(token_dim, token_dim),
            nn.GELU(),
            nn.Linear(token_dim, token_dim),
            nn.Dropout(drop),
        )
        self.w = nn.Parameter(
            draw_features(int(token_dim * kernel_ratio), token_dim), requires_grad=False
        )

    def forward(self, x: Float[Tensor, "B T P"]) -> Float[Tensor, "B T D"]:
        """Narrow the tokens by attention, its values as the skip connection, then add the MLP."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        attended = performer_attention(q, k, v, self.w).to(v.dtype)
        x = v + self.drop(self.proj(attended))
        return x + self.mlp(self.norm2(x))


def draw_features(num_features: int, dim: int) -> Float[Tensor, "M D"]:
    """Draw directions for ``positive_features``: each Gaussian, orthogonal by blocks of ``dim``.

    Orthogonal directions make the error smaller than independent ones; lengths are those of
    independent Gaussian vectors, which keeps the kernel unbiased.
    """
    sizes = [min(dim, num_features - start) for start in range(0, num_features, dim)]
    directions = torch.cat([nn.init.orthogonal_(torch.empty(size, dim)) for size in sizes])
    return directions * torch.randn(num_features, dim).norm(dim=1, keepdim=True)


def positive_features(
    x: Float[Tensor, "*batch T D"], w: Float[Tensor, "M D"]
) -> Float[Tensor, "*batch T M"]:
    r"""Return features :math:`\phi(x)` whose inner products estimate the softmax's kernel.

    .. math::
        \phi(x)_m = \exp(w_m \cdot x - |x|^2 / 2) / \sqrt{M}, \quad
        E_w[\phi(x) \cdot \phi(y)] = \exp(x \cdot y)

    Args:
        x: Queries or keys.
        w: Directions, Gaussian.

    Source:
        Choromanski et al., 2021, https://arxiv.org/abs/2009.14794, Lemma 1.
    """
    return torch.exp(x @ w.mT - x.square().sum(dim=-1, keepdim=True) / 2) / w.shape[0] ** 0.5


def performer_attention(
    q: Float[Tensor, "B T D"],
    k: Float[Tensor, "B T D"],
    v: Float[Tensor, "B T D"],
    w: Float[Tensor, "M D"],
) -> Float[Tensor, "B T D"]:
    """Estimate softmax attention of scale 1 in time linear in the tokens.

    It runs in float32 under autocast too: exponents of this size need the digits.
    """
    with _full_precision(q.device.type):
        q_features = positive_features(q.float(), w.float())
        k_features = positive_features(k.float(), w.float())
        total = q_features @ k_features.sum(dim=1).unsqueeze(2)  # (B, T, M) x (B, M, 1)
        return q_features @ (k_features.mT @ v.float()) / (total + EPSILON)


def _full_precision(device_type: str) -> AbstractContextManager[object]:
    if device_type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
