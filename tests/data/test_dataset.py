import torch

from smallvit.data.dataset import Split


def test_taking_gathers_the_images_of_positions():
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 2, 2)
    split = Split(
        images=images, labels=torch.zeros(10, dtype=torch.long), index=torch.tensor([7, 2, 5])
    )
    assert split.take(torch.tensor([2, 0, 0]))[:, 0, 0, 0].tolist() == [5, 7, 7]
