import pytest
import timm

from smallvit.core.errors import ConfigError
from smallvit.models.architecture import NAMES, default_patch, image_sides, sides


@pytest.mark.parametrize(
    ("img_size", "tokens", "patch_size"),
    [
        (8, 8, 2),
        (28, 8, 2),
        (32, 8, 4),
        (36, 8, 4),
        (37, 8, 1),  # only 1 divides it
        (64, 8, 8),
        (96, 8, 12),
        (224, 8, 16),
        ((48, 64), 8, 4),
        (32, 16, 2),
        (64, 16, 4),
    ],
)
def test_default_patch_divides_the_image_into_tokens_enough(img_size, tokens, patch_size):
    assert default_patch(img_size, tokens=tokens) == patch_size


def test_sides_of_one_number_and_of_two():
    assert sides(32) == (32, 32)
    assert sides((24, 32)) == (24, 32)
    with pytest.raises(ConfigError, match=r"patches of 5 px .* 24 x 32 px; 1, 2, 4 would"):
        image_sides((24, 32), 5)


@pytest.mark.parametrize("name", NAMES)
def test_timm_lists_every_name_with_its_defaults(name):
    assert timm.is_model(name)
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    assert config.input_size[1] in (32, 224)
    assert config.classifier


@pytest.mark.parametrize(("name", "pooling"), [("sl_vit", "token"), ("sl_swin", "avg")])
def test_built_in_pooling_may_be_named_but_not_changed(name, pooling):
    sizes = {"img_size": 32, "num_classes": 3}
    timm.create_model(name, global_pool=pooling, **sizes)
    with pytest.raises(ConfigError, match=f"{name} pools by {pooling}, not by max"):
        timm.create_model(name, global_pool="max", **sizes)
