"""Where and how precisely a run computes."""

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from smallvit.core import places
from smallvit.core.errors import ConfigError
from smallvit.core.memory import keep_freed_memory
from smallvit.engine.config import Precision, RuntimeConfig
from smallvit.models.tokens import AbstractBackbone

logger = logging.getLogger("smallvit")
COMPILED = ("embed", "encode", "encode_visible")  # passes of a network
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A resolved device and precision.

    Attributes:
        device: Where tensors live.
        autocast_dtype: Dtype of matrix products in the forward pass; ``None`` is float32.
        compiled: Whether networks are compiled.
        grad_checkpointing: Whether networks compute their blocks again in the backward pass.
        micro_batch: Most images of one forward and backward pass; ``None`` is all.
    """

    device: torch.device
    autocast_dtype: torch.dtype | None
    compiled: bool = False
    grad_checkpointing: bool = False
    micro_batch: int | None = None

    @property
    def precision(self) -> str:
        """Return the name of the precision."""
        return next(name for name, dtype in DTYPES.items() if dtype is self.autocast_dtype)

    def autocast(self) -> torch.autocast:
        """Return the context of every forward pass."""
        return torch.autocast(
            self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None
        )


def uses_cuda(config: RuntimeConfig) -> bool:
    """Tell whether a run with these settings computes on a CUDA device."""
    return config.device != "cpu" and torch.cuda.is_available()


def open_runtime(config: RuntimeConfig) -> Runtime:
    """Resolve ``auto`` for this machine.

    Under torchrun, each process has the CUDA device of its local rank.

    Raises:
        ConfigError: If a CUDA device is asked for and there is none, or fewer than processes.
    """
    on_cuda = uses_cuda(config)
    if config.device == "cuda" and not on_cuda:
        raise ConfigError("runtime.device is 'cuda' but this machine has no CUDA device: use 'cpu'")
    device = torch.device("cuda", _local_rank()) if on_cuda else torch.device("cpu")
    if on_cuda:
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    if config.deterministic:
        os.environ.setdefault(places.CUBLAS, ":4096:8")  # read with the first product
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.deterministic = config.deterministic
    return Runtime(
        device=device,
        autocast_dtype=_choose_dtype(config.precision, device),
        compiled=config.compile == "on" or (config.compile == "auto" and _can_compile(device)),
        grad_checkpointing=config.grad_checkpointing,
        micro_batch=config.micro_batch,
    )


@contextmanager
def compiled_networks(objective: nn.Module) -> Iterator[None]:
    """Compile the passes of every network of an objective, and put the plain ones back at the end.

    Networks alone: what a method does around them changes with the step, and each change would be
    compiled anew. Shapes are fixed, one for each size of view. State dicts stay as they are.
    """
    networks = [module for module in objective.modules() if isinstance(module, AbstractBackbone)]
    for network in networks:
        for name in COMPILED:
            setattr(network, name, torch.compile(getattr(network, name), dynamic=False))
    try:
        with warnings.catch_warnings():
            # Tracing looks at every attribute of what goes in, and patches are no leaves.
            warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor")
            yield
    finally:
        for network in networks:
            for name in COMPILED:
                delattr(network, name)


def say_precision(config: RuntimeConfig) -> None:
    """Say where a command starts that this CPU multiplies in bfloat16 too, if nobody chose."""
    has_bf16 = torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    if not uses_cuda(config) and config.precision == "auto" and has_bf16:
        logger.info(
            "products are computed in float32; this processor multiplies in bfloat16 as well, with "
            "fewer digits (--precision bf16)"
        )


def _local_rank() -> int:
    """Return the CUDA device of this process, as torchrun numbers them."""
    rank, devices = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if rank >= devices:
        raise ConfigError(
            f"process {rank} of this machine has no CUDA device of its own, there are {devices}: "
            f"use --nproc-per-node {devices}"
        )
    return rank


def _choose_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    lacking = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and lacking:
        logger.warning("this CUDA device has no bfloat16: float32 is used; --precision fp16 may do")
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return None if precision == "bf16" and lacking else DTYPES[precision]


def _can_compile(device: torch.device) -> bool:
    """Tell whether torch.compile is worth while: on a CUDA device with triton."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0)
