"""AutoAttack, by the optional package pyautoattack.

Shapes in this file:
    N    images
    H W  image in pixels
"""

import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from smallvit.core.errors import ConfigError, explained
from smallvit.evaluate.pixel_classifier import PixelClassifier
from smallvit.models.measure import frozen

Version = Literal["standard", "plus"]
MOST_TARGETS = 9
# Classes that the losses of some attacks compare, and so the fewest that they work with.
FEWEST_CLASSES = {"apgd-t": 4, "apgd-dlr": 3}


@dataclass(frozen=True, kw_only=True)
class AutoAttackResult:
    """What AutoAttack left standing.

    Attributes:
        correct: Images that are still classified correctly.
        attacks: The attacks, in the order in which they were run on what was left.
        num_targets: Wrong classes that targeted attacks aimed at.
        package: Name and version of what attacked.
        flags: Its warnings that a figure may be too high, such as of gradients at zero.
    """

    correct: Bool[Tensor, " N"]
    attacks: tuple[str, ...]
    num_targets: int
    package: str
    flags: tuple[str, ...]


def autoattack(
    classifier: PixelClassifier,
    images: Float[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    *,
    eps: float,
    seed: int,
    version: Version = "standard",
    batch_size: int = 250,
) -> AutoAttackResult:
    """Attack images by AutoAttack, each attack on those that the ones before left.

    With fewer than ten classes all wrong ones are targets, not nine. The targeted APGD compares
    four classes: with three its untargeted form takes its place, which compares three, and with
    two neither is run. It runs in float32.

    Args:
        classifier: What to fool; its weights are left as they are.
        images: Colours in [0, 1].
        labels: True classes.
        eps: Largest change of a colour, in (0, 1].
        seed: Of all attacks.
        version: ``standard``, or the slower ``plus``.
        batch_size: Images attacked together.

    Raises:
        ConfigError: If pyautoattack is not installed, or ``eps`` is out of range.

    Source:
        Croce & Hein, 2020, Reliable evaluation of adversarial robustness with an ensemble of
        diverse parameter-free attacks, https://arxiv.org/abs/2003.01690.
    """
    package = _package()
    if not 0 < eps <= 1:
        raise ConfigError(f"eps of AutoAttack is a change of colours in (0, 1], got {eps:g}")
    devices = [images.device] if images.device.type == "cuda" else []
    with (
        frozen(classifier),
        torch.autocast(images.device.type, enabled=False),
        torch.random.fork_rng(devices),  # pyautoattack seeds torch's own generators
        _untraced(),
        _noting_flags() as flags,
    ):
        adversary = package.AutoAttack(
            classifier, norm="Linf", eps=eps, version=version, seed=seed, device=images.device
        )
        with torch.no_grad():
            num_classes = classifier(images[:1]).shape[1]
        targets = min(MOST_TARGETS, num_classes - 1)
        adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = targets
        adversary.attacks_to_run = _attacks(adversary.attacks_to_run, num_classes)
        # Both are tensors of the images' device: worst images, and the classes they are taken for.
        _, predicted = adversary.run_standard_evaluation(images, labels, batch_size=batch_size)
    return AutoAttackResult(
        correct=predicted == labels,
        attacks=tuple(adversary.attacks_to_run),
        num_targets=targets,
        package=autoattack_version(),
        # One of them says that three classes are too few for the attack that was replaced.
        flags=tuple(dict.fromkeys(flag for flag in flags if not flag.startswith("with only"))),
    )


def autoattack_version() -> str:
    """Return the name and version of what attacks.

    Raises:
        ConfigError: If it is not installed.
    """
    _package()
    return f"pyautoattack {importlib.metadata.version('pyautoattack')}"


def _attacks(attacks: list[str], num_classes: int) -> list[str]:
    """Put others in the place of attacks that need more classes, and leave out what still does."""
    wanted = [
        "apgd-dlr" if name == "apgd-t" and num_classes < FEWEST_CLASSES[name] else name
        for name in attacks
    ]
    return [name for name in dict.fromkeys(wanted) if num_classes >= FEWEST_CLASSES.get(name, 2)]


def _package() -> Any:
    needs = "AutoAttack needs pyautoattack: pip install 'smallvit[robust]'"
    with explained(lambda _: needs, ImportError, into=ConfigError):
        return importlib.import_module("pyautoattack")


@contextmanager
def _untraced() -> Iterator[None]:
    """Give a debugger its trace back: pyautoattack looks for hidden gradients by one of its own."""
    trace = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(trace)


@contextmanager
def _noting_flags() -> Iterator[list[str]]:
    """Collect the warnings of pyautoattack, which go to a logger of its own."""
    flags: list[str] = []
    log = logging.getLogger("auto-attack")

    def note(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            flags.append(" ".join(record.getMessage().split()))
        return False  # it is written nowhere else

    log.addFilter(note)
    try:
        yield flags
    finally:
        log.removeFilter(note)
