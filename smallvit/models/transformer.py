"""A vision transformer put together from parts, in timm's manner, and its token adapter.

LV-ViT, T2T-ViT, CCT and the small ViTs differ from timm's ViT in their stem, positions, blocks or
heads and in nothing else: each is a function that builds those parts.

Shapes in this file:
    B    images
    N    patch tokens, row-major over the token grid (N = h * w)
    M    patches that the network is given
    T    all tokens: class token, if any, then patch tokens
    E    embed dim of the stem
    D    embed dim of the final tokens
    C    classes
    c    colours
    H W  image in pixels
    h w  token grid
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.weight_init import trunc_normal_
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.models.architecture import any_patch, choose_patch, sides, what_divides
from smallvit.models.blocks import Block, Mlp, check_heads, init_linear
from smallvit.models.tokens import TOKEN_READOUT, AbstractSequenceBackbone, Tokens

Pool = Literal["token", "avg", "sequence"]
Positions = Literal["learned", "sinusoid", "none"]


class SmallTransformer(nn.Module):
    """Stem, positions, blocks, norm, pooling and heads.

    Args:
        stem: Images in, patches (B, h, w, E) out, for any size that ``patch_size`` divides.
        img_size: Height and width that it is made for, in pixels.
        patch_size: Pixels of a cell of the stem.
        embed_dim: E.
        blocks: Each takes tokens and their grid.
        num_features: D; ``None`` is E.
        num_classes: C; 0 leaves the classifiers out.
        positions: Learned; or sinusoid, fixed; both are resampled (bicubic, antialiased) for any
            grid but the one that the model is made for.
        global_pool: ``token`` reads a class token; ``avg`` and ``sequence`` have none and take
            the mean, or a learned weighting, of the patch tokens.
        token_head: Whether patch tokens have a classifier of their own, as in LV-ViT. It starts
            at zero, so that a model trained without token labels reads out its class token alone.
        norm_eps: Added to the variance in the last norm.
        pos_std: Standard deviation of learned positions at the start.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after the positions.

    Raises:
        ConfigError: If the pooling is unknown.
    """

    def __init__(
        self,
        *,
        stem: nn.Module,
        img_size: tuple[int, int],
        patch_size: int,
        embed_dim: int,
        blocks: Sequence[nn.Module],
        num_features: int | None = None,
        num_classes: int = 1000,
        positions: Positions = "learned",
        global_pool: Pool = "token",
        token_head: bool = False,
        norm_eps: float = 1e-6,
        pos_std: float = 0.02,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if global_pool not in get_args(Pool):
            raise ConfigError(
                f"global_pool must be {', '.join(get_args(Pool))}, got {global_pool!r}"
            )
        self.num_classes = num_classes
        self.embed_dim = embed_dim
        self.num_features = self.head_hidden_size = num_features or embed_dim
        self.global_pool: Pool = global_pool
        self.img_size = img_size
        self.patch_size = patch_size
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.num_prefix_tokens = 1 if global_pool == "token" else 0
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": self.num_features, "reduction": patch_size, "module": f"blocks.{i}"}
            for i in range(len(blocks))
        ]

        self.patch_embed = stem
        self.cls_token = (
            nn.Parameter(torch.zeros(1, 1, embed_dim)) if self.num_prefix_tokens else None
        )
        num_positions = self.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]
        self.pos_embed: nn.Parameter | None = None
        if positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, embed_dim))
        elif positions == "sinusoid":
            self.pos_embed = nn.Parameter(sinusoid(num_positions, embed_dim), requires_grad=False)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(self.num_features, eps=norm_eps)
        self.attention_pool = nn.Linear(self.num_features, 1) if global_pool == "sequence" else None
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _classifier(self.num_features, num_classes)
        self.token_head = _classifier(self.num_features, num_classes) if token_head else None

        self.apply(init_linear)
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)
        if self.pos_embed is not None and positions == "learned":
            trunc_normal_(self.pos_embed, std=pos_std)
        _silence(self.token_head)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that no optimizer should decay."""
        return {"cls_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm|attention_pool", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether blocks are computed again in the backward pass, to save memory."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the classifier of the image."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifiers by new ones; how tokens are pooled is built in."""
        assert global_pool in (None, self.global_pool), f"pooling is {self.global_pool}"
        self.num_classes = num_classes
        like = next(self.parameters())
        self.head = _classifier(self.num_features, num_classes).to(like)
        if self.token_head is not None:
            self.token_head = _classifier(self.num_features, num_classes).to(like)
            _silence(self.token_head)

    def embed(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B h w E"]:
        """Run the stem.

        Raises:
            ConfigError: If the patch does not divide the image: convolutions would drop or pad
                the rest.
        """
        height, width = x.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                f"patches of {self.patch_size} px do not divide images of {height} x {width} px; "
                f"{what_divides((height, width), self.patch_size)}"
            )
        return self.patch_embed(x)

    def add_positions(self, patches: Float[Tensor, "B h w E"]) -> Float[Tensor, "B T E"]:
        """Put the class token in front of the flattened patches and add positions."""
        grid = (patches.shape[1], patches.shape[2])
        x = patches.flatten(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        if self.pos_embed is not None:
            x = x + resample_abs_pos_embed(
                self.pos_embed,
                new_size=list(grid),
                old_size=list(self.grid_size),
                num_prefix_tokens=self.num_prefix_tokens,
            )
        return self.pos_drop(x)

    def run_block(
        self, block: nn.Module, x: Float[Tensor, "B T D1"], grid: tuple[int, int]
    ) -> Float[Tensor, "B T D2"]:
        """Run one block, checkpointed if that is chosen."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, grid)
        return block(x, grid)

    def run_blocks(
        self, x: Float[Tensor, "B T E"], grid: tuple[int, int]
    ) -> Float[Tensor, "B T D"]:
        """Run tokens with positions through the blocks and the last norm."""
        for block in self.blocks:
            x = self.run_block(block, x, grid)
        return self.norm(x)

    def forward_features(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B T D"]:
        """Return all normalised tokens, the class token first."""
        patches = self.embed(x)
        return self.run_blocks(self.add_positions(patches), (patches.shape[1], patches.shape[2]))

    def pool(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """Return one vector an image."""
        if self.global_pool == "token":
            return tokens[:, 0]
        if self.attention_pool is None:
            return tokens.mean(dim=1)
        weights = self.attention_pool(tokens).softmax(dim=1)  # (B, N, 1)
        return (weights.mT @ tokens).squeeze(1)

    def forward_head(
        self, x: Float[Tensor, "B T D"], pre_logits: bool = False
    ) -> Float[Tensor, "B out"]:
        """Pool and classify; with a token head, add the largest token logit of each class."""
        pooled = self.head_drop(self.pool(x))
        if pre_logits:
            return pooled
        logits = self.head(pooled)
        if self.token_head is None or not self.num_classes:
            return logits
        return logits + TOKEN_READOUT * self.token_head(x[:, self.num_prefix_tokens :]).amax(dim=1)

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B C"]:
        """Return class logits."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Float[Tensor, "B c H W"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the features after chosen blocks, and the final ones.

        Args:
            x: Images.
            indices: Blocks: the last n, or a list; ``None`` is all.
            return_prefix_tokens: Pair each with its class token.
            norm: Apply the last norm to each; all blocks must then be of one width.
            stop_early: Leave out the blocks after the last one asked for.
            output_fmt: ``NCHW`` or ``NLC``.
            intermediates_only: Leave the final features out.
        """
        assert output_fmt in ("NCHW", "NLC"), "output_fmt must be NCHW or NLC"
        take, last = feature_take_indices(len(self.blocks), _as_list(indices))
        patches = self.embed(x)
        grid = (patches.shape[1], patches.shape[2])
        x, found = self.add_positions(patches), []
        for i, block in enumerate(self.blocks):
            if stop_early and i > last:
                break
            x = self.run_block(block, x, grid)
            if i in take:
                found.append(self.norm(x) if norm else x)
        prefix = [y[:, : self.num_prefix_tokens] for y in found]
        found = [y[:, self.num_prefix_tokens :] for y in found]
        if output_fmt == "NCHW":
            found = [y.mT.unflatten(2, grid).contiguous() for y in found]
        if return_prefix_tokens and self.num_prefix_tokens:
            found = list(zip(found, prefix, strict=True))
        return found if intermediates_only else (self.norm(x), found)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what ``forward_intermediates`` of these blocks does not need."""
        take, last = feature_take_indices(len(self.blocks), _as_list(indices))
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
            self.token_head = None
        return take


class TransformerBackbone(AbstractSequenceBackbone[SmallTransformer]):
    """A ``SmallTransformer`` behind the token interface.

    Args:
        model: The network.
    """

    def __init__(self, model: SmallTransformer) -> None:
        super().__init__()
        self.model = model
        self.embed_dim = model.num_features
        self.patch_size = (model.patch_size, model.patch_size)

    @property
    def token_head(self) -> nn.Module | None:
        """The model's own classifier of patch tokens; none without classes."""
        return self.model.token_head if self.model.num_classes else None

    def separates_patches(self) -> bool:
        """Tell whether stem and MLPs see each patch alone; most stems here overlap on purpose."""
        convolves = any(isinstance(module, nn.Conv2d) for module in self.model.blocks.modules())
        return super().separates_patches() and not convolves

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w E"]:
        """Embed the patches, before any position or class token is added."""
        return self.model.embed(images)

    def add_positions(self, patches: Float[Tensor, "B h w E"]) -> Float[Tensor, "B T E"]:
        """Put the class token in front of the patches and add positions."""
        return self.model.add_positions(patches)

    def run(self, x: Float[Tensor, "B T E"], grid: tuple[int, int]) -> Tokens:
        """Run tokens with positions through the blocks and the last norm."""
        model = self.model
        x = model.run_blocks(x, grid)
        cls = None if model.global_pool == "avg" else model.pool(x)
        return Tokens(patch=x[:, model.num_prefix_tokens :], cls=cls, grid=grid)

    def classify(self, pooled: Float[Tensor, "... D"]) -> Float[Tensor, "... C"]:
        """Apply the model's own classifier."""
        return self.model.head(self.model.head_drop(pooled))


def create_transformer(
    *,
    stem: Callable[..., nn.Module],
    img_size: int | Sequence[int],
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    patch_size: int | None = None,
    suits: Callable[[int], bool] = any_patch,
    tokens: int = 8,
    in_chans: int = 3,
    qkv_bias: bool = False,
    attn: Callable[..., nn.Module] = Attention,
    mlp: Callable[..., nn.Module] = Mlp,
    block: Callable[..., nn.Module] = Block,
    norm_eps: float = 1e-5,
    drop_path_rate: float = 0.0,
    blocks_first: bool = False,
    **rest: Any,
) -> SmallTransformer:
    """Build a stem, equal blocks whose stochastic depth rises linearly from 0, and the rest.

    Args:
        stem: Makes the stem from ``patch_size``, ``embed_dim`` and ``in_chans``.
        img_size: Side, or height and width, in pixels.
        embed_dim: Width.
        depth: Blocks.
        num_heads: Attention heads; they must divide the width.
        mlp_ratio: Hidden width of an MLP over ``embed_dim``.
        patch_size: Pixels of a cell; ``None`` leaves ``tokens`` cells a side or more, at most 16
            px each.
        suits: Which patches the stem can make.
        tokens: Cells along the shorter side that a patch nobody asked for leaves at least.
        in_chans: Colours.
        qkv_bias: Whether queries, keys and values have a bias.
        attn: Makes an attention from width, ``num_heads`` and ``qkv_bias``.
        mlp: Makes an MLP from ``embed_dim`` and ``hidden_dim``.
        block: Puts both together.
        norm_eps: Added to the variance in the norms; 1e-5 is torch's default, which most authors
            keep, timm's is 1e-6.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less.
        blocks_first: Whether the blocks draw their random numbers before the stem.
        rest: As ``SmallTransformer`` has it: ``num_classes``, ``global_pool``, ``drop_rate``, ...

    Raises:
        ConfigError: If the patch does not suit the stem or the image, or the heads the width.
    """

    def create_blocks() -> list[nn.Module]:
        return [
            block(
                embed_dim=embed_dim,
                attn=attn(embed_dim, num_heads=num_heads, qkv_bias=qkv_bias),
                mlp=mlp(embed_dim=embed_dim, hidden_dim=int(embed_dim * mlp_ratio)),
                drop_path=drop_path_rate * i / max(1, depth - 1),
                norm_eps=norm_eps,
            )
            for i in range(depth)
        ]

    check_heads(embed_dim, num_heads)
    patch_size = choose_patch(img_size, patch_size, suits, tokens=tokens)
    blocks = create_blocks() if blocks_first else None
    return SmallTransformer(
        stem=stem(patch_size=patch_size, embed_dim=embed_dim, in_chans=in_chans),
        img_size=sides(img_size),
        patch_size=patch_size,
        embed_dim=embed_dim,
        blocks=create_blocks() if blocks is None else blocks,
        norm_eps=norm_eps,
        **rest,
    )


def sinusoid(num_positions: int, embed_dim: int) -> Float[Tensor, "1 T D"]:
    """Return fixed positions: sines in even channels and cosines in odd ones, by wavelength.

    Source:
        Vaswani et al., 2017, Attention Is All You Need, https://arxiv.org/abs/1706.03762,
        section 3.5; computed in float64 like yitu-opensource/T2T-ViT@0f63dc9,
        models/transformer_block.py.
    """
    position = torch.arange(num_positions, dtype=torch.float64)[:, None]
    channel = torch.arange(embed_dim, dtype=torch.float64)
    angle = position / 10_000 ** (2 * (channel // 2) / embed_dim)
    table = torch.where(channel % 2 == 0, angle.sin(), angle.cos())
    return table.float()[None]


def _as_list(indices: int | Sequence[int] | None) -> int | list[int] | None:
    return list(indices) if isinstance(indices, Sequence) else indices


def _classifier(num_features: int, num_classes: int) -> nn.Module:
    if not num_classes:
        return nn.Identity()
    head = nn.Linear(num_features, num_classes)
    init_linear(head)
    return head


def _silence(token_head: nn.Module | None) -> None:
    if isinstance(token_head, nn.Linear):
        nn.init.zeros_(token_head.weight)
