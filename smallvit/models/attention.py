"""Which implementation of attention is the fast one, by device, dtype and length.

Shapes in this file:
    B    images
    T    tokens, class token included
    D    embed dim
"""

import math
from typing import Any

import torch
from timm.layers.attention import Attention
from torch import nn

# Tokens from which torch's fused attention is the faster one on a CPU, forward and backward. Below,
# plain matrix products are as fast in float32 and 2 to 7 times as fast in bfloat16, where the fused
# backward pass is slow; above, fused is up to 8 times as fast. benchmarks/attention.py measures it.
CPU_FUSED_TOKENS = {torch.float32: 128, torch.bfloat16: 768}
# Tokens below which a CPU's bfloat16 softmax works number by number in its backward pass: in
# float32 an attention over 17 tokens takes 0.84 of the time.
CPU_SHORT_TOKENS = 32


def prefers_fused(device_type: str, dtype: torch.dtype, num_tokens: int) -> bool:
    """Tell whether torch's fused attention beats plain matrix products.

    Args:
        device_type: ``cpu``, ``cuda``, ...; anything but a CPU has fast fused kernels.
        dtype: Of queries, keys and values.
        num_tokens: Length of the sequence.
    """
    if device_type != "cpu":
        return True
    return num_tokens >= CPU_FUSED_TOKENS.get(dtype, 0)


def choose_attention(model: nn.Module) -> None:
    """Let every attention of a model choose its implementation at each call.

    timm's attentions, and those of this package, read their flag ``fused_attn`` at each call; a
    hook sets it from the input's device, the dtype that autocast gives and the length, so that
    short local views and long images each take the faster way. Both are equal but for rounding.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.register_forward_pre_hook(_choose, with_kwargs=True)


def _choose(
    module: Any, inputs: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x, num_tokens = inputs[0], math.prod(inputs[0].shape[1:-1])
    # Plain products on the meta device: that is what is counted as a model's cost.
    module.fused_attn = not x.is_meta and prefers_fused(x.device.type, _dtype(x), num_tokens)
    if (
        type(module) is Attention
        and not module.fused_attn
        and x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.is_grad_enabled()
        and num_tokens < CPU_SHORT_TOKENS
        and options.get("attn_mask") is None
    ):
        # Logits plus a float32 zero are float32, and so is their softmax.
        options = {**options, "attn_mask": x.new_zeros(1, dtype=torch.float32)}
    return inputs, options


def _dtype(x: torch.Tensor) -> torch.dtype:
    device_type = x.device.type
    autocast = torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if autocast else x.dtype
