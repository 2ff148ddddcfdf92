import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from smallvit.models.blocks import Block, Mlp
from smallvit.models.transformer import SmallTransformer, TransformerBackbone


def tiny(**settings: object) -> SmallTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.create_model("cct_7_3x1", **{**sizes, **settings}).eval()


def test_parameters_are_those_of_the_paper():
    """3.76 M: table of README.md of SHI-Labs/Compact-Transformers."""
    attention = 3 * 256**2 + 256**2 + 256
    mlp = 2 * 256 * 512 + 512 + 256
    blocks = 7 * (attention + mlp + 2 * 2 * 256)
    stem, positions, pool, head = 9 * 3 * 256, 256 * 256, 256 + 1, 10 * (256 + 1)
    with torch.device("meta"):
        model = timm.create_model("cct_7_3x1")
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == stem + positions + blocks + 2 * 256 + pool + head
    assert round(total / 1e6, 2) == 3.76


@pytest.mark.filterwarnings("ignore:images of 224 x 224 px are cut into 784 patches")
@pytest.mark.parametrize(
    ("img_size", "patch_size", "tokens"), [(32, 2, 256), (64, 4, 256), (224, 8, 784)]
)
def test_larger_images_get_more_layers_in_the_tokenizer(img_size, patch_size, tokens):
    with torch.device("meta"):
        model = timm.create_model("cct_7_3x1", img_size=img_size)
    assert model.patch_size == patch_size == 2 ** len(model.patch_embed.layers)
    assert model.pos_embed.shape == (1, tokens, 256)


def test_dropouts_are_those_that_were_published():
    # SHI-Labs/Compact-Transformers@0365097, src/cct.py, which cct_7_3x1_32 leaves as they are:
    #   dropout=0., attention_dropout=0.1, stochastic_depth=0.1
    model = timm.create_model("cct_7_3x1")
    assert {block.attn.attn_drop.p for block in model.blocks} == {0.1}
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * i / 6 for i in range(7)])
    assert {block.attn.proj_drop.p for block in model.blocks} == {0.0}


def test_positions_start_wide():
    torch.manual_seed(0)
    positions = timm.create_model("cct_7_3x1").pos_embed
    assert positions.std().item() == pytest.approx(0.2, rel=0.02)


def test_sequence_pooling_with_zero_weights_is_the_mean():
    model, images = tiny(), torch.randn(2, 3, 16, 16)
    nn.init.zeros_(model.attention_pool.weight)
    tokens = TransformerBackbone(model)(images)
    torch.testing.assert_close(tokens.pooled, tokens.patch.mean(dim=1))


def test_sequence_pooling_weighs_tokens_by_a_softmax():
    model, images = tiny(), torch.randn(2, 3, 16, 16)
    nn.init.normal_(model.attention_pool.weight)
    tokens = TransformerBackbone(model)(images)
    scores = tokens.patch @ model.attention_pool.weight[0] + model.attention_pool.bias
    weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(tokens.cls, (weights[..., None] * tokens.patch).sum(dim=1))
    torch.testing.assert_close(model(images), model.head(tokens.cls))


class Zero(nn.Module):
    """A branch that adds nothing."""

    def forward(self, x: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        return torch.zeros_like(x)


def test_block_of_empty_branches_normalises():
    """Closed form: the second norm is on the residual stream, so that it alone is left."""
    x = torch.randn(2, 6, 4)
    block = Block(embed_dim=4, attn=Zero(), mlp=Zero(), norm_eps=1e-5, norms_stream=True)
    torch.testing.assert_close(block(x, (2, 3)), functional.layer_norm(x, (4,)))


def test_shortcut_of_the_mlp_starts_after_the_norm():
    """With attention that copies what it reads and an MLP of its own."""
    x = torch.randn(2, 6, 4)
    mlp = Mlp(embed_dim=4, hidden_dim=5)
    block = Block(embed_dim=4, attn=nn.Identity(), mlp=mlp, norm_eps=1e-5, norms_stream=True)
    normed = functional.layer_norm(x + functional.layer_norm(x, (4,)), (4,))
    expected = normed + mlp.fc2(functional.gelu(mlp.fc1(normed)))
    torch.testing.assert_close(block(x, (2, 3)), expected)
