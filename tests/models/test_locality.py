import pytest
import torch
from timm.models.swin_transformer import WindowAttention
from torch import nn

from smallvit.models.locality import (
    LocalitySelfAttention,
    LocalityWindowAttention,
    TalkingHeadsLocalityAttention,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomise(module: nn.Module) -> nn.Module:
    """Give every parameter a size at which an error shows."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("fused", [False, True])
def test_each_of_two_tokens_attends_to_the_other_alone(fused):
    attn = LocalitySelfAttention(embed_dim=8, num_heads=2)
    attn.fused_attn = fused
    x = torch.randn(3, 2, 8)
    value = x @ attn.qkv.weight[16:].mT
    torch.testing.assert_close(attn(x), attn.proj(value.flip(1)))


@pytest.mark.parametrize("fused", [False, True])
def test_a_lone_token_attends_to_itself(fused):
    attn = LocalitySelfAttention(embed_dim=8, num_heads=2)
    attn.fused_attn = fused
    x = torch.randn(3, 1, 8)
    torch.testing.assert_close(attn(x), attn.proj(x @ attn.qkv.weight[16:].mT))


def test_locality_attention_is_softmax_over_all_other_tokens():
    attn = randomise(LocalitySelfAttention(embed_dim=6, num_heads=2, qkv_bias=True))
    x = torch.randn(2, 5, 6)
    q, k, v = attn.qkv(x).unflatten(2, (3, 2, 3)).unbind(2)  # (B, T, n, d)
    mixed = torch.zeros(2, 5, 2, 3)
    for head in range(2):
        for token in range(5):
            others = [other for other in range(5) if other != token]
            logits = (q[:, token, None, head] * k[:, others, head]).sum(-1)
            weight = (logits * attn.temperature[head]).softmax(-1)[..., None]
            mixed[:, token, head] = (weight * v[:, others, head]).sum(1)
    torch.testing.assert_close(attn(x), attn.proj(mixed.flatten(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_and_plain_locality_attention_agree_with_gradients(dtype):
    attn, x = LocalitySelfAttention(embed_dim=8, num_heads=2), torch.randn(2, 7, 8)
    results = []
    for fused in (False, True):
        attn.fused_attn = fused
        attn.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = attn(x)
        out.float().square().sum().backward()
        assert out.dtype == dtype
        results.append((out, attn.temperature.grad, attn.qkv.weight.grad))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=tolerance)


def window_attention(window: int = 2) -> tuple[WindowAttention, LocalityWindowAttention]:
    usual = randomise(WindowAttention(8, 2, window_size=window))
    return usual, LocalityWindowAttention(usual)


def test_window_attention_is_swins_without_the_diagonal():
    """Reference: timm's, given the diagonal as a mask."""
    usual, local = window_attention()
    usual.fused_attn = False
    mask = torch.where(torch.rand(3, 4, 4) < 0.2, -100.0, 0.0)
    diagonal = torch.zeros(4, 4).fill_diagonal_(-torch.inf)
    x = torch.randn(6, 4, 8)
    torch.testing.assert_close(local(x), usual(x, diagonal[None]))
    torch.testing.assert_close(local(x, mask), usual(x, mask + diagonal))


@pytest.mark.parametrize("masked", [False, True])
def test_fused_and_plain_window_attention_agree(masked):
    _, local = window_attention()
    mask = torch.where(torch.rand(3, 4, 4) < 0.2, -100.0, 0.0) if masked else None
    x, results = torch.randn(6, 4, 8), []
    for fused in (False, True):
        local.fused_attn = fused
        local.zero_grad()
        out = local(x, mask)
        out.square().mean().backward()
        results.append((out, local.temperature.grad, local.relative_position_bias_table.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_a_window_of_one_cell_attends_to_itself():
    _, local = window_attention(window=1)
    x = torch.randn(5, 1, 8)
    value = nn.functional.linear(x, local.qkv.weight[16:], local.qkv.bias[16:])
    torch.testing.assert_close(local(x), local.proj(value))


def test_talking_heads_that_do_not_mix_are_locality_attention():
    plain = LocalitySelfAttention(embed_dim=8, num_heads=2)
    talking = TalkingHeadsLocalityAttention(embed_dim=8, num_heads=2, head_dim=4)
    same = plain.state_dict() | {"mix_logits": torch.eye(2), "mix_weights": torch.eye(2)}
    talking.load_state_dict(same)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(talking(x), plain(x))


def test_talking_heads_mask_the_diagonal_whatever_the_sign_of_the_mixture():
    """Of two tokens each sees the other alone: only values and their mixture are left."""
    talking = TalkingHeadsLocalityAttention(embed_dim=8, num_heads=2, head_dim=4)
    nn.init.constant_(talking.mix_logits, -1.0)
    x = torch.randn(3, 2, 8)
    value = (x @ talking.qkv.weight[16:].mT).flip(1).unflatten(2, (2, 4))
    mixed = value * talking.mix_weights.sum(1)[:, None]
    torch.testing.assert_close(talking(x), talking.proj(mixed.flatten(2)))


def test_heads_mix_by_row_before_and_after_the_softmax():
    talking = TalkingHeadsLocalityAttention(embed_dim=6, num_heads=3, head_dim=2, qkv_bias=True)
    randomise(talking)
    x, context = torch.randn(2, 1, 6), torch.randn(2, 4, 6)
    weight, bias = talking.qkv.weight, talking.qkv.bias
    q = nn.functional.linear(x, weight[:6], bias[:6]).unflatten(2, (3, 2))
    k, v = nn.functional.linear(context, weight[6:], bias[6:]).unflatten(2, (2, 3, 2)).unbind(2)
    logits = torch.einsum("bthd,bshd,h->bhts", q, k, talking.temperature)
    weights = torch.einsum("gh,bhts->bgts", talking.mix_logits, logits).softmax(-1)
    weights = torch.einsum("gh,bhts->bgts", talking.mix_weights, weights)
    expected = talking.proj(torch.einsum("bhts,bshd->bthd", weights, v).flatten(2))
    torch.testing.assert_close(talking(x, context), expected)
