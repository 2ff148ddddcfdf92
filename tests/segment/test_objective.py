import math

import torch
import torch.nn.functional as F

from smallvit.segment.batches import SegmentBatch
from smallvit.segment.data import IGNORED
from smallvit.segment.heads import LinearHead
from smallvit.segment.objective import SegmentObjective, pixel_cross_entropy

B, C, SIDE = 2, 3, 4


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def masks() -> torch.Tensor:
    drawn = torch.randint(0, C, (B, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    drawn[0, 0] = IGNORED
    return drawn


def test_uniform_logits_cost_log_of_the_number_of_classes():
    loss = pixel_cross_entropy(torch.zeros(B, C, SIDE, SIDE), masks())
    torch.testing.assert_close(loss, torch.tensor(math.log(C)))


def test_one_counted_pixel_is_the_whole_loss():
    target = torch.full((1, 1, 2), IGNORED)
    target[0, 0, 1] = 1
    logits = torch.tensor([[[[5.0, 0.0]], [[0.0, 2.0]]]])  # (1, 2, 1, 2)
    loss = pixel_cross_entropy(logits, target)
    torch.testing.assert_close(loss, torch.tensor(math.log1p(math.exp(-2.0))))


def test_agrees_with_torch_and_so_does_its_gradient():
    ours, theirs = (noise(B, C, SIDE, SIDE).requires_grad_() for _ in range(2))
    loss = pixel_cross_entropy(ours, masks())
    expected = F.cross_entropy(theirs, masks(), ignore_index=IGNORED)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_batch_of_ignored_pixels_costs_nothing():
    logits = noise(B, C, SIDE, SIDE).requires_grad_()
    loss = pixel_cross_entropy(logits, torch.full((B, SIDE, SIDE), IGNORED))
    loss.backward()
    assert (loss.item(), logits.grad.abs().sum().item()) == (0, 0)


def test_logits_have_the_images_size_and_the_network_learns_too(small_vit):
    backbone = small_vit(num_classes=0)
    objective = SegmentObjective(backbone, LinearHead(16, C))
    batch = SegmentBatch(images=noise(B, 3, 16, 16), masks=torch.ones(B, 16, 16).long())
    assert objective.logits(batch.images).shape == (B, C, 16, 16)
    output = objective(batch)
    output.loss.backward()
    assert all(p.grad is not None for p in objective.parameters())
    right = (objective.logits(batch.images).argmax(dim=1) == 1).float().mean()
    torch.testing.assert_close(output.metrics["train/pixel_accuracy"], right)


def test_parts_of_a_batch_add_up_to_its_loss_however_many_pixels_they_count():
    """The first image has a row that is ignored, the second all of its pixels."""
    logits, whole = noise(B, C, SIDE, SIDE), masks()
    counted = (whole != IGNORED).sum().float()
    parts = [
        0.5 * pixel_cross_entropy(logits[i : i + 1], whole[i : i + 1], counted * 0.5)
        for i in range(B)
    ]
    torch.testing.assert_close(sum(parts), pixel_cross_entropy(logits, whole))
