import pytest
import torch
from torch import nn

from smallvit.models.shifted_patch import ShiftedPatchMerging, create_patch_embed, shifted_patches


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("patch", "height", "width"), [(4, 8, 12), (3, 6, 3), (2, 2, 4)])
def test_shifted_patches_equal_a_loop_over_pixels(patch, height, width):
    x = torch.randn(2, height, width, 3)
    moves = [(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]  # down and right, in half patches
    cells = shifted_patches(x, patch).unflatten(3, (patch, patch, 5, 3))
    assert cells.shape[1:3] == (height // patch, width // patch)
    for y in range(height):
        for z in range(width):
            for i, (down, right) in enumerate(moves):
                row, column = y - down * (patch // 2), z - right * (patch // 2)
                inside = 0 <= row < height and 0 <= column < width
                expected = x[:, row, column] if inside else torch.zeros(2, 3)
                found = cells[:, y // patch, z // patch, y % patch, z % patch, i]
                assert torch.equal(found, expected)


def test_patch_embedding_normalises_and_projects_for_any_size():
    embed = create_patch_embed(img_size=(8, 8), patch_size=4, embed_dim=6, output_fmt="NLC")
    for parameter in embed.parameters():
        nn.init.normal_(parameter, std=0.5)
    images = torch.randn(2, 3, 12, 4)
    x = shifted_patches(images.movedim(1, -1), 4)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    proj = embed.proj
    x = x * proj.norm.weight + proj.norm.bias
    expected = (x @ proj.linear.weight.mT + proj.linear.bias).flatten(1, 2)
    torch.testing.assert_close(embed(images), expected)
    assert (embed.grid_size, embed.num_patches) == ((2, 2), 4)


def test_merging_fills_odd_sides_with_zeros():
    merging = ShiftedPatchMerging(in_chans=3, embed_dim=4)
    x = torch.randn(2, 3, 5, 3)
    filled = torch.zeros(2, 4, 6, 3)
    filled[:, :3, :5] = x
    assert merging(x).shape == (2, 2, 3, 4)
    torch.testing.assert_close(merging(x), merging(filled))
