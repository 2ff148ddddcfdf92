import re

import pytest
import torch
from torch import nn

from smallvit.core.errors import ConfigError
from smallvit.core.momentum import update_momentum
from smallvit.data.config import ViewsConfig
from smallvit.pretraining.config import check_two_views
from smallvit.pretraining.method import check_batch_size, project


def pair(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_momentum_update_is_the_exact_lerp_of_all_pairs(momentum):
    copies, students = [pair(0), pair(1)], [pair(2), pair(3)]
    before = [[p.detach().clone() for p in copy.parameters()] for copy in copies]
    update_momentum(list(zip(copies, students, strict=True)), momentum)
    for old, copy, student in zip(before, copies, students, strict=True):
        for was, now, theirs in zip(old, copy.parameters(), student.parameters(), strict=True):
            expected = momentum * was + (1 - momentum) * theirs.detach()
            torch.testing.assert_close(now.detach(), expected)


def test_momentum_update_is_one_call_for_all_pairs(monkeypatch):
    calls = []
    lerp = torch._foreach_lerp_
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *a: (calls.append(a), lerp(*a)))
    update_momentum([(pair(0), pair(2)), (pair(1), pair(3))], 0.5)
    assert [len(tensors) for tensors, *_ in calls] == [8]


def test_momentum_update_copies_what_batch_norm_has_counted():
    copy, student = pair(0), pair(1)
    student(torch.randn(5, 3))
    update_momentum([(copy, student)], 1.0)
    for mine, theirs in zip(copy.buffers(), student.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert copy.get_buffer("1.num_batches_tracked").item() == 1


def test_momentum_update_leaves_the_student_alone():
    copy, student = pair(0), pair(1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    update_momentum([(copy, student)], 0.5)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(p.grad is None and p.grad_fn is None for p in copy.parameters())


def test_project_keeps_the_order_of_views_and_images(small_vit):
    backbone = small_vit().eval()
    head = nn.Linear(backbone.embed_dim, 7)
    views = torch.randn(3, 2, 3, 16, 16)
    projected = project(backbone, head, views)
    assert projected.shape == (3, 2, 7)
    for v in range(3):
        for b in range(2):
            alone = head(backbone(views[v, b][None]).pooled)[0]
            torch.testing.assert_close(projected[v, b], alone, rtol=1e-4, atol=1e-5)


def test_project_runs_the_network_once(small_vit):
    backbone, seen = small_vit(), []
    backbone.model.blocks[0].register_forward_hook(lambda *args: seen.append(len(args[2])))
    project(backbone, nn.Identity(), torch.randn(2, 3, 3, 16, 16))
    assert seen == [6]


def test_project_returns_float32_under_autocast(small_vit):
    head = nn.Linear(16, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert project(small_vit(), head, torch.randn(2, 3, 3, 16, 16)).dtype == torch.float32


@pytest.mark.parametrize(("large", "small"), [(1, 0), (2, 1), (1, 2)])
def test_other_views_than_two_large_ones_are_refused(large, small):
    wrong = [f"global ({large}) must be 2"] * (large != 2) + [f"local ({small}) must be 0"] * bool(
        small
    )
    message = re.escape(" and ".join(f"method.views.num_{each}" for each in wrong))
    with pytest.raises(ConfigError, match=f"{message}: simclr compares two large views"):
        check_two_views("simclr", ViewsConfig(num_global=large, num_local=small))


@pytest.mark.parametrize("size", [1, 4])
def test_batches_of_one_image_and_of_copies_are_refused(size):
    with pytest.raises(ConfigError, match=f"--batch-size {size} must be between 2 and the 3 train"):
        check_batch_size("mocov3", size, 3)


def test_batches_of_all_images_are_fine():
    check_batch_size("mocov3", 3, 3)
