import pytest
import torch
import torch.nn.functional as F

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.models.initialize import position_table
from smallvit.models.registry import create_backbone


def build(weight_init: str, name: str = "vit_tiny", **settings):
    torch.manual_seed(0)
    config = ModelConfig(name=name, weight_init=weight_init, **settings)
    return create_backbone(config, num_classes=5, image_size=32)


def test_trunc_normal_is_the_architectures_own():
    torch.manual_seed(0)
    own = create_backbone(ModelConfig(depth=1), num_classes=5, image_size=32).model.state_dict()
    for key, value in build("trunc_normal", depth=1).model.state_dict().items():
        assert torch.equal(value, own[key]), key


def test_mimetic_queries_times_keys_are_noise_plus_a_diagonal():
    """Closed form for one head: 0.7 Z + 0.7 I, with Z of variance 1 over the width."""
    attention = build("mimetic", depth=1, num_heads=1).model.blocks[0].attn
    queries, keys, values = attention.qkv.weight.chunk(3)
    product = queries.T @ keys
    diagonal = product.diagonal()
    assert abs(diagonal.mean().item() - 0.7) < 0.02
    off = product - torch.diag(diagonal)
    assert abs(off.std().item() - 0.7 / 192**0.5) < 0.002
    mixed = values.T @ attention.proj.weight.T
    assert abs(mixed.diagonal().mean().item() + 0.4) < 0.02


def test_mimetic_heads_are_the_best_factors_of_their_rank():
    """Queries and keys share each singular value evenly, so their columns have equal norms."""
    attention = build("mimetic", depth=1).model.blocks[0].attn
    queries, keys, _ = (part[:64] for part in attention.qkv.weight.chunk(3))
    torch.testing.assert_close(queries.norm(dim=1), keys.norm(dim=1), rtol=1e-4, atol=1e-4)
    gram = queries @ queries.T
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_heads", [3, 12])
def test_impulse_heads_attend_to_one_neighbour(num_heads):
    """From positions alone, every head peaks at the same offset of at most one cell."""
    backbone = build("impulse", depth=1, num_heads=num_heads)
    attention = backbone.model.blocks[0].attn
    x = F.layer_norm(backbone.model.pos_embed[0, 1:], (192,))
    qkv = F.linear(x, attention.qkv.weight).view(64, 3, num_heads, -1)
    logits = torch.einsum("ihd,jhd->hij", qkv[:, 0], qkv[:, 1]) * attention.scale
    offsets = set()
    inner = [8 * row + column for row in range(1, 7) for column in range(1, 7)]
    for head in logits:
        found = {(head[i].argmax().item() - i) for i in inner}
        assert len(found) == 1
        offsets |= found
    assert offsets <= {row + column for row in (-8, 0, 8) for column in (-1, 0, 1)}
    assert len(offsets) > 1


def test_impulse_puts_much_of_the_attention_on_its_neighbour():
    backbone = build("impulse", depth=1)
    attention = backbone.model.blocks[0].attn
    x = F.layer_norm(backbone.model.pos_embed[0, 1:], (192,))
    qkv = F.linear(x, attention.qkv.weight).view(64, 3, 3, -1)
    weights = (torch.einsum("ihd,jhd->hij", qkv[:, 0], qkv[:, 1]) * attention.scale).softmax(-1)
    assert 0.4 < weights.amax(dim=-1).mean().item() < 0.8


def test_positions_are_sines_of_column_then_row():
    table = position_table((3, 4), 8).unflatten(0, (3, 4))
    # Wavelengths 1 and 10,000; columns first, sines before cosines.
    torch.testing.assert_close(table[1, 2, 0], torch.tensor(2.0).sin())
    torch.testing.assert_close(table[1, 2, 3], torch.tensor(2e-4).cos())
    torch.testing.assert_close(table[1, 2, 4], torch.tensor(1.0).sin())


def test_learned_positions_become_sines_and_the_class_token_keeps_none():
    model = build("impulse", depth=1).model
    assert not model.pos_embed[:, 0].any()
    torch.testing.assert_close(model.pos_embed[0, 1:], position_table((8, 8), 192))


@pytest.mark.parametrize("name", ["gani_swin", "t2t_vit_dense"])
def test_impulse_needs_absolute_positions_in_every_block(name):
    with pytest.raises(ConfigError, match="reads absolute positions in every block, which"):
        build("impulse", name=name)


def test_a_cnn_has_nothing_to_set():
    with pytest.raises(ConfigError, match="sets queries, keys and values, which SmallResNet"):
        build("mimetic", name="resnet8_small", width=4)


@pytest.mark.parametrize("name", ["gani_cait", "lvvit_tiny", "sl_vit", "t2t_vit_7"])
@pytest.mark.parametrize("weight_init", ["mimetic", "impulse"])
def test_other_transformers_take_them_too(name, weight_init):
    tokens = build(weight_init, name, depth=1)(torch.randn(2, 3, 32, 32))
    assert tokens.patch.isfinite().all()


@pytest.mark.parametrize(
    ("name", "mixtures"),
    [
        ("gani_cait", ("proj_l.weight", "proj_w.weight")),
        ("sl_cait", ("mix_logits", "mix_weights")),
    ],
)
@pytest.mark.parametrize("weight_init", ["mimetic", "impulse"])
def test_talking_heads_start_apart(weight_init, name, mixtures):
    """At 0.02, their usual size, a mixture of the logits would level whatever was set."""
    attention = build(weight_init, name, depth=1).model.blocks[0].attn
    for mixture in mixtures:
        assert torch.equal(attention.get_parameter(mixture), torch.eye(4))


def test_mimetic_fills_heads_wider_than_the_tokens_as_far_as_it_goes():
    """Closed form of one head of 64 channels over 16: no rank is lost."""
    torch.manual_seed(0)
    attention = build("mimetic", "sl_cait", embed_dim=16, depth=1, num_heads=4).model.blocks[0].attn
    queries, keys, _ = (part[:64] for part in attention.qkv.weight.chunk(3))
    assert torch.linalg.matrix_rank(queries[:16].T @ keys[:16]) == 16
    assert (queries.T @ keys).diagonal().mean().item() == pytest.approx(0.7, abs=0.2)
    assert queries[16:].std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("weight_init", ["mimetic", "impulse"])
def test_models_without_values_can_be_counted(weight_init):
    with torch.device("meta"):
        model = build(weight_init, depth=1).model
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("num_heads", [3, 12])
def test_impulse_does_not_blow_patches_up(num_heads):
    """Patches of an image move the logits by less than the impulse itself."""
    backbone = build("impulse", depth=1, num_heads=num_heads)
    attention = backbone.model.blocks[0].attn
    patches = backbone.embed(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    x = F.layer_norm(backbone.model._pos_embed(patches), (192,))
    qkv = F.linear(x, attention.qkv.weight).view(4, 65, 3, num_heads, -1)
    logits = torch.einsum("bihd,bjhd->bhij", qkv[:, :, 0], qkv[:, :, 1]) * attention.scale
    assert logits.std().item() < 4
