import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smallvit.models.t2t_module import (
    TokenAttention,
    TokenPerformer,
    TokensToToken,
    TokenTransformer,
    draw_features,
    performer_attention,
    positive_features,
)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax_attention(q, k, v, scale=1.0):
    return (scale * q @ k.mT).softmax(dim=-1) @ v


@pytest.mark.parametrize("token_layer", ["performer", "transformer"])
@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_grid_is_the_image_over_the_patch(patch_size, token_layer):
    stem = TokensToToken(
        patch_size=patch_size, embed_dim=6, token_dim=8, token_layer=token_layer
    ).eval()
    assert stem(noise(2, 3, 32, 48)).shape == (2, 32 // patch_size, 48 // patch_size, 6)


@pytest.mark.parametrize(
    ("patch_size", "splits"),
    [
        (16, [(7, 4, 2), (3, 2, 1), (3, 2, 1)]),
        (8, [(3, 2, 1), (3, 2, 1), (3, 2, 1)]),
        (4, [(3, 2, 1), (3, 2, 1)]),
    ],
)
def test_soft_splits_with_a_linear_map_a_token_are_convolutions(patch_size, splits):
    """Reference: T2T-ViT's splits of 16 px (table 1), and those of SPT's t2t.py for 4 and 8."""
    stem = TokensToToken(patch_size=patch_size, embed_dim=6, token_dim=5).double()
    stem.attention1 = nn.Linear(3 * splits[0][0] ** 2, 5).double()
    if len(splits) > 2:
        stem.attention2 = nn.Linear(45, 5).double()
    expected = x = noise(2, 3, 32, 48).double()
    layers = [stem.attention1, stem.attention2, stem.project]
    for (kernel, stride, padding), layer in zip(splits, filter(None, layers), strict=True):
        weight = layer.weight.unflatten(1, (-1, kernel, kernel))
        expected = F.conv2d(expected, weight, layer.bias, stride, padding)
    torch.testing.assert_close(stem(x), expected.permute(0, 2, 3, 1))


def test_every_token_sees_the_whole_image():
    stem = TokensToToken(patch_size=4, embed_dim=6, token_dim=8).double().eval()
    changed = noise(1, 3, 32, 32).double()
    before = stem(changed)
    changed[:, :, -1, -1] += 1
    assert (stem(changed) - before).abs().amax(dim=-1).min() > 1e-12


def test_token_attention_scales_by_its_input_and_skips_by_its_values():
    attention = TokenAttention(in_dim=20, token_dim=4)
    x = noise(2, 7, 20)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    expected = v + attention.proj(softmax_attention(q, k, v, scale=20**-0.5))
    torch.testing.assert_close(attention(x), expected)


def test_fused_and_plain_token_attention_agree():
    layer = TokenTransformer(in_dim=20, token_dim=4)
    found = []
    for fused in (False, True):
        layer.attn.fused_attn = fused
        found.append(layer(noise(2, 7, 20)))
    torch.testing.assert_close(*found)


def test_performer_attention_is_the_sum_over_features_of_the_paper():
    """Reference: explicit loops over tokens and features."""
    q, k, v, w = noise(5, 3), noise(5, 3, seed=2), noise(5, 3, seed=3), noise(4, 3, seed=4)

    def kernel(x, y):
        return sum(
            math.exp(float(u @ x - x @ x / 2)) * math.exp(float(u @ y - y @ y / 2)) / len(w)
            for u in w
        )

    expected = []
    for i in range(5):
        weights = [kernel(q[i], k[j]) for j in range(5)]
        mixed = sum(weight * row for weight, row in zip(weights, v, strict=True))
        expected.append(mixed / (sum(weights) + 1e-8))
    found = performer_attention(q[None], k[None], v[None], w)
    torch.testing.assert_close(found[0], torch.stack(expected))


def test_the_kernel_is_unbiased():
    """E[phi(x) phi(y)] = exp(x.y), from as many features a draw as the stem has: half the width."""
    torch.manual_seed(0)
    x, y = 0.5 * F.normalize(noise(2, 8), dim=1)
    draws = [draw_features(4, 8) for _ in range(5000)]
    w = torch.cat(draws)
    found = (positive_features(x[None], w) * positive_features(y[None], w)).sum()
    # One feature's standard deviation is below 1.4 exp(x.y): 1 % over 20 000.
    assert float(found) == pytest.approx(math.exp(float(x @ y)), rel=0.05)
    # Lengths above all: directions of unit length would give 0.8 of it.
    assert w.square().sum(dim=1).mean() == pytest.approx(8.0, rel=0.02)


def test_features_are_orthogonal_by_blocks():
    w = F.normalize(draw_features(20, 8), dim=1)
    for block in w.split(8):
        torch.testing.assert_close(block @ block.mT, torch.eye(len(block)), rtol=0, atol=1e-5)


def short_vectors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw queries and keys of length 0.7; a feature's variance grows like exp(length squared)."""
    return 0.25 * noise(1, 12, 8), 0.25 * noise(1, 12, 8, seed=2), noise(1, 12, 8, seed=3)


def test_error_against_softmax_attention_shrinks_as_features_grow():
    """Acceptance row 4; theory: eight times the features, 0.35 of the error."""
    torch.manual_seed(0)
    q, k, v = short_vectors()
    exact = softmax_attention(q, k, v)
    errors = []
    for num_features in (8, 64, 512, 4096):
        draws = [draw_features(num_features, 8) for _ in range(64)]
        estimates = [performer_attention(q, k, v, w) for w in draws]
        errors.append(torch.stack([(y - exact).norm() for y in estimates]).mean())
    assert all(more < 0.6 * fewer for fewer, more in pairwise(errors))
    assert errors[-1] < 0.025 * exact.norm()


def test_orthogonal_features_err_less_than_independent_ones():
    torch.manual_seed(0)
    q, k, v = short_vectors()
    exact = softmax_attention(q, k, v)
    error = {"orthogonal": 0.0, "independent": 0.0}
    for _ in range(600):
        draws = {"orthogonal": draw_features(8, 8), "independent": torch.randn(8, 8)}
        for name, w in draws.items():
            error[name] += float((performer_attention(q, k, v, w) - exact).square().sum())
    assert error["orthogonal"] < 0.97 * error["independent"]


def test_performer_adds_to_its_values_and_orders_them_keys_queries_values():
    layer = TokenPerformer(in_dim=10, token_dim=6).eval()
    x = noise(2, 7, 10)
    k, q, v = layer.kqv(layer.norm1(x)).chunk(3, dim=-1)
    y = v + layer.proj(performer_attention(q, k, v, layer.w))
    torch.testing.assert_close(layer(x), y + layer.mlp(layer.norm2(y)))


def test_performer_attention_is_exact_under_autocast():
    q, k, v, w = noise(1, 9, 4), noise(1, 9, 4, seed=2), noise(1, 9, 4, seed=3), noise(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = performer_attention(q, k, v, w)
    assert found.dtype == torch.float32
    assert torch.equal(found, performer_attention(q, k, v, w))


def test_features_depend_on_the_seed_at_construction_and_are_not_trained():
    def build(seed: int) -> TokenPerformer:
        torch.manual_seed(seed)
        return TokenPerformer(in_dim=10, token_dim=6).eval()

    layer, same, other = build(0), build(0), build(1)
    assert torch.equal(layer.w, same.w)
    assert not torch.equal(layer.w, other.w)
    assert not layer.w.requires_grad
    state = torch.get_rng_state()
    assert torch.equal(layer(noise(1, 5, 10)), layer(noise(1, 5, 10)))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("layer", [TokenPerformer, TokenTransformer])
def test_dropout_of_a_token_layer_is_an_argument(layer):
    x = noise(1, 5, 10)
    kept, dropped = (layer(in_dim=10, token_dim=6, drop=drop).train() for drop in (0.0, 0.5))
    assert torch.equal(kept(x), kept.eval()(x))
    assert not torch.equal(dropped(x), dropped.eval()(x))
