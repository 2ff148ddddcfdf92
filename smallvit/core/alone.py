"""Work in a process that does other things too: a notebook, threads, other libraries' numbers.

A run is a function of its recipe and seed. What the rest of the process has set is put aside while
smallvit computes, and is there again after it.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("smallvit")
FRESH_SEED = 67280421310721  # of torch's generators in a new process
# torch has one set of generators and switches for all threads.
_turn = threading.RLock()


def alone(work: Callable[P, T]) -> Callable[P, T]:
    """Let a function compute as it would in a process of its own.

    Of several threads one computes at a time; the others wait, and say so. Random numbers, default
    dtype and device, modes of autograd, autocast, precision switches and matplotlib's style are
    those of a fresh process inside, and those of the caller again after it. The number of threads
    is the caller's.

    Args:
        work: Function to wrap.
    """

    @wraps(work)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with _as_in_a_fresh_process():
            return work(*args, **kwargs)

    return wrapped


@contextmanager
def _as_in_a_fresh_process() -> Iterator[None]:
    if not _turn.acquire(blocking=False):
        logger.info("another thread of this process is computing: waiting for its end")
        _turn.acquire()
    try:
        with ExitStack() as stack:
            _put_aside(stack)
            yield
    finally:
        _turn.release()


def _put_aside(stack: ExitStack) -> None:
    on_cuda = torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if on_cuda else []
    stack.enter_context(torch.random.fork_rng(devices))
    if not on_cuda:  # CUDA's generators come to be with the seed that was set last
        stack.callback(torch.cuda.manual_seed_all, torch.initial_seed())
    torch.manual_seed(FRESH_SEED)
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(torch.float32)
    stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("highest")
    stack.callback(
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(False)
    for name, fresh in (("deterministic", False), ("benchmark", False)):
        stack.callback(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
        setattr(torch.backends.cudnn, name, fresh)
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.enable_grad())
    for device in ("cpu", "cuda") if on_cuda else ("cpu",):
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    if torch.get_default_device().type != "cpu":
        stack.enter_context(torch.device("cpu"))
    if "matplotlib" in sys.modules:
        import matplotlib as mpl

        stack.enter_context(mpl.rc_context())
        mpl.rcdefaults()
