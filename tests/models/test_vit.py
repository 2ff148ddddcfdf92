import pytest
import torch
from timm.layers import resample_abs_pos_embed


def images(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_tokens_are_those_of_timm(small_vit):
    backbone = small_vit().eval()
    tokens = backbone(images())
    together = torch.cat([tokens.cls[:, None], tokens.patch], dim=1)
    torch.testing.assert_close(together, backbone.model.forward_features(images()))
    assert tokens.grid == (4, 4)


def test_pooled_is_the_class_token(small_vit):
    tokens = small_vit().eval()(images())
    assert torch.equal(tokens.pooled, tokens.cls)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 16), (24, 24)])
def test_other_sizes_interpolate_positions_like_timm(small_vit, height, width):
    """Reference: the same network over positions that timm resampled beforehand."""
    backbone = small_vit().eval()
    model, grid = backbone.model, (height // 4, width // 4)
    torch.nn.init.normal_(model.pos_embed)
    positions = resample_abs_pos_embed(model.pos_embed, list(grid), num_prefix_tokens=1)
    patches = model.patch_embed(images(height, width)).flatten(1, 2)
    x = torch.cat([model.cls_token.expand(3, -1, -1), patches], dim=1) + positions
    expected = model.norm(model.blocks(x))
    tokens = backbone(images(height, width))
    torch.testing.assert_close(tokens.patch, expected[:, 1:])
    torch.testing.assert_close(tokens.cls, expected[:, 0])
    assert tokens.grid == grid


def test_patches_are_row_major(small_vit):
    """A change in the second row and third column reaches that embedded patch alone."""
    backbone = small_vit().eval()
    changed = images()
    changed[:, :, 4:8, 8:12] += 1
    differs = (backbone.embed(images()) != backbone.embed(changed)).any(dim=-1)
    assert differs[0].nonzero().tolist() == [[1, 2]]
    encoded = backbone(changed).patch.unflatten(1, (4, 4))
    assert encoded.shape == (3, 4, 4, 16)


def test_classify_of_pooled_is_the_model(small_vit):
    backbone = small_vit().eval()
    torch.testing.assert_close(
        backbone.classify(backbone(images()).pooled), backbone.model(images())
    )


def test_grid_counts_patches(small_vit):
    assert small_vit().grid(16) == (4, 4)
    assert small_vit().grid(8) == (2, 2)
