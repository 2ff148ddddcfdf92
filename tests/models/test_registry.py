import re
import warnings

import pytest
import torch

from smallvit.core.errors import ConfigError, UnknownNameError
from smallvit.core.model_config import ModelConfig
from smallvit.models.measure import build_on_meta
from smallvit.models.registry import (
    check_model,
    create_backbone,
    create_exported,
    model_arguments,
    own_models,
    settings_from,
)


def test_default_patch_is_an_eighth_of_the_image():
    assert model_arguments(ModelConfig(), num_classes=10, image_size=32)[1]["patch_size"] == 4
    assert model_arguments(ModelConfig(), num_classes=10, image_size=8)[1]["patch_size"] == 2


def test_settings_that_are_null_are_left_to_the_architecture():
    name, arguments = model_arguments(ModelConfig(), num_classes=10, image_size=32)
    assert name == "vit_tiny_patch16_224"
    assert set(arguments) == {"img_size", "patch_size", "dynamic_img_size", "num_classes"}


def test_export_arguments_rebuild_the_model(small_vit):
    backbone = small_vit(num_classes=7)
    config = ModelConfig(patch_size=2, embed_dim=16, depth=2, num_heads=2)
    name, arguments = model_arguments(config, num_classes=7, image_size=16)
    again = create_exported(name, arguments)
    shapes = {key: value.shape for key, value in again.model.state_dict().items()}
    assert shapes.keys() == backbone.model.state_dict().keys()
    assert shapes["pos_embed"] == torch.Size([1, 65, 16])
    assert shapes["head.weight"] == torch.Size([7, 16])


def test_our_names_come_first_and_sort_by_number():
    names = own_models()
    assert names[:2] == ["vit_tiny", "vit_small"]
    assert names.index("t2t_vit_7") < names.index("t2t_vit_10")


def test_unknown_model_is_answered_with_the_toolkits_own_and_timms_nearest():
    with pytest.raises(
        UnknownNameError, match=r"did you mean 'resnet1\w*'.*smallvit models. lists them"
    ):
        check_model(ModelConfig(name="resnet19"))


def test_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(
        UnknownNameError, match="unknown model 'vit_tinny'; did you mean 'vit_tiny'"
    ):
        check_model(ModelConfig(name="vit_tinny"))


@pytest.mark.parametrize("patch_size", [3, 8, 16, 32])
def test_patch_must_divide_the_image_into_five_tokens_or_more(patch_size):
    config = ModelConfig(patch_size=patch_size)
    with pytest.raises(ConfigError, match=rf"\({patch_size}\) must divide .* 5 tokens; 1, 2, 4 wo"):
        create_backbone(config, num_classes=5, image_size=16)


@pytest.mark.parametrize(("height", "patch_size"), [(16, 2), (24, 3), (32, 4)])
def test_patches_of_non_square_images_fit_both_sides(height, patch_size):
    arguments = model_arguments(ModelConfig(), num_classes=5, image_size=(height, 48))[1]
    assert arguments["img_size"] == (height, 48)
    assert arguments["patch_size"] == patch_size


def test_swin_stage_smaller_than_its_window_is_refused():
    config = ModelConfig(name="gani_swin", embed_dim=24)
    with pytest.raises(
        ConfigError, match=r"stage 3 has 2 x 2 patches .* window of 4: model.patch_size 1 would fit"
    ):
        create_backbone(config, num_classes=5, image_size=16)


@pytest.mark.parametrize(
    ("name", "size", "patch_size", "window_size"),
    [
        ("gani_swin", 16, 2, 4),
        ("gani_swin", 16, 4, 7),  # the first stage is smaller as well
        ("gani_swin", 32, 2, 8),
        ("gani_swin", (48, 64), 4, 8),
        ("swin_tiny_patch4_window7_224", 32, 2, 7),
        ("swin_tiny_patch4_window7_224", 16, 2, 7),
        ("swin_tiny_patch4_window7_224", 112, 4, 7),
    ],
)
def test_what_is_said_to_fit_a_swin_does(name, size, patch_size, window_size):
    given = {"name": name, "patch_size": patch_size, "window_size": window_size}

    def build(image_size, **settings):
        config = ModelConfig(**{**given, **settings})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="patches of")
            build_on_meta(lambda: create_backbone(config, num_classes=5, image_size=image_size))

    with pytest.raises(ConfigError, match="smaller than its window") as error:
        build(size)
    advice = re.search(r"window of \d+: (.*) would fit$", str(error.value))
    assert advice is not None
    for option in advice[1].split(" or "):
        said = {key: int(value) for key, value in re.findall(r"(\w+)[ ](\d+)", option)}
        larger = re.search(r"--data.image-size (\d+)", option)
        said.pop("size", None)  # of the image
        build(int(larger[1]) if larger else size, **said)


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vitamin_small_224"])
def test_a_hybrid_keeps_its_grid(name):
    backbone = build_on_meta(
        lambda: create_backbone(ModelConfig(name=name), num_classes=5, image_size=(256, 512))
    )
    cell = backbone.patch_size[0]
    assert backbone.grid((256, 512)) == (256 // cell, 512 // cell)


def test_a_levit_is_made_with_one_classifier():
    config = ModelConfig(name="levit_128s")
    backbone = build_on_meta(lambda: create_backbone(config, num_classes=5, image_size=192))
    assert backbone.grid(192) == (3, 3)


def test_a_vit_without_dynamic_sizes_has_tokens_all_the_same():
    backbone = create_exported("test_vit", {"img_size": 32, "patch_size": 8, "num_classes": 3})
    assert backbone.grid(32) == (4, 4)
    plain = {"img_size": 32, "patch_size": 8, "depth": 1, "dynamic_img_size": False}
    backbone = create_exported("vit_tiny_patch16_224", plain)
    assert backbone.grid(32) == (4, 4)


def test_a_convnext_for_small_images_says_which_patch_leaves_more():
    for patch_size in (5, 16):
        config = ModelConfig(name="convnext_atto_small", patch_size=patch_size)
        with pytest.raises(ConfigError, match=r": model.patch_size 1 would leave more"):
            create_backbone(config, num_classes=5, image_size=32)
    config = ModelConfig(name="convnext_atto_small")
    with pytest.raises(
        ConfigError, match=r"1 x 1 tokens of 8 x 8 px: --data.image-size 16 or more"
    ):
        create_backbone(config, num_classes=5, image_size=8)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(embed_dim=24, depth=1, num_heads=2, patch_size=2),
        ModelConfig(name="gani_cait", depth=1),
        ModelConfig(name="gani_swin", embed_dim=24, window_size=2),
        ModelConfig(name="resnet18_small", width=8, stride=2),
        ModelConfig(name="t2t_vit_7", embed_dim=24, depth=1, num_heads=2),
        ModelConfig(name="convnext_atto_small"),
    ],
    ids=lambda config: config.name,
)
def test_settings_are_found_again_in_what_an_export_records(config):
    name, arguments = model_arguments(config, num_classes=5, image_size=32)
    again = ModelConfig(**settings_from(name, arguments))
    first, second = (
        build_on_meta(lambda c=c: create_backbone(c, num_classes=5, image_size=32)).model
        for c in (config, again)
    )
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (first, second)]
    assert shapes[0] == shapes[1]


def test_original_tokens_to_token_is_refused_at_32_px():
    config = ModelConfig(name="t2t_vit_7", patch_size=16, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(ConfigError, match=r"patch_size \(16\) .* 32 x 32 px .*; 4, 8 would"):
        create_backbone(config, num_classes=5, image_size=32)


def test_timm_network_for_large_images_is_refused_with_one_for_small_ones():
    with pytest.raises(ConfigError, match=r"leaves 1 x 1 tokens .* resnet18_small or convnext"):
        create_backbone(ModelConfig(name="resnet18"), num_classes=5, image_size=32)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match=r"num_heads \(3\) must divide model.embed_dim \(16\)"):
        check_model(ModelConfig(embed_dim=16, num_heads=3))


def test_heads_of_the_architecture_must_divide_a_given_width():
    config = ModelConfig(embed_dim=16, depth=1)  # vit_tiny has 3 heads
    with pytest.raises(ConfigError, match=r"give both model.embed_dim and model.num_heads"):
        create_backbone(config, num_classes=5, image_size=16)
    config = ModelConfig(name="gani_cait", depth=1, num_heads=5)
    with pytest.raises(ConfigError, match=r"num_heads \(5\) must divide .* \(192\); 1, 2, 3, 4, 6"):
        create_backbone(config, num_classes=5, image_size=16)


@pytest.mark.parametrize(
    "setting",
    [
        {"patch_size": 4},
        {"embed_dim": 16},
        {"num_heads": 2},
        {"mlp_ratio": 2.0},
        {"drop_path_rate": 0.1},
    ],
)
def test_vit_settings_are_refused_on_a_cnn(setting):
    with pytest.raises(ConfigError, match=f"model.{next(iter(setting))} .* no setting of resnet8"):
        check_model(ModelConfig(name="resnet8_small", **setting))


@pytest.mark.parametrize("setting", [{"width": 8}, {"stride": 2}])
def test_cnn_settings_are_refused_on_a_vit(setting):
    with pytest.raises(ConfigError, match=f"model.{next(iter(setting))} .* no setting of gani_vit"):
        check_model(ModelConfig(name="gani_vit", **setting))


def test_settings_may_come_before_the_name_but_are_checked_before_anything_is_built():
    """The command line makes a config of what was given, and puts the name to it later."""
    assert ModelConfig(window_size=2).window_size == 2
    with pytest.raises(ConfigError, match=r"model.window_size \(2\) is no setting of vit_tiny"):
        create_backbone(ModelConfig(window_size=2), num_classes=5, image_size=32)


@pytest.mark.parametrize("setting", [{"num_heads": 2}, {"depth": 4}])
def test_stages_of_a_swin_are_not_one_number(setting):
    with pytest.raises(
        ConfigError, match=f"model.{next(iter(setting))} .* no setting of swin_tiny"
    ):
        check_model(ModelConfig(name="swin_tiny_patch4_window7_224", **setting))


def test_setting_that_timm_does_not_know_is_named():
    with pytest.raises(ConfigError, match="cannot be built: window_size is no setting of it"):
        create_backbone(
            ModelConfig(name="deit_tiny_patch16_224", window_size=4), num_classes=5, image_size=32
        )


def test_resnet_depth_is_six_times_blocks_plus_two():
    with pytest.raises(ConfigError, match=r"depth must be 8, 14, 20, \.\.\. for a ResNet, got 9"):
        check_model(ModelConfig(name="resnet8_small", depth=9))


def test_stride_of_three_is_refused():
    config = ModelConfig(name="resnet8_small", stride=3)
    with pytest.raises(ConfigError, match="cannot make cells of 3 px; 1, 2, 4 would do"):
        create_backbone(config, num_classes=5, image_size=16)


def test_stride_must_leave_more_than_one_cell():
    config = ModelConfig(name="resnet8_small", stride=4)
    with pytest.raises(ConfigError, match="cells of 4 px are too large for images of 4 x 4 px"):
        create_backbone(config, num_classes=5, image_size=4)


def test_patch_larger_than_an_eighth_is_warned_of():
    config = ModelConfig(patch_size=4, embed_dim=16, depth=1, num_heads=2)
    with pytest.warns(UserWarning, match="patches of 4 px are larger than an eighth of a 16 px"):
        create_backbone(config, num_classes=5, image_size=16)
