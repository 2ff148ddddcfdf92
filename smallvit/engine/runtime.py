"""Where and how precisely a run computes."""

import ctypes
from dataclasses import dataclass
from typing import Literal

import torch

from smallvit.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Device and precision.

    Attributes:
        device: ``auto`` takes a CUDA device where there is one.
        precision: ``auto`` is bf16 on a CUDA device that has it, else fp32.
        grad_checkpointing: Compute the network's blocks again in the backward pass: less memory
            for about a third more time.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    grad_checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A resolved device and precision.

    Attributes:
        device: Where tensors live.
        autocast_dtype: Dtype of matrix products in the forward pass; ``None`` is float32.
        grad_checkpointing: Whether networks compute their blocks again in the backward pass.
    """

    device: torch.device
    autocast_dtype: torch.dtype | None
    grad_checkpointing: bool = False

    def autocast(self) -> torch.autocast:
        """Return the context of every forward pass."""
        return torch.autocast(
            self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None
        )


def open_runtime(config: RuntimeConfig) -> Runtime:
    """Resolve ``auto`` for this machine.

    Raises:
        ConfigError: If a CUDA device is asked for and there is none.
    """
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise ConfigError("runtime.device is 'cuda' but this machine has no CUDA device: use 'cpu'")
    device = torch.device("cuda" if cuda and config.device != "cpu" else "cpu")
    if device.type == "cpu":
        _keep_freed_memory()
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return Runtime(
        device=device,
        autocast_dtype=torch.bfloat16 if bf16 else None,
        grad_checkpointing=config.grad_checkpointing,
    )


def _keep_freed_memory() -> None:
    """Let glibc keep freed buffers up to 1 GiB for the next step.

    By default it returns those of a few MB to the system, which clears them again page by page at
    the next step: half of the time of stage 1's views on two cores. Other C libraries are left
    as they are.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: its largest value
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        return
