import re
import warnings
from collections.abc import Callable

import pytest
import timm

from smallvit.core.errors import ConfigError
from smallvit.models.architecture import (
    ARCHITECTURES,
    MANY_TOKENS,
    choose_patch,
    sides,
)
from smallvit.models.convnext import convnext_architecture
from smallvit.models.patch_embed import is_even, is_power_of_two
from smallvit.models.t2t_module import SOFT_SPLITS

TRIED = (*range(8, 130), *range(131, 1025, 17))
# How the patch of every kind of network is chosen where none is asked for.
CHOICES: dict[str, Callable[[int], int]] = {
    "vit": choose_patch,
    "swin": lambda side: choose_patch(side, tokens=16, windows=True),
    "gani_swin": lambda side: choose_patch(side, tokens=16, most=4, windows=True),
    "lvvit": lambda side: choose_patch(side, None, is_even),
    "convstem": lambda side: choose_patch(side, None, is_power_of_two),
    "cct": lambda side: choose_patch(side, None, is_power_of_two, tokens=16),
    "t2t": lambda side: choose_patch(side, None, SOFT_SPLITS.__contains__),
}


@pytest.mark.parametrize(
    ("img_size", "tokens", "patch_size"),
    [
        (8, 8, 2),
        (28, 8, 2),
        (32, 8, 4),
        (36, 8, 4),
        (9, 8, 3),
        (35, 8, 5),  # no patch of 2 to 4 px divides it
        (64, 8, 8),
        (96, 8, 12),
        (224, 8, 16),
        ((48, 64), 8, 4),
        (32, 16, 2),
        (64, 16, 4),
    ],
)
def test_chosen_patch_divides_the_image_into_tokens_enough(img_size, tokens, patch_size):
    assert choose_patch(img_size, tokens=tokens) == patch_size


@pytest.mark.filterwarnings("ignore:images of")
@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)
def test_no_side_takes_patches_of_one_pixel_unasked(choose):
    refused = []
    for side in TRIED:
        try:
            assert choose(side) >= 2
        except ConfigError as error:
            refused.append((side, str(error)))
    assert {37, 41, 127} <= {side for side, _ in refused}
    for _, message in refused[:60]:
        named = re.findall(r"--data.image-size (\d+)(?: or (\d+))?", message)[0]
        for other in filter(None, named):
            patch = choose(int(other))
            assert int(other) % (2 * patch) == 0  # so that views of half the side fit as well


@pytest.mark.parametrize("kind", ["vit", "lvvit", "convstem", "cct", "t2t"])
def test_many_tokens_are_never_made_unasked_without_a_word(kind):
    said = []
    for side in TRIED:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                patch = CHOICES[kind](side)
            except ConfigError:
                continue
        assert bool(caught) == ((side // patch) ** 2 > MANY_TOKENS)
        said += [(side, str(each.message)) for each in caught]
    for side, message in said[:60]:
        patch = re.search(r"model.patch_size (\d+) would leave (\d+)", message)
        if patch is not None:
            assert (side // int(patch[1])) ** 2 == int(patch[2]) <= MANY_TOKENS
            continue
        for other in map(int, re.findall(r"\d+", message.split("--data.image-size")[1])):
            assert (other // CHOICES[kind](other)) ** 2 <= MANY_TOKENS


def test_sides_that_no_patch_cuts_evenly_name_sides_that_would_do():
    with pytest.raises(ConfigError, match=r"37 x 37 px evenly: --data.image-size 32 or 40 would"):
        choose_patch(37)
    with pytest.raises(ConfigError, match=r"11 x 11 px .*, or model.patch_size 1 \(121 tokens\)"):
        choose_patch(11)
    with pytest.raises(ConfigError, match=r"37 x 48 px evenly: 35 x 50 px would do"):
        choose_patch((37, 48))
    assert choose_patch((35, 50)) == 5


def test_convnext_says_that_it_takes_each_pixel_of_a_large_image():
    with pytest.warns(UserWarning, match=r"127 x 127 px.* --data.image-size 124 or 128 would"):
        assert convnext_architecture(127)[1]["patch_size"] == 1
    assert convnext_architecture(128)[1]["patch_size"] == 4
    assert convnext_architecture(37)[1]["patch_size"] == 1  # as for all small images


def test_sides_of_one_number_and_of_two():
    assert sides(32) == (32, 32)
    assert sides((24, 32)) == (24, 32)
    with pytest.raises(ConfigError, match=r"patch_size \(5\) .* 24 x 32 px .*; 2, 4, 8 would"):
        choose_patch((24, 32), 5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_timm_lists_every_name_with_its_defaults(name):
    assert timm.is_model(name)
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    assert config.input_size[1] in (32, 224)
    assert config.classifier


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("sl_vit", "token"), ("sl_cait", "token"), ("sl_swin", "avg"), ("resnet8_small", "avg")],
)
def test_built_in_pooling_may_be_named_but_not_changed(name, pooling):
    sizes = {"img_size": 32, "num_classes": 3}
    timm.create_model(name, global_pool=pooling, **sizes)
    with pytest.raises(ConfigError, match=f"{name} pools by {pooling}, not by max"):
        timm.create_model(name, global_pool="max", **sizes)
