"""The processes that train together: which this one is, and what they say to each other.

Alone, a process is the first of one, and every function here is the identity.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from smallvit.core.errors import SmallViTError

ValueT = TypeVar("ValueT")


class OtherProcessError(SmallViTError):
    """What ended the first process, raised in the others; only the first one says it.

    Args:
        message: The first one's.
        exit_code: The first one's.
    """

    said = True

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def count() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Tell whether this process is the one that writes."""
    return number() == 0


def on_first(work: Callable[[], ValueT]) -> ValueT:
    """Do some work in the first process alone and return its result in all.

    Args:
        work: What to do; its result must be plain values.

    Raises:
        OtherProcessError: In the others, where the work failed in the first.
    """
    if count() == 1:
        return work()
    value, failure = None, None
    if is_first():
        try:
            value = work()
        except Exception as error:
            failure = error
    reason = failure and (str(failure), getattr(failure, "exit_code", 1))
    outcome: list[Any] = [(value, reason)]
    dist.broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    value, reason = outcome[0]
    if reason is not None:
        raise OtherProcessError(*reason)
    return value


def ahead(work: Callable[[], ValueT]) -> ValueT:
    """Do some work in the first process, then, by what it left on the disk, in the others."""
    found: list[ValueT] = []
    on_first(lambda: found.append(work()))
    return found[0] if found else work()


def gather(value: ValueT) -> list[ValueT]:
    """Return the values of all processes, in their order, in each."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def deal(items: Iterable[ValueT]) -> Iterator[ValueT]:
    """Yield the items that are this process's: every n-th one of n processes.

    Args:
        items: In several processes a sequence, so that no other is made.
    """
    if count() == 1:
        yield from items
        return
    assert isinstance(items, Sequence), "only what has a length can be dealt out"
    for index in range(number(), len(items), count()):
        yield items[index]


def any_of(flag: bool) -> bool:
    """Tell all processes whether any of them says so."""
    if count() == 1:
        return flag
    return bool(add_up_(torch.tensor([float(flag)])).item())


def add_up_(values: Tensor) -> Tensor:
    """Replace a tensor by its sum over the processes, in place."""
    if count() > 1:
        dist.all_reduce(values)
    return values


def add_up(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the sum over the processes; gradients of all processes come back to each."""
    return _AddUp.apply(values) if count() > 1 else values  # pyright: ignore[reportReturnType]


def add_up_gradients_(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over the processes, in one message.

    One message at the end of the backward pass, where DDP sends several while it goes on: these
    networks are small, prototypes are frozen and thawed, and micro-batches must not send each its
    own.
    """
    gradients: Sequence[Tensor] = [p.grad for p in parameters if p.grad is not None]
    if count() == 1 or not gradients:
        return
    message = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(message)
    parts = message.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
        list(gradients), [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
    )


class _AddUp(torch.autograd.Function):
    """A sum over the processes whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return add_up_(values.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return add_up_(gradients[0].clone(memory_format=torch.contiguous_format))
