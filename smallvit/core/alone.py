"""Work in a process that does other things too: a notebook, threads, other libraries' numbers.

A run is a function of its recipe and seed. What the rest of the process has set is put aside while
smallvit computes, and is there again after it.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

logger = logging.getLogger("smallvit")
FRESH_SEED = 67280421310721  # of torch's generators in a new process
# torch has one set of generators and switches for all threads.
_turn = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Compute inside, or in the function that this decorates, as in a process of one's own.

    Of several threads one computes at a time; the others wait, and say so. Random numbers, default
    dtype and device, modes of autograd, autocast, precision switches and matplotlib's style are
    those of a fresh process inside, and those of the caller again after it. The number of threads
    is the caller's.
    """
    if not _turn.acquire(blocking=False):
        logger.info("another thread of this process is computing: waiting for its end")
        _turn.acquire()
    with ExitStack() as stack:
        stack.callback(_turn.release)
        _put_aside(stack)
        yield


def _put_aside(stack: ExitStack) -> None:
    on_cuda = torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if on_cuda else []
    stack.enter_context(torch.random.fork_rng(devices))
    if not on_cuda:  # CUDA's generators come to be with the seed that was set last
        stack.callback(torch.cuda.manual_seed_all, torch.initial_seed())
    torch.manual_seed(FRESH_SEED)
    cudnn = torch.backends.cudnn
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic = partial(torch.use_deterministic_algorithms, warn_only=warns)
    switches: list[tuple[Callable[[Any], None], Any, Any]] = [
        (torch.set_default_dtype, torch.get_default_dtype(), torch.float32),
        (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision(), "highest"),
        (deterministic, torch.are_deterministic_algorithms_enabled(), False),
        (partial(setattr, cudnn, "deterministic"), cudnn.deterministic, False),
        (partial(setattr, cudnn, "benchmark"), cudnn.benchmark, False),
    ]
    for put, before, fresh in switches:
        stack.callback(put, before)
        put(fresh)
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
