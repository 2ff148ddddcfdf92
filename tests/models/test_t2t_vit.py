import math

import pytest
import timm
import torch
from timm.layers.attention import Attention
from torch import nn

from smallvit.core.errors import ConfigError
from smallvit.models.blocks import Block
from smallvit.models.t2t_vit import (
    GhostAttention,
    GhostMlp,
    SqueezeExciteAttention,
    Transition,
)

TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def count(name: str, **arguments) -> int:
    with torch.device("meta"):
        model = timm.create_model(name, **arguments)
    return sum(p.numel() for p in model.parameters())


def linear(fan_in: int, fan_out: int) -> int:
    return (fan_in + 1) * fan_out


def performer(fan_in: int) -> int:
    """Norms, keys-queries-values, projection, MLP, and 32 fixed directions."""
    return 2 * fan_in + 2 * 64 + linear(fan_in, 192) + 3 * linear(64, 64) + 32 * 64


def transformer(fan_in: int) -> int:
    """Norms, queries-keys-values without bias, projection, MLP."""
    return 2 * fan_in + 2 * 64 + fan_in * 192 + 3 * linear(64, 64)


def block(width: int, ratio: int) -> int:
    attention = 3 * width * width + linear(width, width)
    return 4 * width + attention + linear(width, ratio * width) + linear(ratio * width, width)


def around(width: int, token_layer, final: int | None = None) -> int:
    """Stem, class token, 197 positions, last norm, classifier."""
    final = final or width
    stem = token_layer(3 * 49) + token_layer(64 * 9) + linear(64 * 9, width)
    return stem + 198 * width + 2 * final + linear(final, 1000)


@pytest.mark.parametrize(
    ("size", "width", "depth", "ratio", "published"),
    [
        ("7", 256, 7, 2, (4.310, 4.306)),
        ("10", 256, 10, 2, (5.889, 5.885)),
        ("12", 256, 12, 2, (6.942, 6.937)),
        ("14", 384, 14, 3, (21.546, 21.541)),
        ("19", 448, 19, 3, (39.177, 39.173)),
        ("24", 512, 24, 3, (64.106, 64.101)),
    ],
)
def test_parameters_are_those_of_the_paper(size, width, depth, ratio, published):
    """Acceptance row 3, in millions, and the exact count from the layers' sizes."""
    for name, layer, millions in zip(("", "t_"), (performer, transformer), published, strict=True):
        expected = around(width, layer) + depth * block(width, ratio)
        assert count(f"t2t_vit_{name}{size}") == expected
        assert round(expected / 1e6, 3) == millions


@pytest.mark.parametrize(("size", "logged"), [("7", 4_310_222), ("14", 21_545_550)])
def test_parameters_are_those_that_the_authors_logged(size, logged):
    """Reference: the logs in yitu-opensource/T2T-ViT#24 and #19."""
    assert count(f"t2t_vit_{size}") == logged


def test_parameters_of_the_variants():
    plain = around(384, performer) + 14 * block(384, 3)
    assert count("t2t_vit_14_resnext") == plain
    assert count("t2t_vit_14_se") == plain + 14 * 2 * 384 * 24
    assert count("t2t_vit_14_wide") == around(768, performer) + 4 * block(768, 3)
    ghost = 4 * 384 + 3 * (384 * 192 + 192) + linear(384, 384)
    ghost += linear(384, 384) + 2 * 384 + linear(3 * 384, 384)
    assert count("t2t_vit_16_ghost") == around(384, performer) + 16 * ghost


def test_parameters_of_dense_blocks():
    expected, width = around(128, performer, final=584), 128
    for stage, depth in enumerate((3, 6, 6, 4)):
        for _ in range(depth):
            expected += block(width, 2) + linear(width, 64)
            width += 64
        if stage < 3:
            expected += linear(width, width // 2)
            width //= 2
    assert width == 584
    assert count("t2t_vit_dense") == expected


@pytest.mark.parametrize(
    ("img_size", "patch_size", "grid"),
    [
        (32, 4, (8, 8)),
        (64, 8, (8, 8)),
        (224, 16, (14, 14)),
        (96, 8, (12, 12)),
        (12, 4, (3, 3)),
        (16, 4, (4, 4)),
        (28, 4, (7, 7)),
        ((32, 48), 4, (8, 12)),
    ],
)
def test_small_images_get_small_patches(img_size, patch_size, grid):
    with torch.device("meta"):
        model = timm.create_model("t2t_vit_7", img_size=img_size, **TINY)
    assert (model.patch_size, model.grid_size) == (patch_size, grid)
    assert model.pos_embed.shape == (1, 1 + grid[0] * grid[1], 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": 2, "img_size": 64}, r"patch_size \(2\) .* 64 x 64 px .*; 4, 8, 16 would"),
        ({"patch_size": 16, "img_size": 32}, r"patch_size \(16\) .* 32 x 32 px .*; 4, 8 would"),
        ({"patch_size": 8, "img_size": 28}, r"patch_size \(8\) .* 28 x 28 px .*; 4 would"),
        ({"img_size": 30}, r"no patch of this stem .* 30 x 30 .*--data.image-size 24 or 32 would"),
        ({"num_heads": 3}, r"num_heads \(3\) must divide embed_dim \(16\); 1, 2, 4 would"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(arguments, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        timm.create_model("t2t_vit_7", **{**TINY, **arguments})


def test_ghost_blocks_refuse_odd_widths_and_broken_ratios():
    with pytest.raises(ConfigError, match=r"embed_dim \(15\), which must be even; 16 would do"):
        timm.create_model("t2t_vit_16_ghost", **{**TINY, "embed_dim": 15, "num_heads": 3})
    with pytest.raises(ConfigError, match=r"mlp_ratio \(2.5\) of a ghost block .* 2 would do"):
        timm.create_model("t2t_vit_16_ghost", mlp_ratio=2.5, **TINY)


def test_dense_widths_that_the_heads_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"num_heads \(8\) must divide embed_dim \(132\)"):
        timm.create_model("t2t_vit_dense", img_size=32, growth_rate=4)


def test_squeezing_nothing_weights_every_channel_by_one_half():
    squeezed = SqueezeExciteAttention(32, num_heads=4)
    nn.init.zeros_(squeezed.se_layer.fc[2].weight)
    plain = Attention(32, 4)
    plain.load_state_dict(
        {key: p for key, p in squeezed.state_dict().items() if "se_layer" not in key}
    )
    torch.testing.assert_close(squeezed(noise(2, 7, 32)), plain(noise(2, 7, 32)) / 2)


def test_squeezing_weights_channels_by_the_mean_token():
    attention = SqueezeExciteAttention(32, num_heads=4)
    x = noise(2, 7, 32)
    gate = attention.se_layer(x) / x
    expected = attention.se_layer.fc(sum(x.unbind(1)) / 7)
    torch.testing.assert_close(gate, expected[:, None].expand(2, 7, 32), rtol=1e-4, atol=1e-5)


def test_ghost_attention_is_attention_whose_matrices_are_half_copies():
    """Reference: timm's attention with every second half of rows a scaled first half."""
    ghost, plain = GhostAttention(16, num_heads=2), Attention(16, 2, qkv_bias=False)
    rows = []
    for name in "qkv":
        half = getattr(ghost, name).weight
        rows += [half, half * getattr(ghost, f"cheap_operation_{name}").weight[:, 0]]
    plain.load_state_dict(
        {
            "qkv.weight": torch.cat(rows),
            "proj.weight": ghost.proj.weight,
            "proj.bias": ghost.proj.bias,
        }
    )
    torch.testing.assert_close(ghost(noise(2, 7, 16)), plain(noise(2, 7, 16)))


def test_ghost_mlp_scales_copies_as_convolutions_of_one_tap_do():
    """Reference: torch's grouped convolution, with the weights as they are stored."""
    mlp = GhostMlp(embed_dim=8, hidden_dim=24)
    x = noise(2, 5, 8)
    first = nn.functional.gelu(mlp.fc1(x))
    copies = [
        nn.functional.gelu(nn.functional.conv1d(first.mT, op.weight, groups=8).mT)
        for op in (mlp.cheap_operation2, mlp.cheap_operation3)
    ]
    torch.testing.assert_close(mlp(x, (1, 5)), mlp.fc2(torch.cat([first, *copies], dim=2)))


def test_fused_and_plain_attention_of_the_variants_agree():
    for build in (SqueezeExciteAttention, GhostAttention):
        attention, found = build(16, num_heads=2), []
        for fused in (False, True):
            attention.fused_attn = fused
            found.append(attention(noise(2, 7, 16)))
        torch.testing.assert_close(*found)


def test_a_dense_block_keeps_what_it_reads_and_appends_to_it():
    with torch.no_grad():
        model = timm.create_model("t2t_vit_dense", img_size=16, num_classes=5).eval()
        x = noise(1, 17, 128)
        y = model.blocks[0](x, (4, 4))
        halved = model.blocks[3](noise(1, 17, 320), (4, 4))
    assert y.shape == (1, 17, 192)
    assert torch.equal(y[..., :128], x)
    assert halved.shape == (1, 17, 160)


def test_dense_levels_say_their_widths():
    model = timm.create_model("t2t_vit_dense", img_size=16, num_classes=5).eval()
    with torch.no_grad():
        levels = model.forward_intermediates(noise(1, 3, 16, 16), intermediates_only=True)
    assert [level.shape[1] for level in levels] == [i["num_chs"] for i in model.feature_info]


def test_drop_path_rises_linearly_over_the_blocks():
    with torch.device("meta"):
        plain = timm.create_model("t2t_vit_7", drop_path_rate=0.3)
        dense = timm.create_model("t2t_vit_dense", drop_path_rate=0.36)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in plain.blocks]
    assert rates == pytest.approx([0.05 * i for i in range(7)])
    blocks = [block for block in dense.blocks if isinstance(block, Block)]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.02 * i for i in range(19)])
    assert sum(isinstance(block, Transition) for block in dense.blocks) == 3


def test_positions_are_fixed_sines_and_cosines():
    model = timm.create_model("t2t_vit_7", img_size=16, **TINY)
    assert not model.pos_embed.requires_grad
    assert float(model.pos_embed[0, 3, 4]) == pytest.approx(math.sin(3 / 10_000 ** (4 / 16)))
    assert float(model.pos_embed[0, 3, 5]) == pytest.approx(math.cos(3 / 10_000 ** (4 / 16)))


def test_queries_are_scaled_by_the_width_of_a_head():
    with torch.device("meta"):
        model = timm.create_model("t2t_vit_14_resnext")
    assert {block.attn.scale for block in model.blocks} == {(384 / 32) ** -0.5}
    assert {block.norm1.eps for block in model.blocks} == {model.norm.eps} == {1e-5}


def test_only_performer_tokens_drop_out_by_default():
    performer_tokens, plain_tokens = (
        timm.create_model(name, img_size=16, drop_path_rate=0.0, **TINY).train()
        for name in ("t2t_vit_7", "t2t_vit_t_7")
    )
    x = noise(1, 3, 16, 16)
    assert torch.equal(plain_tokens.forward_features(x), plain_tokens.forward_features(x))
    assert not torch.equal(
        performer_tokens.forward_features(x), performer_tokens.forward_features(x)
    )
