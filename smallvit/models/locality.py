"""Shifted patch tokenization, locality self-attention and the ViT, CaiT and Swin that use them.

Shapes in this file:
    B    images; in window attention, windows of all images
    V    windows of one image
    T    tokens, class token included; in window attention, tokens of one window
    N    patch tokens, row-major over the token grid (N = h * w)
    D    embed dim
    P    numbers in the shifted patches of one token (P = 5 * patch_size ** 2 * c)
    n    attention heads
    d    channels of a head
    c    colours, or channels of a feature map
    H W  image in pixels, or feature map
    h w  token grid

Source:
    Lee et al., 2021, Vision Transformer for Small-Size Datasets,
    https://arxiv.org/abs/2112.13492; sizes as in aanna0701/SPT_LSA_ViT@54bd796,
    models/create_model.py.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.config import use_fused_attn
from timm.layers.drop import DropPath
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.weight_init import trunc_normal_
from timm.models.cait import Cait
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from torch import Tensor, nn

from smallvit.models.architecture import default_patch, image_sides, register_architecture
from smallvit.models.blocks import Block, Mlp, check_heads
from smallvit.models.transformer import SmallTransformer

# Logit of a token's attention to itself. No softmax sees a difference to minus infinity, but a
# token that is alone in its window then attends to itself instead of giving NaN; float16 and
# bfloat16 hold it, also with a bias added.
MASKED = -1e4

# LayerScale at the start of CaiT's blocks: models/cait.py, LayerScale.
LAYER_SCALE = 0.1
LATE_LAYER_SCALE = 1e-5
EARLY_BLOCKS = 18


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


class AbsolutePositions(nn.Module):
    """Learned positions of a feature map, resampled (bicubic, antialiased) for other grids.

    Args:
        grid_size: Height and width that they are made for.
        embed_dim: D.
    """

    def __init__(self, *, grid_size: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.pos_embed = nn.Parameter(torch.zeros(1, grid_size[0] * grid_size[1], embed_dim))
        trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Float[Tensor, "B h w D"]) -> Float[Tensor, "B h w D"]:
        """Add positions."""
        grid = x.shape[1:3]
        positions = resample_abs_pos_embed(
            self.pos_embed,
            new_size=list(grid),
            old_size=list(self.grid_size),
            num_prefix_tokens=0,
        )
        return x + positions.unflatten(1, grid)


class LocalitySelfAttention(nn.Module):
    """Attention of each token to all others but itself, sharpened by a learned factor a head.

    A token that has no other attends to itself.

    Args:
        embed_dim: D; the heads divide it.
        num_heads: Attention heads.
        qkv_bias: Whether queries, keys and values have a bias.

    Attributes:
        temperature: What logits are multiplied by: the inverse of the paper's temperature,
            ``head_dim ** -0.5`` at the start.
        fused_attn: Whether to use torch's fused attention; read at each call.

    Source:
        Lee et al., 2021, section 3.2; models/vit.py, which masks with -987654321.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.fused_attn = use_fused_attn()
        self.temperature = nn.Parameter(torch.full((num_heads,), (embed_dim // num_heads) ** -0.5))
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Attend."""
        q, k, v = _split_heads(self.qkv(x), 3 * self.num_heads).chunk(3, dim=1)
        q = q * self.temperature.to(q.dtype)[:, None, None]
        if self.fused_attn:
            mask = q.new_full((q.shape[2],), MASKED).diag()
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        else:
            x = _mask_diagonal(q @ k.mT).softmax(dim=-1) @ v
        return self.proj(_join_heads(x))


class LocalityWindowAttention(nn.Module):
    """Locality self-attention in windows, in the place of the one of a timm Swin block.

    Args:
        attn: The one that it replaces; its layers, position table and index are taken over.

    Attributes:
        temperature: What logits are multiplied by, before the position bias is added.
        fused_attn: Whether to use torch's fused attention; read at each call.

    Source:
        Lee et al., 2021, section 3.2; models/swin.py.
    """

    def __init__(self, attn: WindowAttention) -> None:
        super().__init__()
        self.num_heads = attn.num_heads
        self.fused_attn = attn.fused_attn
        self.temperature = nn.Parameter(torch.full((attn.num_heads,), attn.scale))
        self.relative_position_bias_table = attn.relative_position_bias_table
        index = attn.relative_position_index
        assert isinstance(index, Tensor)
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", index, persistent=False)
        self.qkv, self.proj = attn.qkv, attn.proj

    def forward(
        self, x: Float[Tensor, "B T D"], mask: Float[Tensor, "V T T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Attend in each window.

        Args:
            x: Windows, those of one image side by side.
            mask: Added to the logits of each window of an image.
        """
        q, k, v = _split_heads(self.qkv(x), 3 * self.num_heads).chunk(3, dim=1)
        q = q * self.temperature.to(q.dtype)[:, None, None]
        bias = self.position_bias()[None]  # (1, n, T, T)
        if mask is not None:
            bias = bias + mask[:, None]
        if self.fused_attn:
            bias = bias.to(q.dtype).repeat(x.shape[0] // bias.shape[0], 1, 1, 1)
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        else:
            logits = (q @ k.mT).unflatten(0, (-1, bias.shape[0])) + bias
            x = logits.flatten(0, 1).softmax(dim=-1) @ v
        return self.proj(_join_heads(x))

    def position_bias(self) -> Float[Tensor, "n T T"]:
        """Return the position bias of each pair, with that of a token and itself masked."""
        index = self.relative_position_index
        bias = self.relative_position_bias_table[index.flatten()].unflatten(0, index.shape)
        return _mask_diagonal(bias.movedim(-1, 0).contiguous())


class TalkingHeadsLocalityAttention(nn.Module):
    """Locality self-attention whose heads mix, for CaiT's patch tokens and its class token.

    Args:
        embed_dim: D.
        num_heads: Attention heads.
        head_dim: Channels of a head; the heads need not divide the width.
        qkv_bias: Whether queries, keys and values have a bias.

    Attributes:
        temperature: What the logits of each head are multiplied by, before they mix.
        mix_logits: Weight of each head's logits (column) in each mixed head's (row).
        mix_weights: The same for attention after the softmax.

    Source:
        Lee et al., 2021, section 3.2; Shazeer et al., 2020, Talking-Heads Attention,
        https://arxiv.org/abs/2003.02436; models/cait.py, whose mask is -1e-9, that is a logit of 0
        and no mask. Here a token's attention to itself is masked as in the paper, after the logits
        mix: before, a negative weight would turn the mask into its opposite.
    """

    def __init__(
        self, *, embed_dim: int, num_heads: int, head_dim: int, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.full((num_heads,), head_dim**-0.5))
        self.mix_logits = nn.Parameter(torch.randn(num_heads, num_heads))
        self.mix_weights = nn.Parameter(torch.randn(num_heads, num_heads))
        self.qkv = nn.Linear(embed_dim, 3 * num_heads * head_dim, bias=qkv_bias)
        self.proj = nn.Linear(num_heads * head_dim, embed_dim)

    def forward(
        self, x: Float[Tensor, "B T D"], context: Float[Tensor, "B N D"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Attend to the other tokens, or to all of ``context`` instead."""
        if context is None:
            q, k, v = _split_heads(self.qkv(x), 3 * self.num_heads).chunk(3, dim=1)
        else:
            num_outputs = self.qkv.out_features
            sizes = [num_outputs // 3, num_outputs - num_outputs // 3]
            weight = self.qkv.weight.split(sizes)
            bias = (None, None) if self.qkv.bias is None else self.qkv.bias.split(sizes)
            q = _split_heads(F.linear(x, weight[0], bias[0]), self.num_heads)
            kv = F.linear(context, weight[1], bias[1])
            k, v = _split_heads(kv, 2 * self.num_heads).chunk(2, dim=1)
        q = q * self.temperature.to(q.dtype)[:, None, None]
        logits = _mix_heads(q @ k.mT, self.mix_logits)
        if context is None:
            logits = _mask_diagonal(logits)
        weights = _mix_heads(logits.softmax(dim=-1), self.mix_weights)
        return self.proj(_join_heads(weights.to(v.dtype) @ v))


class ClassBlock(nn.Module):
    """CaiT's block of the class token, which reads the patch tokens as they are.

    Args:
        embed_dim: D.
        attn: Attention that takes tokens and what they read.
        hidden_dim: Width of the MLP.
        drop_path: Stochastic depth of both branches.

    Source:
        models/cait.py: unlike Touvron et al., 2021, https://arxiv.org/abs/2103.17239, the class
        token is not among what it reads, and patch tokens are not normalised.
    """

    def __init__(
        self, *, embed_dim: int, attn: nn.Module, hidden_dim: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim=embed_dim, hidden_dim=hidden_dim)
        self.gamma_1 = nn.Parameter(torch.full((embed_dim,), LAYER_SCALE))
        self.gamma_2 = nn.Parameter(torch.full((embed_dim,), LAYER_SCALE))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, x: Float[Tensor, "B N D"], x_cls: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B T D"]:
        """Return the class token after it read patch tokens ``x``; arguments are timm's."""
        x_cls = x_cls + self.drop_path(self.gamma_1 * self.attn(self.norm1(x_cls), x))
        return x_cls + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x_cls), (1, 1)))


def create_patch_embed(
    *,
    img_size: tuple[int, int],
    patch_size: int,
    embed_dim: int,
    in_chans: int = 3,
    output_fmt: Literal["NHWC", "NLC"] = "NHWC",
) -> PatchEmbed:
    """Build timm's patch embedding, with shifted patches, for any size that the patch divides.

    Args:
        img_size: Height and width that the model is made for, in pixels.
        patch_size: Pixels of a patch.
        embed_dim: D.
        in_chans: Colours.
        output_fmt: Whether to give the token grid (B, h, w, D) or rows of tokens (B, N, D).
    """
    patch_embed = PatchEmbed(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        embed_dim=embed_dim,
        output_fmt=output_fmt,
        strict_img_size=False,
    )
    patch_embed.proj = ShiftedPatchProjection(  # pyright: ignore[reportAttributeAccessIssue]
        patch_size=patch_size, embed_dim=embed_dim, in_chans=in_chans
    )
    return patch_embed


def create_sl_vit(
    *,
    img_size: int | Sequence[int] = 32,
    patch_size: int | None = None,
    in_chans: int = 3,
    num_classes: int = 10,
    embed_dim: int = 192,
    depth: int = 9,
    num_heads: int = 12,
    mlp_ratio: float = 2.0,
    qkv_bias: bool = False,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> SmallTransformer:
    """Build the ViT with shifted patches and locality self-attention.

    Args:
        img_size: Side, or height and width, in pixels.
        patch_size: Pixels of a patch; ``None`` leaves 8 patches a side or more, at most 16 px each.
        in_chans: Colours.
        num_classes: Classes; 0 leaves the classifier out.
        embed_dim: Width.
        depth: Blocks.
        num_heads: Attention heads; they must divide the width.
        mlp_ratio: Hidden width of an MLP over ``embed_dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less.

    Raises:
        ConfigError: If the patch does not divide the image, or the heads the width.

    Source:
        Lee et al., 2021, models/vit.py; there all blocks have the same stochastic depth.
    """
    patch_size = patch_size or default_patch(img_size)
    sides = image_sides(img_size, patch_size)
    check_heads(embed_dim, num_heads)
    blocks = [
        Block(
            embed_dim=embed_dim,
            attn=LocalitySelfAttention(embed_dim=embed_dim, num_heads=num_heads, qkv_bias=qkv_bias),
            mlp=Mlp(embed_dim=embed_dim, hidden_dim=int(embed_dim * mlp_ratio)),
            drop_path=drop_path_rate * i / max(1, depth - 1),
            norm_eps=1e-5,
        )
        for i in range(depth)
    ]
    return SmallTransformer(
        stem=create_patch_embed(
            img_size=sides, patch_size=patch_size, embed_dim=embed_dim, in_chans=in_chans
        ),
        img_size=sides,
        patch_size=patch_size,
        embed_dim=embed_dim,
        blocks=blocks,
        num_classes=num_classes,
        norm_eps=1e-5,
        drop_rate=drop_rate,
    )


def create_sl_cait(
    *,
    img_size: int | Sequence[int] = 32,
    patch_size: int | None = None,
    in_chans: int = 3,
    num_classes: int = 10,
    embed_dim: int = 192,
    depth: int = 24,
    depth_token_only: int = 2,
    num_heads: int = 4,
    head_dim: int = 64,
    mlp_ratio: float = 2.0,
    qkv_bias: bool = False,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> Cait:
    """Build timm's CaiT with shifted patches and locality self-attention.

    Args:
        img_size: Side, or height and width, in pixels.
        patch_size: Pixels of a patch; ``None`` leaves 8 patches a side or more, at most 16 px each.
        in_chans: Colours.
        num_classes: Classes; 0 leaves the classifier out.
        embed_dim: Width.
        depth: Blocks of the patch tokens.
        depth_token_only: Blocks of the class token.
        num_heads: Attention heads.
        head_dim: Channels of a head.
        mlp_ratio: Hidden width of an MLP over ``embed_dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of every block.

    Raises:
        ConfigError: If the patch does not divide the image.

    Source:
        Lee et al., 2021, models/cait.py.
    """
    patch_size = patch_size or default_patch(img_size)
    sides = image_sides(img_size, patch_size)
    # timm's own attention, which wants heads that divide the width, is replaced below.
    model = Cait(
        img_size=sides,  # pyright: ignore[reportArgumentType]
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depth=depth,
        depth_token_only=0,
        num_heads=1,
        mlp_ratio=mlp_ratio,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        norm_layer=nn.LayerNorm,
        init_values=LAYER_SCALE,
    )
    model.patch_embed = create_patch_embed(
        img_size=sides,
        patch_size=patch_size,
        embed_dim=embed_dim,
        in_chans=in_chans,
        output_fmt="NLC",
    )

    def create_attention() -> TalkingHeadsLocalityAttention:
        return TalkingHeadsLocalityAttention(
            embed_dim=embed_dim, num_heads=num_heads, head_dim=head_dim, qkv_bias=qkv_bias
        )

    blocks: list[Any] = list(model.blocks)
    for i, block in enumerate(blocks):
        block.attn = create_attention()
        if i >= EARLY_BLOCKS:
            nn.init.constant_(block.gamma_1, LATE_LAYER_SCALE)
            nn.init.constant_(block.gamma_2, LATE_LAYER_SCALE)
    model.blocks_token_only = nn.ModuleList(
        ClassBlock(
            embed_dim=embed_dim,
            attn=create_attention(),
            hidden_dim=int(embed_dim * mlp_ratio),
            drop_path=drop_path_rate,
        )
        for _ in range(depth_token_only)
    )
    return model.apply(_init_weights)


def create_sl_swin(
    *,
    img_size: int | Sequence[int] = 32,
    patch_size: int | None = None,
    in_chans: int = 3,
    num_classes: int = 10,
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 6, 4),
    num_heads: Sequence[int] = (3, 6, 12),
    window_size: int = 4,
    mlp_ratio: float = 2.0,
    qkv_bias: bool = True,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> SwinTransformer:
    """Build timm's Swin with shifted patches and locality self-attention, for any image size.

    Args:
        img_size: Side, or height and width, in pixels.
        patch_size: Pixels of a patch; ``None`` leaves 16 patches a side or more, at most 4 px each.
        in_chans: Colours.
        num_classes: Classes; 0 leaves the classifier out.
        embed_dim: Width of the first stage; it doubles from stage to stage.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage; they must divide its width.
        window_size: Side of a window, in cells of the feature map.
        mlp_ratio: Hidden width of an MLP over the stage's width.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less.

    Raises:
        ConfigError: If the patch does not divide the image, or the heads the width.

    Source:
        Lee et al., 2021, models/swin.py, which adds learned positions to Swin's relative ones.
    """
    patch_size = patch_size or default_patch(img_size, tokens=16, most=4)
    sides = image_sides(img_size, patch_size)
    for stage, heads in enumerate(num_heads):
        check_heads(embed_dim * 2**stage, heads)
    model = SwinTransformer(
        img_size=sides,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        window_size=window_size,
        strict_img_size=False,
        mlp_ratio=mlp_ratio,
        qkv_bias=qkv_bias,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    model.patch_embed = create_patch_embed(
        img_size=sides, patch_size=patch_size, embed_dim=embed_dim, in_chans=in_chans
    )
    grid_size = (sides[0] // patch_size, sides[1] // patch_size)
    stages: list[Any] = list(model.layers)
    for i, stage in enumerate(stages):
        width = embed_dim * 2**i
        # timm runs a stage's merging first; in the first stage it is an identity.
        stage.downsample = (
            ShiftedPatchMerging(in_chans=width // 2, embed_dim=width)
            if i
            else AbsolutePositions(grid_size=grid_size, embed_dim=width)
        )
        for block in stage.blocks:
            block.attn = LocalityWindowAttention(block.attn)
    return model.apply(_init_weights)


def _split_heads(x: Float[Tensor, "B T channels"], num_heads: int) -> Float[Tensor, "B n T d"]:
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _join_heads(x: Float[Tensor, "B n T d"]) -> Float[Tensor, "B T channels"]:
    return x.transpose(1, 2).flatten(2)


def _mask_diagonal(logits: Float[Tensor, "*B T T"]) -> Float[Tensor, "*B T T"]:
    """Mask, in place, attention of tokens to themselves."""
    logits.diagonal(dim1=-2, dim2=-1).fill_(MASKED)
    return logits


def _mix_heads(x: Float[Tensor, "B n T S"], mix: Float[Tensor, "n n"]) -> Float[Tensor, "B n T S"]:
    return (mix @ x.flatten(2)).unflatten(2, x.shape[2:])


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


register_architecture(
    "sl_vit",
    create_sl_vit,
    "ViT with shifted patch tokenization and locality self-attention.",
    img_size=32,
    num_classes=10,
    drop_path_rate=0.1,
)
register_architecture(
    "sl_cait",
    create_sl_cait,
    "CaiT with shifted patch tokenization and locality self-attention.",
    img_size=32,
    num_classes=10,
    drop_path_rate=0.1,
)
register_architecture(
    "sl_swin",
    create_sl_swin,
    "Swin with shifted patch tokenization and locality self-attention.",
    img_size=32,
    num_classes=10,
    classifier="head.fc",
    drop_path_rate=0.1,
)
