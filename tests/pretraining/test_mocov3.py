import math
from typing import Any

import pytest
import torch
from torch import nn

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.data.batches import ViewBatch
from smallvit.data.config import ViewsConfig
from smallvit.engine.config import OptimConfig
from smallvit.engine.optim import create_optimizer
from smallvit.models.registry import create_backbone
from smallvit.models.timm_model import TimmBackbone
from smallvit.pretraining.config import MocoV3Config
from smallvit.pretraining.mocov3 import MocoV3Objective, patch_embedding, symmetric_info_nce

TINY = {"hidden_dim": 16, "output_dim": 8}
OTHERS = {
    "gani_swin": {"embed_dim": 24, "window_size": 2, "patch_size": 1},
    "gani_cait": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    "vit_tiny_convstem": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    "lvvit_tiny": {"embed_dim": 32, "depth": 1, "num_heads": 2},
    "resnet8_small": {"width": 4},
    "convnext_atto_small": {},
}


def make_batch(images: int = 3, size: int = 16) -> ViewBatch:
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(2, images, 3, size, size, generator=generator)
    return ViewBatch(global_views=views, local_views=None, epoch=1.0, progress=0.5)


def build(name: str, size: int = 16, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = ModelConfig(name=name, **settings)
    return create_backbone(config, num_classes=0, image_size=size)


@pytest.fixture
def objective(small_vit) -> MocoV3Objective:
    """A momentum teacher that is not its student."""
    objective = MocoV3Objective(
        small_vit(num_classes=0, drop_path_rate=0.5), MocoV3Config(**TINY), image_size=16
    )
    generator = torch.Generator().manual_seed(2)
    for module in (objective.ema_teacher, objective.ema_teacher_head):
        for parameter in module.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return objective


def take_step(objective: MocoV3Objective, batch: ViewBatch) -> None:
    optimizer = create_optimizer(objective, OptimConfig(lr=0.01))
    objective(batch).loss.backward()
    optimizer.step()
    objective.after_step(0.0)


def test_equal_vectors_cost_log_of_the_batch():
    """Closed form: where all cosines are equal, each of the two terms is log B, times 2 tau."""
    vectors = torch.ones(2, 5, 4)
    torch.testing.assert_close(
        symmetric_info_nce(vectors, vectors, 0.2), torch.tensor(4 * 0.2 * math.log(5))
    )


def test_orthogonal_images_cost_what_their_temperature_leaves():
    """Closed form: cosine 1 with its own key and 0 with B - 1 others."""
    vectors = torch.eye(5).expand(2, -1, -1) * 3
    cost = math.log(1 + 4 * math.exp(-1 / 0.2))
    torch.testing.assert_close(
        symmetric_info_nce(vectors, vectors, 0.2), torch.tensor(4 * 0.2 * cost)
    )


def test_loss_is_that_of_loops_over_queries_and_keys():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 2, 4, 6, generator=generator)
    total = 0.0
    for q_view, k_view in ((0, 1), (1, 0)):
        for i in range(4):
            cosines = [
                torch.cosine_similarity(queries[q_view, i], keys[k_view, j], dim=0).item() / 0.2
                for j in range(4)
            ]
            total += math.log(sum(math.exp(c) for c in cosines)) - cosines[i]
    loss = symmetric_info_nce(queries, keys, 0.2)
    assert loss.item() == pytest.approx(2 * 0.2 * total / 4, rel=1e-5)


def test_loss_does_not_depend_on_the_order_of_images_or_views():
    queries, keys = torch.randn(2, 2, 4, 6)
    loss = symmetric_info_nce(queries, keys, 0.2)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(symmetric_info_nce(queries[:, order], keys[:, order], 0.2), loss)
    torch.testing.assert_close(symmetric_info_nce(queries.flip(0), keys.flip(0), 0.2), loss)
    assert not torch.isclose(symmetric_info_nce(queries[:, order], keys, 0.2), loss)


def test_loss_keeps_float32_under_autocast():
    queries, keys = torch.randn(2, 2, 4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = symmetric_info_nce(queries, keys, 0.2)
    assert torch.equal(inside, symmetric_info_nce(queries, keys, 0.2))


def test_objective_is_the_loss_of_its_networks_view_by_view(objective):
    """Heads see one view at a time, the teacher's with the statistics of the batch."""
    objective.train()
    objective.student.eval()  # no stochastic depth, so that two passes agree
    batch = make_batch()
    queries, keys = [], []
    for view in batch.global_views:
        projected = objective.student_head(objective.student(view).pooled)
        queries.append(objective.predictor(projected))
        keys.append(objective.ema_teacher_head(objective.ema_teacher.eval()(view).pooled))
    expected = symmetric_info_nce(torch.stack(queries), torch.stack(keys), 0.2)
    torch.testing.assert_close(objective(batch).loss, expected, rtol=1e-4, atol=1e-5)


def test_heads_end_in_a_batch_norm_without_scale_and_shift(objective):
    depths = {"student_head": 3, "predictor": 2, "ema_teacher_head": 3}
    for name, depth in depths.items():
        layers = objective.get_submodule(name).layers
        assert sum(isinstance(layer, nn.Linear) for layer in layers) == depth
        assert isinstance(layers[-1], nn.BatchNorm1d)
        assert layers[-1].weight is None
        assert layers[1].weight is not None


def test_gradient_reaches_the_student_and_not_the_teacher(objective):
    objective.train()
    objective.student.eval()  # else stochastic depth may skip a block of all images
    objective(make_batch()).loss.backward()
    named = dict(objective.named_parameters())
    assert [name for name, p in named.items() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for name, p in named.items() if name.startswith("ema_teacher"))


def test_teacher_starts_as_the_student(small_vit):
    objective = MocoV3Objective(small_vit(), MocoV3Config(**TINY), image_size=16)
    for student, teacher in (
        (objective.student, objective.ema_teacher),
        (objective.student_head, objective.ema_teacher_head),
    ):
        expected = student.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in teacher.state_dict().items())
        assert not any(p.requires_grad for p in teacher.parameters())
    assert objective.exported is objective.student


@pytest.mark.parametrize(("progress", "momentum"), [(0.0, 0.99), (0.5, 0.995), (1.0, 1.0)])
def test_teacher_moves_by_a_cosine_of_momentum(objective, progress, momentum):
    was = objective.ema_teacher.model.blocks[0].attn.qkv.weight.clone()
    head_was = objective.ema_teacher_head.layers[0].weight.clone()
    objective.after_step(progress)
    student = objective.student.model.blocks[0].attn.qkv.weight.detach()
    now = objective.ema_teacher.model.blocks[0].attn.qkv.weight
    torch.testing.assert_close(now, momentum * was + (1 - momentum) * student)
    head = objective.student_head.layers[0].weight.detach()
    expected = momentum * head_was + (1 - momentum) * head
    torch.testing.assert_close(objective.ema_teacher_head.layers[0].weight, expected)


def test_teachers_stochastic_depth_is_off_and_its_batch_norms_are_on():
    backbone = build("resnet8_small", width=4)
    objective = MocoV3Objective(backbone, MocoV3Config(**TINY), image_size=16).train()
    objective(make_batch())
    modes = {type(m).__name__: m.training for m in objective.ema_teacher.modules()}
    assert modes["BatchNorm2d"]
    assert not modes["ResidualBlock"]
    assert objective.ema_teacher_head.training


def test_patch_embedding_stays_as_it_is(small_vit):
    objective = MocoV3Objective(small_vit(num_classes=0), MocoV3Config(**TINY), image_size=16)
    patch = objective.student.model.patch_embed.proj
    before, others = patch.weight.clone(), objective.student.model.pos_embed.clone()
    take_step(objective, make_batch())
    assert torch.equal(patch.weight, before)
    assert torch.equal(objective.ema_teacher.model.patch_embed.proj.weight, before)
    assert not torch.equal(objective.student.model.pos_embed, others)


def test_patch_embedding_is_trained_where_asked_to(small_vit):
    config = MocoV3Config(**TINY, freeze_patch_embed=False)
    objective = MocoV3Objective(small_vit(), config, image_size=16)
    before = objective.student.model.patch_embed.proj.weight.clone()
    take_step(objective, make_batch())
    assert not torch.equal(objective.student.model.patch_embed.proj.weight, before)


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("gani_swin", {"patch_embed.proj", "patch_embed.norm"}),
        ("gani_cait", {"patch_embed.proj"}),
        ("resnet8_small", {"conv", "bn"}),
        ("convnext_atto_small", {"stem.0"}),
    ],
)
def test_patch_embedding_is_found_in_other_architectures(name, frozen):
    backbone = build(name, **OTHERS[name])
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    chosen = {id(p) for p in patch_embedding(backbone, 16)}
    names = {n.rpartition(".")[0] for n, p in backbone.model.named_parameters() if id(p) in chosen}
    assert names == frozen
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert backbone.training


def test_a_network_without_a_known_patch_embedding_is_refused():
    backbone = build("convnext_atto_small")
    assert isinstance(backbone, TimmBackbone)
    backbone.model.pretrained_cfg = {}
    with pytest.raises(ConfigError, match=r"cannot tell .* ConvNeXt .*freeze_patch_embed false"):
        MocoV3Objective(backbone, MocoV3Config(**TINY), image_size=16)
    unfrozen = MocoV3Config(**TINY, freeze_patch_embed=False)
    assert MocoV3Objective(backbone, unfrozen, image_size=16)


@pytest.mark.parametrize("name", OTHERS)
def test_every_architecture_takes_a_step_on_two_images_in_bfloat16(name):
    backbone = build(name, **OTHERS[name])
    objective = MocoV3Objective(backbone, MocoV3Config(**TINY), image_size=16).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(make_batch(images=2)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    grads = [p.grad for p in objective.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


def test_other_views_are_refused():
    with pytest.raises(ConfigError, match=r"num_local \(3\) must be 0: mocov3 compares two"):
        MocoV3Config(views=ViewsConfig(num_local=3))
