import torch

from smallvit.data.dataset import Split, take_evenly


def test_taking_gathers_the_images_of_positions():
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 2, 2)
    split = Split(
        images=images, labels=torch.zeros(10, dtype=torch.long), index=torch.tensor([7, 2, 5])
    )
    assert split.take(torch.tensor([2, 0, 0]))[:, 0, 0, 0].tolist() == [5, 7, 7]


def test_images_are_taken_at_even_distances():
    images = torch.zeros(40, 3, 2, 2, dtype=torch.uint8)
    split = Split(images=images, labels=torch.zeros(40).long(), index=torch.arange(30) + 5)
    assert take_evenly(split, 4).index.tolist() == [5, 12, 20, 27]
    assert take_evenly(split, 300).index.tolist() == split.index.tolist()
