import warnings

import pytest
import torch
import torch.nn.functional as F

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.models.registry import create_backbone
from smallvit.segment.config import HeadConfig
from smallvit.segment.heads import create_head, find_levels, resize, take_levels

C, SIDE = 4, 32
MODELS = {
    "gani_vit": ModelConfig(name="gani_vit", embed_dim=24, depth=4, num_heads=2),
    "gani_swin": ModelConfig(name="gani_swin", embed_dim=24),
    "lvvit": ModelConfig(name="lvvit_tiny", embed_dim=24, depth=2, num_heads=2),
    "cnn": ModelConfig(name="resnet8_small", width=8),
}


def build(name: str):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="patches of")
        return create_backbone(MODELS[name], num_classes=0, image_size=SIDE).eval()


def images(num: int = 2) -> torch.Tensor:
    return torch.rand(num, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", ["linear", "upernet-light"])
@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_network_and_its_head_learn(model, head):
    backbone = build(model)
    config = HeadConfig(name=head, width=16)
    network = create_head(backbone, num_classes=C, image_size=SIDE, config=config)
    logits = network(backbone, images())
    assert logits.shape[:2] == (2, C)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    blocks = [p for name, p in backbone.named_parameters() if "fc" in name or "conv" in name]
    assert all(p.grad is not None for p in blocks)


def test_a_head_sees_where_a_thing_is():
    """Pixels changed in one corner change its logits more than those of the other corner."""
    backbone = build("gani_vit")
    network = create_head(
        backbone, num_classes=C, image_size=SIDE, config=HeadConfig(name="linear")
    ).eval()
    changed = images()
    changed[:, :, :8, 24:] += 2.0
    with torch.no_grad():
        moved = (network(backbone, changed) - network(backbone, images())).abs().sum(dim=(0, 1))
    assert moved.argmax() in (6, 7, 14, 15)  # of 8 x 8 cells, row-major


def test_a_vit_gives_four_depths_as_a_pyramid():
    levels = find_levels(build("gani_vit"), SIDE)
    assert levels.indices == (0, 1, 2, 3)
    assert levels.grids == ((16, 16), (16, 16), (8, 8), (4, 4))


def test_a_shallow_network_gives_a_level_more_than_once():
    backbone = build("lvvit")
    levels = find_levels(backbone, SIDE)
    assert levels.indices == (0, 0, 1, 1)
    first, again, *_ = take_levels(backbone, images(1), levels)
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("model", "grids"), [("gani_swin", (16, 8, 4)), ("cnn", (16, 16, 8))], ids=["swin", "cnn"]
)
def test_stages_keep_their_grids_but_none_is_finer_than_two_pixels(model, grids):
    levels = find_levels(build(model), SIDE)
    assert levels.grids == tuple((side, side) for side in grids)


def test_maps_grow_bilinearly_and_shrink_to_means():
    maps = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    grown = F.interpolate(maps, size=(9, 15), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize(maps, (9, 15)), grown)
    torch.testing.assert_close(resize(maps, (2, 3)), F.adaptive_avg_pool2d(maps, (2, 3)))


def test_batches_of_one_are_trained():
    backbone = build("cnn").train()
    config = HeadConfig(width=16)
    network = create_head(backbone, num_classes=C, image_size=SIDE, config=config).train()
    assert network(backbone, images(1)).isfinite().all()


def test_a_network_without_levels_is_refused_with_the_other_head():
    backbone = build("cnn")
    backbone.model.forward_intermediates = None
    with pytest.raises(ConfigError, match=r"gives no levels .*use --head linear"):
        find_levels(backbone, SIDE)


def test_a_width_that_the_norms_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match="multiple of 8"):
        HeadConfig(width=20)
