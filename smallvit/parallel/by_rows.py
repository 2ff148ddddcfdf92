"""Layers that look at other rows of the batch, or draw for them, in a batch that is shared out.

Stochastic depth and dropout draw for the rows that a layer is given, and a batch norm averages over
them. Where a process or a micro-batch sees some rows of a batch only, those layers must do for
them what they would do in the whole batch, or the step would be another one.
"""

from typing import Any

import torch
from jaxtyping import Float
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from smallvit.parallel import processes, rows


def share_out(objective: nn.Module) -> None:
    """Let the layers of a network do for part of a batch what they would do in the whole one.

    A layer gets another class in place: its weights, hooks and place in the network stay, and so
    does the state dict. Batch norms are those of the whole batch over processes; a
    micro-batch alone has statistics of its own. A second call changes nothing.
    """
    for module in objective.modules():
        if isinstance(module, DropPath) and module.drop_prob:
            module.__class__ = _DropPathByRow
        elif type(module) is nn.Dropout and module.p:
            module.__class__ = _DropoutByRow
        elif isinstance(module, _BatchNorm) and processes.count() > 1:
            _join_batch_norm(module)
        dropout = getattr(module, "attn_drop", None)
        fuses = hasattr(module, "fused_attn") and getattr(dropout, "p", 0)
        if fuses and _do_not_fuse not in module._forward_pre_hooks.values():
            # Fused kernels draw for the rows that they are given.
            module.register_forward_pre_hook(_do_not_fuse)


class _DropPathByRow(DropPath):
    def forward(self, x: Tensor) -> Tensor:
        """Drop the paths that the whole batch would drop in these rows."""
        here = rows.current_rows()
        if here is None or not self.training:
            return super().forward(x)
        keep = _keep(x, 1 - self.drop_prob, here, (1,) * (x.ndim - 1))
        return x * (keep / (1 - self.drop_prob) if self.scale_by_keep else keep)


class _DropoutByRow(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        """Drop the numbers that the whole batch would drop in these rows."""
        here = rows.current_rows()
        if here is None or not self.training:
            return super().forward(input)
        return input * (_keep(input, 1 - self.p, here, input.shape[1:]) / (1 - self.p))


def _keep(
    x: Tensor, prob: float, here: rows.Rows, shape: torch.Size | tuple[int, ...]
) -> Float[Tensor, "..."]:
    """Draw for the whole batch, views after each other, and take the rows at hand."""
    views = len(x) // len(here.index)
    drawn = x.new_empty(views * here.total, *shape).bernoulli_(prob)
    return drawn.unflatten(0, (views, here.total)).index_select(1, here.index).flatten(0, 1)


def _do_not_fuse(module: Any, _: Any) -> None:
    if module.training and rows.current_rows() is not None:
        module.fused_attn = False


class _BatchNormOfAll:
    """The training mode of a batch norm over the rows of all processes."""

    def forward(self: Any, input: Tensor) -> Tensor:
        """Normalise by the mean and variance of all."""
        if not self.training or rows.current_rows() is None:
            return super().forward(input)  # pyright: ignore[reportAttributeAccessIssue]
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.ndim)]
        with torch.autocast(input.device.type, enabled=False):
            x = input.float()
            counted = processes.add_up(x.new_tensor([x.numel() / x.shape[1]]))
            mean = processes.add_up(x.sum(axes)) / counted
            centered = x - mean.view(shape)
            var = processes.add_up(centered.square().sum(axes)) / counted
            out = centered * (var + self.eps).rsqrt().view(shape)
            if self.weight is not None:
                out = out * self.weight.view(shape)
            if self.bias is not None:
                out = out + self.bias.view(shape)
            if self.track_running_stats:
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean.detach(), self.momentum)
                self.running_var.lerp_((var * counted / (counted - 1)).detach(), self.momentum)
        out = out.to(input.dtype)
        # timm's batch norms have an activation in them.
        return self.act(self.drop(out)) if hasattr(self, "act") else out


def _join_batch_norm(module: _BatchNorm) -> None:
    cls = type(module)
    if not issubclass(cls, _BatchNormOfAll):
        module.__class__ = type(f"{cls.__name__}OfAll", (_BatchNormOfAll, cls), {})
