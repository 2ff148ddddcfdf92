"""Locality self-attention: each token attends to all others but itself, sharpened as it learns.

Shapes in this file:
    B    images; in window attention, windows of all images
    V    windows of one image
    T    tokens, class token included; in window attention, tokens of one window
    S    tokens that are read
    N    patch tokens
    D    embed dim
    n    attention heads

Source:
    Lee et al., 2021, Vision Transformer for Small-Size Datasets,
    https://arxiv.org/abs/2112.13492, section 3.2; files in models/ are
    those of aanna0701/SPT_LSA_ViT@54bd796.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.config import use_fused_attn
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from smallvit.models.blocks import merge_heads, split_heads

# Logit of a token's attention to itself. No softmax sees a difference to minus infinity, but a
# token that is alone in its window then attends to itself instead of giving NaN; float16 and
# bfloat16 hold it, also with a bias added.
MASKED = -1e4


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

    def __init__(self, embed_dim: int, *, num_heads: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.fused_attn = use_fused_attn()
        self.temperature = nn.Parameter(torch.full((num_heads,), (embed_dim // num_heads) ** -0.5))
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Attend."""
        q, k, v = split_heads(self.qkv(x), 3 * self.num_heads).chunk(3, dim=1)
        q = q * self.temperature.to(q.dtype)[:, None, None]
        if self.fused_attn:
            mask = q.new_full((q.shape[2],), MASKED).diag()
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        else:
            x = _fill_diagonal(q @ k.mT, MASKED).softmax(dim=-1) @ v
        return self.proj(merge_heads(x))


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
        q, k, v = split_heads(self.qkv(x), 3 * self.num_heads).chunk(3, dim=1)
        q = q * self.temperature.to(q.dtype)[:, None, None]
        bias = self.position_bias()[None]  # (1, n, T, T)
        if mask is not None:
            bias = bias + mask[:, None]
        if self.fused_attn:
            bias = bias.to(q.dtype)
            if mask is not None:
                bias = bias.repeat(x.shape[0] // mask.shape[0], 1, 1, 1)
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        else:
            logits = (q @ k.mT).unflatten(0, (-1, bias.shape[0])) + bias
            x = logits.flatten(0, 1).softmax(dim=-1) @ v
        return self.proj(merge_heads(x))

    def position_bias(self) -> Float[Tensor, "n T T"]:
        """Return the position bias of each pair, with that of a token and itself masked."""
        index = self.relative_position_index
        bias = self.relative_position_bias_table[index.flatten()].unflatten(0, index.shape)
        return _fill_diagonal(bias.movedim(-1, 0).contiguous(), MASKED)


class TalkingHeadsLocalityAttention(nn.Module):
    """Locality self-attention whose heads mix, for CaiT's patch tokens and its class token.

    Args:
        embed_dim: D.
        num_heads: Attention heads.
        head_dim: Channels of a head; the heads need not divide the width.
        qkv_bias: Whether queries, keys and values have a bias.
        masked: Whether a token's attention to itself is masked, after the logits mix. If not, its
            logit is 0 before they mix, as in the authors' code.

    Attributes:
        temperature: What the logits of each head are multiplied by, before they mix.
        mix_logits: Weight of each head's logits (column) in each mixed head's (row).
        mix_weights: The same for attention after the softmax.

    Source:
        Lee et al., 2021, section 3.2; Shazeer et al., 2020, Talking-Heads Attention,
        https://arxiv.org/abs/2003.02436; models/cait.py, whose mask is -1e-9, that is a logit of 0
        and no mask. Masked as in the paper, it is so after the logits mix: before, a negative
        weight would turn the mask into its opposite.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        qkv_bias: bool = False,
        masked: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.masked = masked
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
            q, k, v = split_heads(self.qkv(x), 3 * self.num_heads).chunk(3, dim=1)
        else:
            num_outputs = self.qkv.out_features
            sizes = [num_outputs // 3, num_outputs - num_outputs // 3]
            weight = self.qkv.weight.split(sizes)
            bias = (None, None) if self.qkv.bias is None else self.qkv.bias.split(sizes)
            q = split_heads(F.linear(x, weight[0], bias[0]), self.num_heads)
            kv = F.linear(context, weight[1], bias[1])
            k, v = split_heads(kv, 2 * self.num_heads).chunk(2, dim=1)
        q = q * self.temperature.to(q.dtype)[:, None, None]
        logits = q @ k.mT
        if context is None and not self.masked:
            logits = _fill_diagonal(logits, 0.0)
        logits = _mix_heads(logits, self.mix_logits)
        if context is None and self.masked:
            logits = _fill_diagonal(logits, MASKED)
        weights = _mix_heads(logits.softmax(dim=-1), self.mix_weights)
        return self.proj(merge_heads(weights.to(v.dtype) @ v))


def _fill_diagonal(logits: Float[Tensor, "*B T T"], value: float) -> Float[Tensor, "*B T T"]:
    """Set, in place, the logits of tokens to themselves."""
    logits.diagonal(dim1=-2, dim2=-1).fill_(value)
    return logits


def _mix_heads(x: Float[Tensor, "B n T S"], mix: Float[Tensor, "n n"]) -> Float[Tensor, "B n T S"]:
    return (mix @ x.flatten(2)).unflatten(2, x.shape[2:])
