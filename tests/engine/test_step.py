import pytest
import torch

from smallvit.data.batches import LabeledBatch
from smallvit.engine.config import OptimConfig, RuntimeConfig
from smallvit.engine.optim import create_optimizer
from smallvit.engine.runtime import open_runtime
from smallvit.engine.step import train_step


def take_step(objective, batch, optimizer=None, clip=None, mode="global"):
    optimizer = optimizer or create_optimizer(objective, OptimConfig())
    runtime = open_runtime(RuntimeConfig(device="cpu", precision="fp32"))
    parameters = [p for p in objective.parameters() if p.requires_grad]
    return train_step(
        objective,
        batch,
        optimizer,
        parameters,
        grad_clip_norm=clip,
        grad_clip_mode=mode,
        runtime=runtime,
    )


def spoiled(batch: LabeledBatch, value: float = float("nan")) -> LabeledBatch:
    images = batch.images.clone()
    images[0, 0, 0, 0] = value
    return LabeledBatch(
        images=images, labels=batch.labels, score_maps=batch.score_maps, mix_box=batch.mix_box
    )


def test_first_step_of_adam_moves_by_the_learning_rate(finetune, labelled_batch):
    """Closed form: without decay every weight with a gradient moves by lr, whatever its size."""
    objective = finetune().eval()
    before = objective.token_head.weight.clone()
    optimizer = create_optimizer(objective, OptimConfig(lr=1e-2, weight_decay=0.0))
    take_step(objective, labelled_batch(0), optimizer)
    moved = (objective.token_head.weight - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), rtol=1e-3, atol=0)


def test_metrics_are_the_loss_and_the_norm_before_clipping(finetune, labelled_batch):
    objective = finetune().eval()
    objective(labelled_batch(0)).loss.backward()
    norm = torch.stack([p.grad.norm() for p in objective.parameters()]).norm()
    metrics = take_step(objective, labelled_batch(0), clip=1e-3)
    torch.testing.assert_close(metrics["opt/grad_norm"], norm.detach())
    assert metrics["not_finite"] == 0
    assert {"train/loss", "train/loss_cls", "train/loss_token", "train/top1"} <= set(metrics)


def test_gradient_is_clipped_to_the_limit(finetune, labelled_batch):
    objective = finetune().eval()
    take_step(objective, labelled_batch(0), clip=0.01)
    norm = torch.stack([p.grad.norm() for p in objective.parameters()]).norm()
    torch.testing.assert_close(norm, torch.tensor(0.01), rtol=1e-3, atol=0)


def test_each_gradient_is_clipped_by_itself_and_the_norm_of_all_is_logged(finetune, labelled_batch):
    objective = finetune().eval()
    objective(labelled_batch(0)).loss.backward()
    norms = [p.grad.norm().item() for p in objective.parameters()]
    limit = sorted(norms)[len(norms) // 2]
    metrics = take_step(objective, labelled_batch(0), clip=limit, mode="parameter")
    torch.testing.assert_close(metrics["opt/grad_norm"], torch.tensor(norms).norm())
    clipped = [p.grad.norm().item() for p in objective.parameters()]
    assert clipped == pytest.approx([min(norm, limit) for norm in norms], rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("clip", "mode"), [(None, "global"), (3.0, "global"), (3.0, "parameter"), (None, "parameter")]
)
def test_a_loss_that_is_not_finite_leaves_the_parameters(
    finetune, labelled_batch, value, clip, mode
):
    objective = finetune()
    optimizer = create_optimizer(objective, OptimConfig())
    take_step(objective, labelled_batch(0), optimizer, clip, mode)
    before = [p.clone() for p in objective.parameters()]
    metrics = take_step(objective, spoiled(labelled_batch(1), value), optimizer, clip, mode)
    assert metrics["not_finite"] == 1
    assert all(torch.equal(p, b) for p, b in zip(objective.parameters(), before, strict=True))


def test_training_goes_on_after_a_step_that_was_skipped(finetune, labelled_batch):
    """The skipped step leaves no trace: moments and step counts are those of a run without it."""
    results = []
    for batches in ([0, None, 1], [0, 1]):
        objective = finetune().eval()
        optimizer = create_optimizer(objective, OptimConfig())
        for step in batches:
            batch = spoiled(labelled_batch(9)) if step is None else labelled_batch(step)
            take_step(objective, batch, optimizer)
        results.append([p.detach() for p in objective.parameters()])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_bfloat16_trains_float32_weights(finetune, labelled_batch):
    objective = finetune()
    runtime = open_runtime(RuntimeConfig(device="cpu", precision="bf16"))
    optimizer = create_optimizer(objective, OptimConfig())
    parameters = list(objective.parameters())
    metrics = train_step(
        objective, labelled_batch(0), optimizer, parameters, grad_clip_norm=1.0, runtime=runtime
    )
    assert {value.dtype for value in metrics.values()} == {torch.float32}
    assert {p.dtype for p in parameters} == {torch.float32}
