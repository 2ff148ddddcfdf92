import torch

from smallvit.data.geometry import Geometry, resample
from smallvit.data.order import Order
from smallvit.segment.batches import SegmentBatches, crop_masks, eval_batches
from smallvit.segment.config import SegmentAugmentConfig, SegmentDataConfig
from smallvit.segment.data import load_segment_data

CPU = torch.device("cpu")


def quadrants(*, mirrored: bool) -> Geometry:
    """Top left, top right, bottom left, bottom right."""
    return Geometry(
        top=torch.tensor([0.0, 0.0, 0.5, 0.5]),
        left=torch.tensor([0.0, 0.5, 0.0, 0.5]),
        height=torch.full((4,), 0.5),
        width=torch.full((4,), 0.5),
        hflip=torch.full((4,), mirrored),
    )


def test_quadrant_crops_return_their_own_quadrant():
    mask = torch.tensor([[0, 1], [2, 255]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    cut = crop_masks(mask.expand(4, 8, 8), quadrants(mirrored=False))
    assert [quadrant.unique().tolist() for quadrant in cut] == [[0], [1], [2], [255]]


def test_a_mirrored_box_is_mirrored_after_it_was_cut():
    mask = torch.arange(16).reshape(4, 4).expand(4, 4, 4)
    plain, mirrored = (crop_masks(mask, quadrants(mirrored=m)) for m in (False, True))
    assert torch.equal(mirrored, plain.flip(2))
    zero, one = torch.zeros(4), torch.ones(4)
    whole = Geometry(top=zero, left=zero, height=one, width=one, hflip=zero.bool())
    assert torch.equal(crop_masks(mask, whole), mask)


def test_masks_stay_with_their_images_through_crop_and_flip():
    """An image whose brightness is its mask: where that is flat, both agree after the crop."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(64, 2, 2, generator=generator) < 0.5).long()
    mask = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)
    draws = torch.rand(64, 4, generator=generator)
    height, width = 0.5 + draws[:, :2].T / 2
    where = Geometry(
        top=draws[:, 2] * (1 - height),
        left=draws[:, 3] * (1 - width),
        height=height,
        width=width,
        hflip=draws[:, 0] < 0.5,
    )
    cut = crop_masks(mask, where)
    seen = resample(mask.float()[:, None], where, (32, 32), kernel="bilinear", fill="edge")[:, 0]
    assert ((seen > 0.5) == (cut == 1)).float().mean() > 0.995


def test_a_step_is_the_same_again_and_another_step_is_not(shapes, tmp_path):
    folder = shapes({"train": 12, "val": 2, "test": 2})
    data = load_segment_data(SegmentDataConfig(path=folder), cache_dir=tmp_path / "cache")

    def batches() -> SegmentBatches:
        return SegmentBatches(data, Order(12, 5, 0, CPU), SegmentAugmentConfig())

    made = batches()
    made(0)
    first, again, later = made(3), batches()(3), made(4)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.masks, again.masks)
    assert not torch.equal(first.images, later.images)


def test_evaluation_sees_every_image_once_unaugmented(shapes, tmp_path):
    folder = shapes({"train": 3, "val": 5, "test": 1})
    data = load_segment_data(SegmentDataConfig(path=folder), cache_dir=tmp_path / "cache")
    seen = list(eval_batches(data, data.dataset.splits["val"], 2))
    assert [len(batch.masks) for batch in seen] == [2, 2, 1]
    index = data.dataset.splits["val"].index
    assert torch.equal(torch.cat([batch.masks for batch in seen]), data.masks[index].long())
    assert set(index.tolist()) == set(range(3, 8))
