import copy
import warnings

import pytest
import torch
from PIL import Image
from torch import nn

from smallvit.core.model_config import ModelConfig
from smallvit.inference.token_pictures import attention_maps, draw_tokens, token_colors
from smallvit.models.registry import create_backbone
from smallvit.models.tokens import AbstractBackbone

SIDE, N = 16, 16  # pixels, patches of the small ViT
SMALL = {
    "gani_vit": {"depth": 2, "embed_dim": 16, "num_heads": 2},
    "gani_cait": {"depth": 2, "embed_dim": 16, "num_heads": 2},
    "lvvit_tiny": {"depth": 2, "embed_dim": 16, "num_heads": 2},
    "t2t_vit_7": {"depth": 2, "embed_dim": 16, "num_heads": 2},
    "sl_vit": {"depth": 2, "embed_dim": 16, "num_heads": 2},
    "sl_cait": {"depth": 2, "embed_dim": 16, "num_heads": 2},
    "cct_7_3x1": {"depth": 2, "embed_dim": 16, "num_heads": 2},
    "gani_swin": {},
    "sl_swin": {},
    "resnet8_small": {},
}
KINDS = {
    "cct_7_3x1": "received",
    "gani_swin": "windows",
    "sl_swin": "windows",
    "resnet8_small": "similarity",
}


def build(name: str, image_size: int = 32) -> AbstractBackbone:
    torch.manual_seed(0)
    config = ModelConfig(name=name, **SMALL[name])
    return create_backbone(config, num_classes=3, image_size=image_size)


def noise(num: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(num, 3, height, width, generator=torch.Generator().manual_seed(0))


def levels(num: int, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (num, 3, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def no_autocast() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def draw(backbone: AbstractBackbone, images: torch.Tensor, folder) -> list[tuple[int, int]]:
    """Return the sizes of the pictures."""
    paths = draw_tokens(
        backbone,
        images,
        (0.5, 0.5, 0.5),
        (0.2, 0.2, 0.2),
        folder,
        title="made",
        autocast=no_autocast,
    )
    assert [path.name for path in paths] == ["tokens_pca.png", "attention.png"]
    sizes = []
    for path in paths:
        with Image.open(path) as image:
            sizes.append(image.size)
    return sizes


def test_a_class_token_without_preferences_attends_to_all_tokens_alike(small_vit):
    backbone = small_vit()
    nn.init.zeros_(backbone.model.blocks[-1].attn.qkv.weight)
    found = attention_maps(backbone, noise(2, SIDE, SIDE))
    assert found.kind == "class_token"
    torch.testing.assert_close(found.maps, torch.full((2, 2, 4, 4), 1 / (N + 1)))


@pytest.mark.parametrize("fused", [True, False])
def test_maps_are_the_class_tokens_row_of_the_softmax_worked_out_by_hand(
    small_vit, monkeypatch, fused
):
    monkeypatch.setattr("smallvit.models.attention.prefers_fused", lambda *_: fused)
    backbone, images = small_vit().eval(), noise(2, SIDE, SIDE)
    model, seen = backbone.model, {}
    model.blocks[-1].attn.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    found = attention_maps(backbone, images).maps
    qkv = (seen["x"] @ model.blocks[-1].attn.qkv.weight.T + model.blocks[-1].attn.qkv.bias).detach()
    q, k, _ = qkv.unflatten(2, (3, 2, 8)).unbind(2)  # (B, T, heads, 8)
    logits = torch.einsum("bhd,bthd->bht", q[:, 0], k) / 8**0.5
    by_hand = logits.softmax(dim=-1)[..., 1:].unflatten(2, (4, 4))
    torch.testing.assert_close(found, by_hand)


@pytest.mark.parametrize("name", SMALL)
def test_every_architecture_shows_what_it_has(name):
    found = attention_maps(build(name), noise(2, 32, 32))
    assert found.kind == KINDS.get(name, "class_token")
    total = found.maps.sum(dim=(2, 3))
    if found.kind == "similarity":
        assert found.maps.abs().max() <= 1 + 1e-6
    elif found.kind != "class_token":
        torch.testing.assert_close(total, torch.ones_like(total))
    else:  # the rest is the class token's attention to itself, which locality masks
        assert (total > 0.9).all()
        assert (total <= 1 + 1e-6).all()


class FirstCell(nn.Module):
    """A softmax of logits that all point to the upper left cell of their window."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        first = torch.zeros_like(logits)
        first[..., 0] = 1e4
        return first.softmax(dim=-1)


def test_windows_are_put_back_where_they_were(monkeypatch):
    monkeypatch.setattr("smallvit.models.attention.prefers_fused", lambda *_: False)
    backbone = build("gani_swin")
    last = backbone.model.layers[-1].blocks[-1]
    last.shift_size, last.attn.softmax = (2, 2), FirstCell()
    found = attention_maps(backbone, noise(1, 64, 64)).maps  # 8 x 8 cells, windows of 4 x 4
    assert found[0, 0].nonzero().tolist() == [[2, 2], [2, 6], [6, 2], [6, 6]]
    torch.testing.assert_close(found.sum(dim=(2, 3)), torch.ones(1, 12))


def test_similarity_of_equal_tokens_is_one():
    backbone = build("resnet8_small")
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.bias)
    found = attention_maps(backbone, noise(2, 32, 32))
    torch.testing.assert_close(found.maps, torch.ones_like(found.maps))


def test_looking_leaves_the_network_as_it_was_and_gives_the_same_again():
    backbone = build("gani_swin").train()
    backbone.model.layers[0].eval()  # frozen
    modes = [module.training for module in backbone.modules()]
    hooks = [len(module._forward_pre_hooks) for module in backbone.modules()]
    before, state = copy.deepcopy(backbone.state_dict()), torch.get_rng_state()
    images = noise(2, 32, 32)
    first, second = attention_maps(backbone, images), attention_maps(backbone, images)
    assert torch.equal(first.maps, second.maps)
    assert [module.training for module in backbone.modules()] == modes
    assert [len(module._forward_pre_hooks) for module in backbone.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])


def test_tokens_along_one_line_are_coloured_by_their_place_on_it():
    """Closed form: one component holds all variance; the two others have no span."""
    place = torch.linspace(-1, 1, 101)  # quantiles fall on them
    direction = torch.tensor([0.6, 0.0, 0.8, 0.0])
    colours, part = token_colors((place[:, None] * direction)[None])
    assert part == pytest.approx(1)
    expected = ((place + 0.96) / 1.92).clamp(0, 1)  # 2nd to 98th percentile
    torch.testing.assert_close(colours[0, :, 0], expected)
    assert (colours[0, :, 1:] == 0.5).all()


def test_colours_do_not_depend_on_the_sign_that_a_component_came_with():
    patch = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0))
    colours, _ = token_colors(patch)
    torch.testing.assert_close(token_colors(3 * patch + 1)[0], colours)
    torch.testing.assert_close(token_colors(patch.flip(0))[0].flip(0), colours)
    assert (token_colors(torch.ones(1, 4, 2))[0] == 0.5).all()


@pytest.mark.parametrize("num", [1, 8])
def test_pictures_are_drawn_of_one_image_and_of_eight(small_vit, tmp_path, num):
    colours, attention = draw(small_vit(), levels(num), tmp_path)
    step = 15 + 128 + 10
    assert colours[1] == 3 * step - 10 + 58 + 16  # images, 16 px, 32 px
    assert attention[1] == 30 + num * (15 + 128 + 5) - 5 + 58 + 16
    assert num == 1 or colours[0] == num * (128 + 10) - 10 + 32


def test_images_that_are_not_square_keep_their_shape(small_vit, tmp_path):
    colours, _ = draw(small_vit(), levels(2, 16, 32), tmp_path)
    step = 15 + 64 + 10
    assert colours[1] == 3 * step - 10 + 58 + 16


def test_a_network_of_one_size_is_drawn_at_that_size(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="patches of")
        config = ModelConfig(name="mixer_s16_224", patch_size=None)
        backbone = create_backbone(config, num_classes=0, image_size=48)
    colours, _ = draw(backbone, levels(1, 48, 48), tmp_path)
    assert colours[1] == 2 * (15 + 144 + 10) - 10 + 58 + 16


def test_bfloat16_is_drawn_too(small_vit, tmp_path):
    paths = draw_tokens(
        small_vit(),
        levels(2),
        (0.5, 0.5, 0.5),
        (0.2, 0.2, 0.2),
        tmp_path / "plots",
        title="made",
        autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    )
    assert all(path.is_file() for path in paths)
