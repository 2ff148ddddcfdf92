import pytest
import torch
from torch.nn import functional

from smallvit.core.errors import ConfigError
from smallvit.models.architecture import choose_patch
from smallvit.models.patch_embed import (
    ConvStem,
    ConvTokenizer,
    LvvitStem,
    is_even,
    is_power_of_two,
)


def images(height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("stem", [LvvitStem, ConvStem, ConvTokenizer])
@pytest.mark.parametrize("patch_size", [2, 4, 8])
def test_a_cell_is_a_patch_of_pixels(stem, patch_size):
    patches = stem(patch_size=patch_size, embed_dim=8)(images())
    assert patches.shape == (2, 16 // patch_size, 24 // patch_size, 8)


@pytest.mark.parametrize("stem", [LvvitStem, ConvStem, ConvTokenizer])
def test_patches_are_row_major(stem):
    """A change of the first row's last pixels reaches the cells around them and no others."""
    torch.manual_seed(0)
    module = stem(patch_size=4, embed_dim=8).eval()
    changed = images()
    changed[:, :, 0, 20:] += 1
    differs = (module(images()) != module(changed)).any(dim=-1)[0]
    assert differs[0, -1]
    assert not differs[2:].any()
    assert not differs[:, :3].any()


def test_lvvit_stem_is_four_convolutions():
    """Batch norms without statistics, in eval mode, scale and divide by sqrt(1 + eps)."""
    stem = LvvitStem(patch_size=4, embed_dim=8, width=6).eval()
    for scale, norm in enumerate((stem.bn1, stem.bn2, stem.bn3), start=1):
        torch.nn.init.constant_(norm.weight, scale * (1 + 1e-5) ** 0.5)
        torch.nn.init.constant_(norm.bias, scale / 10)
    x = functional.conv2d(images(), stem.conv1.weight, stride=2, padding=3) + 0.1
    x = 2 * functional.conv2d(x.relu(), stem.conv2.weight, padding=1) + 0.2
    x = 3 * functional.conv2d(x.relu(), stem.conv3.weight, padding=1) + 0.3
    x = functional.conv2d(x.relu(), stem.proj.weight, stem.proj.bias, stride=2)
    torch.testing.assert_close(stem(images()), x.permute(0, 2, 3, 1))


@pytest.mark.parametrize(("patch_size", "kernel"), [(2, 1), (4, 2), (6, 3), (16, 8)])
def test_lvvit_stem_ends_in_half_the_patch(patch_size, kernel):
    # zihangJiang/TokenLabeling@9dbfd59, tlt/models/layers.py: names and shapes at 16 px.
    state = LvvitStem(patch_size=patch_size, embed_dim=8).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items() if "bn" not in key}
    assert shapes == {
        "conv1.weight": (64, 3, 7, 7),
        "conv2.weight": (64, 64, 3, 3),
        "conv3.weight": (64, 64, 3, 3),
        "proj.weight": (8, 64, kernel, kernel),
        "proj.bias": (8,),
    }


def test_conv_stem_doubles_its_channels():
    convs = [layer[0] for layer in ConvStem(patch_size=8, embed_dim=32).layers]
    assert [conv.out_channels for conv in convs] == [8, 16, 32]
    assert all(conv.stride == (2, 2) and conv.kernel_size == (3, 3) for conv in convs)


def test_patches_of_the_conv_stem_overlap():
    """The pixel right above a cell, in another patch, changes it."""
    torch.manual_seed(0)
    stem = ConvStem(patch_size=4, embed_dim=8).eval()
    changed = images()
    changed[:, :, 3, 9] += 1
    differs = (stem(images()) != stem(changed)).any(dim=-1)[0]
    assert differs[0, 2]
    assert differs[1, 2]


def test_tokenizer_of_unit_kernels_pools_the_image():
    """Closed form: such convolutions copy the colours, so ReLU and pooling are what is left."""
    stem = ConvTokenizer(patch_size=2, embed_dim=3)
    torch.nn.init.dirac_(stem.layers[0][0].weight)
    expected = functional.max_pool2d(images().relu(), 3, stride=2, padding=1)
    torch.testing.assert_close(stem(images()), expected.permute(0, 2, 3, 1))


def test_tokenizer_has_a_layer_for_each_halving():
    convs = [layer[0] for layer in ConvTokenizer(patch_size=8, embed_dim=16).layers]
    sizes = [(conv.in_channels, conv.out_channels) for conv in convs]
    assert sizes == [(3, 64), (64, 64), (64, 16)]
    assert all(conv.bias is None for conv in convs)


def test_tokenizer_keeps_the_variance_of_what_it_reads():
    """Kaiming's start: the weights' variance is 2 over the 27 values that a kernel reads."""
    torch.manual_seed(0)
    weight = ConvTokenizer(patch_size=2, embed_dim=256).layers[0][0].weight
    assert weight.var().item() == pytest.approx(2 / 27, rel=0.05)


@pytest.mark.filterwarnings("ignore:images of .* are cut into")
@pytest.mark.parametrize(
    ("img_size", "even", "power", "fine"),
    [(32, 4, 4, 2), (64, 8, 8, 4), (224, 16, 16, 8), (512, 16, 16, 16), (60, 6, 4, 2)],
)
def test_the_patch_chosen_follows_the_image(img_size, even, power, fine):
    """60 px: 6 is even and divides, but is no power of two."""
    assert choose_patch(img_size, None, is_even) == even
    assert choose_patch(img_size, None, is_power_of_two) == power
    assert choose_patch(img_size, None, is_power_of_two, tokens=16) == fine


@pytest.mark.parametrize(
    ("patch_size", "why"), [(5, "odd"), (8, "does not divide"), (30, "leaves 4 tokens")]
)
def test_a_patch_that_does_not_suit_is_refused_with_those_that_do(patch_size, why):
    with pytest.raises(
        ConfigError,
        match=rf"patch_size \({patch_size}\) .* 60 x 60 px .*; 2, 4, 6, 10, 12, 20 would",
    ):
        choose_patch(60, patch_size, is_even)


def test_an_image_without_a_patch_is_refused():
    with pytest.raises(ConfigError, match="cuts images of 33 x 32 px evenly: 32 x 32 px would do"):
        choose_patch((33, 32), None, is_even)
