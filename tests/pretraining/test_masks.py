import pytest
import torch

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.models.registry import create_backbone
from smallvit.pretraining.masks import (
    as_mask,
    encode_masked,
    enlarge,
    mask_grid,
    num_block_draws,
    num_hidden,
    split_cells,
    split_in_blocks,
)

TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
pytestmark = pytest.mark.filterwarnings("ignore:patches of .* px are larger:UserWarning")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def block_masks(grid: tuple[int, int], ratio: float, num: int = 200) -> torch.Tensor:
    hidden, _ = split_in_blocks(
        draw(num, num_block_draws(grid)), grid, num_hidden(grid[0] * grid[1], ratio)
    )
    return as_mask(hidden, grid)


def hidden_neighbours(masks: torch.Tensor) -> float:
    """Return how often the right neighbour of a hidden cell is hidden too."""
    pairs = masks[:, :, :-1] & masks[:, :, 1:]
    return (pairs.sum() / masks[:, :, :-1].sum()).item()


@pytest.mark.parametrize(
    ("cells", "ratio", "hidden"),
    [(64, 0.3, 19), (64, 0.75, 48), (4, 0.01, 1), (4, 0.99, 3), (2, 0.5, 1)],
)
def test_a_ratio_hides_at_least_one_cell_and_leaves_one(cells, ratio, hidden):
    assert num_hidden(cells, ratio) == hidden


def test_the_smallest_draws_are_hidden():
    draws = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.0, 0.9, 0.8, 0.1]])
    hidden, visible = split_cells(draws, 2)
    assert hidden.tolist() == [[1, 3], [0, 3]]
    assert visible.tolist() == [[0, 2], [1, 2]]


def test_cells_are_marked_row_by_row():
    mask = as_mask(torch.tensor([[1, 5]]), (2, 3))
    assert mask.tolist() == [[[False, True, False], [False, False, True]]]


def test_enlarging_repeats_each_cell():
    mask = torch.tensor([[[True, False], [False, True]]])
    assert torch.equal(enlarge(mask, (4, 6))[0].long(), torch.eye(2).long().kron(torch.ones(2, 3)))
    with pytest.raises(ConfigError, match="2 x 2 cells does not divide 5 x 4"):
        enlarge(mask, (5, 4))


@pytest.mark.parametrize("grid", [(8, 8), (4, 4), (3, 5), (2, 2), (1, 2)])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6, 0.9])
def test_blocks_hide_exactly_so_many_cells_of_every_image(grid, ratio):
    num = grid[0] * grid[1]
    hidden, visible = split_in_blocks(draw(50, num_block_draws(grid)), grid, num_hidden(num, ratio))
    assert hidden.shape == (50, num_hidden(num, ratio))
    both = torch.cat([hidden, visible], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(num).expand(50, -1))


def test_a_rectangle_as_large_as_the_mask_is_the_mask():
    """Closed form: area 16 of an 8 x 8 grid, aspect 1, in the lower right corner."""
    draws = draw(1, num_block_draws((8, 8)))
    draws[0, :4] = torch.tensor([1.0, 0.5, 0.999, 0.999])
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[4:, 4:] = True
    assert torch.equal(as_mask(split_in_blocks(draws, (8, 8), 16)[0], (8, 8))[0], expected)


def test_the_second_rectangle_fills_up_what_the_first_leaves():
    """The first has 4 x 4 cells, the second shares none with it, and is filled from its centre."""
    draws = draw(1, num_block_draws((8, 8)))
    side = (16 - 64 / 9) / (20 - 64 / 9)  # of the area between its bounds
    draws[0, :8] = torch.tensor([side, 0.5, 0.0, 0.0, side, 0.5, 0.999, 0.999])
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, :4] = expected[5:7, 5:7] = True
    assert torch.equal(as_mask(split_in_blocks(draws, (8, 8), 20)[0], (8, 8))[0], expected)


def test_blocks_hide_neighbours_together():
    """Of single cells at random, 18 of 63 others are hidden: 0.29."""
    single = as_mask(split_cells(draw(200, 64), 19)[0], (8, 8))
    assert hidden_neighbours(single) == pytest.approx(18 / 63, abs=0.03)
    assert hidden_neighbours(block_masks((8, 8), 0.3)) > 0.65


def test_blocks_prefer_no_side():
    """Rectangles lie in the grid, so that corners are hidden less often, but all four alike."""
    often = block_masks((8, 8), 0.3, num=4000).float().mean(dim=0)
    for other in (often.flip(0), often.flip(1), often.T):
        torch.testing.assert_close(often, other, atol=0.05, rtol=0.0)
    assert 0.02 < often.min() < 0.1 < 0.45 < often.max() < 0.65


def test_masks_are_a_function_of_the_draws_of_their_image():
    draws = draw(6, num_block_draws((8, 8)))
    whole, _ = split_in_blocks(draws, (8, 8), 19)
    assert torch.equal(split_in_blocks(draws[3:5], (8, 8), 19)[0], whole[3:5])
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize(
    ("name", "settings", "side"),
    [
        ("vit_tiny", TINY, 16),
        ("gani_cait", TINY, 16),
        ("gani_swin", {"embed_dim": 24}, 32),
        ("t2t_vit_7", TINY, 16),
        ("cct_7_3x1", TINY, 16),
        ("resnet8_small", {"width": 4}, 16),
    ],
)
def test_hidden_pixels_do_not_reach_the_network(name, settings, side):
    torch.manual_seed(0)
    backbone = create_backbone(
        ModelConfig(name=name, **settings), num_classes=0, image_size=side
    ).eval()
    grid, patch_dim = mask_grid(backbone, side, method="ibot")
    mask = as_mask(split_cells(draw(2, grid[0] * grid[1]), 4)[0], grid)
    images = draw(2, 3, side, side, seed=1)
    pixels = enlarge(mask, (side, side))[:, None]
    others = torch.where(pixels, draw(2, 3, side, side, seed=2), images)
    seen, same, changed = (
        encode_masked(backbone, x, m, torch.zeros(patch_dim)).patch
        for x, m in ((images, mask), (others, mask), (others, torch.zeros_like(mask)))
    )
    assert torch.equal(seen, same)
    assert not torch.allclose(seen, changed, rtol=1e-3, atol=1e-5)


def test_without_a_hidden_cell_the_network_is_as_it_was(small_vit):
    backbone, images = small_vit(), draw(2, 3, 16, 16)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    tokens = encode_masked(backbone, images, mask, torch.ones(16))
    assert torch.equal(tokens.patch, backbone(images).patch)


def test_tokens_that_stand_for_no_whole_pixels_are_refused():
    backbone = create_backbone(ModelConfig(name="resnet18"), num_classes=0, image_size=80)
    message = "ibot hides cells of 3 x 3 tokens.* do not divide the 80 x 80 pixels of resnet18"
    with pytest.raises(ConfigError, match=message):
        mask_grid(backbone, 80, method="ibot")
