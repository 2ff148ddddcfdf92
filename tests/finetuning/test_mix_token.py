import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError

from smallvit.data.batches import TokenBox
from smallvit.finetuning.mix_token import mix_labels, mix_tokens

BOX = TokenBox(
    top=1, left=2, bottom=3, right=4, grid=(4, 4)
)  # touches the right edge: clipped there


def identities(batch_size: int) -> torch.Tensor:
    """A grid of tokens that say which image they come from."""
    return torch.arange(float(batch_size))[:, None, None, None].expand(-1, 4, 4, 1)


def test_the_box_comes_from_the_partner():
    mixed = mix_tokens(identities(2), BOX)[0, ..., 0]
    assert mixed.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_class_target_is_mixed_by_the_area_of_the_box():
    mixed = mix_labels(torch.eye(2), BOX)
    torch.testing.assert_close(mixed, torch.tensor([[0.75, 0.25], [0.25, 0.75]]))


@pytest.mark.parametrize(
    "box",
    [
        BOX,
        TokenBox(top=0, left=0, bottom=4, right=4, grid=(4, 4)),
        TokenBox(top=2, left=1, bottom=2, right=3, grid=(4, 4)),
        TokenBox(top=0, left=3, bottom=3, right=4, grid=(4, 4)),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_token_meets_its_own_images_label(box, batch_size):
    """Patches and score maps are mixed alike, and the class target is the mean over the maps."""
    labels = torch.eye(batch_size)
    maps = labels[:, :, None, None].expand(-1, -1, 4, 4)
    tokens = mix_tokens(identities(batch_size), box)[..., 0]
    targets = mix_tokens(maps.movedim(1, -1), box)
    assert torch.equal(targets.argmax(dim=-1).float(), tokens)
    torch.testing.assert_close(mix_labels(labels, box), targets.mean(dim=(1, 2)))


def test_the_middle_of_an_odd_batch_is_its_own_partner():
    mixed = mix_tokens(identities(5), BOX)
    assert torch.equal(mixed[2], identities(5)[2])
    assert mixed[1, 1, 2].item() == 3
    labels = mix_labels(F.one_hot(torch.arange(5)).float(), BOX)
    assert labels[2].tolist() == [0, 0, 1, 0, 0]


def test_a_batch_of_one_stays_as_it_is():
    grid = torch.randn(1, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mix_tokens(grid, BOX), grid)
    assert mix_labels(torch.eye(3)[:1], BOX).tolist() == [[1, 0, 0]]


def test_an_empty_box_mixes_nothing():
    box = TokenBox(top=2, left=2, bottom=2, right=2, grid=(4, 4))
    assert box.area == 0
    assert torch.equal(mix_tokens(identities(2), box), identities(2))
    assert torch.equal(mix_labels(torch.eye(2), box), torch.eye(2))


def test_the_input_is_left_alone():
    grid = identities(2).contiguous()
    mix_tokens(grid, BOX)
    assert torch.equal(grid, identities(2))


def test_gradient_goes_to_the_image_whose_token_it_is():
    grid = torch.zeros(2, 4, 4, 1, requires_grad=True)
    mix_tokens(grid, BOX)[0].sum().backward()
    assert grid.grad[0].sum() == 12
    assert grid.grad[1].sum() == 4


def test_score_maps_with_channels_first_are_not_taken_for_tokens():
    with pytest.raises(TypeCheckError):
        mix_tokens(torch.zeros(2, 4, 4), BOX)
