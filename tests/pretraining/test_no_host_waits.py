"""No step of stage 1 waits for the device: on a CPU, seen by what is called."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from smallvit.data.batches import ViewBatch
from smallvit.data.config import ViewsConfig
from smallvit.data.dataset import Dataset, Split
from smallvit.data.order import Order
from smallvit.data.views import ViewBatches
from smallvit.engine.config import OptimConfig, RuntimeConfig
from smallvit.engine.optim import create_optimizer
from smallvit.engine.runtime import open_runtime
from smallvit.engine.step import train_step
from smallvit.pretraining.config import METHODS
from smallvit.pretraining.registry import create_objective

SIDE, BATCH, STEPS = 16, 4, 2
# A value has to come back to the host, or the size of a result that depends on values.
WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "equal")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")  # by a mask: nonzero within
COPIES = ("tolist", "numpy", "cpu")  # no operations on a CPU, where nothing has to be copied


class Watch(TorchDispatchMode):
    """Note every call for which a GPU would make the host wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.waits: list[str] = []
        for name in COPIES:
            monkeypatch.setattr(torch.Tensor, name, self._noting(name))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name in INDEXING and any(i is not None and i.dtype is torch.bool for i in args[1])
        if masked or name in WAITING:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))

    def _noting(self, name: str) -> Callable:
        original = getattr(torch.Tensor, name)

        def noted(tensor, *args, **kwargs):
            self.waits.append(name)
            return original(tensor, *args, **kwargs)

        return noted


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.index_put_((x > 0,), x.sum()),
        lambda x: x.nonzero(),
    ],
)
def test_the_watch_sees_a_wait(wait, monkeypatch):
    with Watch(monkeypatch) as watch:
        wait(torch.randn(4))
    assert watch.waits


def test_the_watch_passes_what_stays_on_the_device(monkeypatch):
    with Watch(monkeypatch) as watch:
        x = torch.randn(4)
        torch.where(x > 0, x, 0.0)[torch.tensor([1, 2])] += x.argsort()[:2]
    assert not watch.waits


@pytest.mark.parametrize("name", METHODS)
def test_a_step_does_not_wait_for_the_device(name, small_vit, monkeypatch):
    torch.manual_seed(0)
    config = METHODS[name]()
    objective = create_objective(small_vit(), config, image_size=SIDE).train()
    optimizer = create_optimizer(objective, OptimConfig())
    parameters = [p for p in objective.parameters() if p.requires_grad]
    runtime = open_runtime(RuntimeConfig(device="cpu", precision="bf16"))
    draws = objective.mask_draws
    locals_ = torch.randn(config.views.num_local, BATCH, 3, SIDE // 2, SIDE // 2)
    with Watch(monkeypatch) as watch:
        for step in range(STEPS):
            batch = ViewBatch(
                global_views=torch.randn(config.views.num_global, BATCH, 3, SIDE, SIDE),
                local_views=locals_ if len(locals_) else None,
                epoch=float(step),
                progress=step / STEPS,
                mask_draws=torch.rand(BATCH, draws) if draws else None,
            )
            train_step(
                objective,
                batch,
                optimizer,
                parameters,
                grad_clip_norm=3.0,
                grad_clip_mode="parameter",
                runtime=runtime,
            )
            objective.after_step((step + 1) / STEPS)
    assert not watch.waits


def test_views_are_made_without_waiting_on_a_gpu_and_are_those_of_the_cpu(monkeypatch):
    pixels = torch.randint(0, 256, (12, 3, SIDE, SIDE), dtype=torch.uint8)
    split = Split(images=pixels, labels=torch.zeros(12).long(), index=torch.arange(12))
    dataset = Dataset(
        name="made",
        class_names=("a", "b"),
        image_size=SIDE,
        splits={"train": split},
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        hflip=True,
        fingerprint="",
        split_hashes={},
        broken=(),
        store_path=Path(),
    )
    order = Order(12, BATCH, 0, torch.device("cpu"))
    batches = ViewBatches(dataset, order, ViewsConfig(), STEPS, mask_draws=16)
    expected = batches(1)
    # On a CPU, only the images that a change is drawn for are computed, and they are counted.
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    with Watch(monkeypatch) as watch:
        batch = batches(1)
    assert not watch.waits
    assert expected.local_views is not None
    torch.testing.assert_close(batch.global_views, expected.global_views, rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.local_views, expected.local_views, rtol=0, atol=1e-5)
