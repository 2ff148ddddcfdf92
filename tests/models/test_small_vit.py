import pytest
import timm
import torch

from smallvit.models.transformer import SmallTransformer, TransformerBackbone


def tiny(name: str = "vit_tiny_dwconv", **settings: object) -> SmallTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.create_model(name, **{**sizes, **settings}).eval()


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "depthwise"), [("convstem", 0), ("dwconv", 1)])
def test_parameters_are_those_of_vit_tiny_and_its_stem(name, depthwise):
    """Blocks and norm: timm's own ViT-Tiny; each convolution has nine weights and a bias."""
    with torch.device("meta"):
        model = timm.create_model(f"vit_tiny_{name}")
        reference = timm.create_model("vit_tiny_patch16_224")
    stem = 9 * 3 * 96 + 2 * 96 + 9 * 96 * 192 + 2 * 192 + 192 * 192 + 192
    blocks = count(reference.blocks) + depthwise * 12 * 4 * 192 * (9 + 1)
    positions, head = 64 * 192, 10 * (192 + 1)
    assert count(model) == stem + positions + blocks + count(reference.norm) + head


def test_blocks_are_those_of_timm():
    """Reference: timm's blocks with the same weights, loaded by name."""
    reference = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=16, depth=2, num_heads=2, num_classes=0
    ).eval()
    blocks = tiny("vit_tiny_convstem").blocks
    blocks.load_state_dict(reference.blocks.state_dict())
    x = expected = torch.randn(2, 6, 16)
    for block in blocks.eval():
        x = block(x, (2, 3))
    torch.testing.assert_close(x, reference.blocks(expected))


def test_logits_read_the_mean_of_the_patch_tokens():
    model, images = tiny(), torch.randn(2, 3, 16, 16)
    tokens = TransformerBackbone(model)(images)
    assert model.cls_token is None
    assert tokens.cls is None
    torch.testing.assert_close(model(images), model.head(tokens.patch.mean(dim=1)))


def test_a_class_token_can_be_asked_for():
    model, images = tiny(global_pool="token"), torch.randn(2, 3, 16, 16)
    tokens = model.forward_features(images)
    assert tokens.shape == (2, 1 + 64, 16)
    torch.testing.assert_close(model(images), model.head(tokens[:, 0]))


def test_only_one_of_the_two_convolves_in_its_mlp():
    assert all(block.mlp.dwconv is not None for block in tiny("vit_tiny_dwconv").blocks)
    assert all(block.mlp.dwconv is None for block in tiny("vit_tiny_convstem").blocks)


@pytest.mark.parametrize(("img_size", "patch_size"), [(32, 4), (64, 8), (224, 16), (60, 4)])
def test_the_patch_is_a_power_of_two(img_size, patch_size):
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_dwconv", img_size=img_size)
    assert model.patch_size == patch_size
    assert model.grid_size == (img_size // patch_size, img_size // patch_size)
