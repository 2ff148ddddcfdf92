import pytest
import torch
from timm.layers.attention import Attention
from timm.models.swin_transformer import WindowAttention
from torch import nn

from smallvit.models.attention import choose_attention, prefers_fused


def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(16, num_heads=2, qkv_bias=True)


@pytest.mark.parametrize(
    ("dtype", "num_tokens", "fused"),
    [
        (torch.float32, 65, False),
        (torch.float32, 197, True),
        (torch.bfloat16, 197, False),
        (torch.bfloat16, 1025, True),
        (torch.float64, 65, True),
    ],
)
def test_short_sequences_on_a_cpu_take_plain_products(dtype, num_tokens, fused):
    assert prefers_fused("cpu", dtype, num_tokens) is fused
    assert prefers_fused("cuda", dtype, num_tokens)


@pytest.mark.parametrize(("num_tokens", "fused"), [(65, False), (197, True)])
def test_each_call_chooses_by_its_own_length(num_tokens, fused):
    module = attention()
    choose_attention(nn.Sequential(module))
    module.fused_attn = not fused
    module(torch.randn(2, num_tokens, 16))
    assert module.fused_attn is fused


def test_autocast_decides_the_dtype():
    module = attention()
    choose_attention(module)
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(1, 197, 16))
    assert module.fused_attn is False


@pytest.mark.parametrize("num_tokens", [17, 200])
def test_both_ways_agree_forward_and_backward(num_tokens):
    x = torch.randn(2, num_tokens, 16, generator=torch.Generator().manual_seed(2))
    found = []
    for fused in (False, True):
        module = attention()
        module.fused_attn = fused
        out = module(x)
        out.square().mean().backward()
        found.append((out, module.qkv.weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_both_ways_agree_with_windows_and_masks():
    x = torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(4, 16, 16)
    mask[1, :, :8] = -100.0
    torch.manual_seed(0)
    module = WindowAttention(16, num_heads=2, window_size=4)
    module.fused_attn = False
    plain = module(x, mask=mask)
    module.fused_attn = True
    torch.testing.assert_close(module(x, mask=mask), plain, rtol=1e-5, atol=1e-6)


def test_short_sequences_take_their_softmax_in_float32_on_a_cpu(small_vit):
    """Equal to the same network in float32 up to bfloat16's products, and the mask changes nothing.

    16 tokens and the class token are below the bound; without a gradient the plain way is faster.
    """
    backbone, seen = small_vit(), []
    attention = backbone.model.blocks[0].attn
    attention.attn_drop.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].dtype))
    images = torch.randn(2, 3, 16, 16)
    expected = backbone(images).pooled
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = backbone(images)
        with torch.no_grad():
            backbone(images)
    assert seen == [torch.float32, torch.float32, torch.bfloat16]
    torch.testing.assert_close(tokens.pooled.float(), expected, rtol=0.05, atol=0.05)
