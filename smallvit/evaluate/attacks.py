"""Adversarial images by gradients: FGSM and PGD, in the largest change of a pixel's colour.

Attacks change colours in [0, 1] and see the network with its normalisation inside. They run in
float32, whatever the precision of the training: bfloat16 rounds away changes below 1/256.

What is climbed is the logarithm of the odds of being wrong, log (1 - p) / p for the probability p
of the true class. The cross-entropy is a rising function of it, so gradients have the same signs
and images the same order; but where p rounds to 1 the cross-entropy has no slope left, and a
network that is sure would only seem robust.

Shapes in this file:
    B    images
    N    images of a split
    C    classes
    H W  image in pixels
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from smallvit.core import rng
from smallvit.core.errors import ConfigError
from smallvit.evaluate.classify import predicted_classes
from smallvit.evaluate.pixel_classifier import PixelClassifier
from smallvit.evaluate.sharing import Batches
from smallvit.models.measure import frozen

Attack = Literal["fgsm", "pgd"]
STEPS = 20
# Of eps, over the number of steps: enough to cross the box and to come back.
STEP_FACTOR = 2.5


@dataclass(frozen=True, kw_only=True)
class _Search:
    """How PGD looks for the worst image of a box; see ``pgd``."""

    steps: int
    restarts: int
    seed: int
    step_size: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of PGD must be at least 1, got {getattr(self, name)}")
        if self.step_size is not None and not 0 < self.step_size <= 1:
            raise ConfigError(f"step_size of PGD must be in (0, 1], got {self.step_size:g}")


def fgsm(
    classifier: PixelClassifier,
    images: Float[Tensor, "B 3 H W"],
    labels: Int[Tensor, " B"],
    *,
    eps: float,
) -> Float[Tensor, "B 3 H W"]:
    """Move every colour by ``eps`` along the sign of the loss's gradient, once.

    Args:
        classifier: What to fool; its weights get no gradient and are left as they are.
        images: Colours in [0, 1].
        labels: True classes.
        eps: Largest change of a colour, in [0, 1].

    Returns:
        Colours in [0, 1].

    Raises:
        ConfigError: If ``eps`` is out of range.

    Source:
        Goodfellow et al., 2015, Explaining and Harnessing Adversarial Examples,
        https://arxiv.org/abs/1412.6572, section 4.
    """
    _check_eps(eps)
    with frozen(classifier), torch.autocast(images.device.type, enabled=False), torch.enable_grad():
        point = images.detach().requires_grad_()
        loss, _ = _judge(classifier, point, labels)
        (gradient,) = torch.autograd.grad(loss.sum(), point)
    return (images + eps * gradient.sign()).clamp(0, 1)


def pgd(
    classifier: PixelClassifier,
    images: Float[Tensor, "B 3 H W"],
    labels: Int[Tensor, " B"],
    *,
    eps: float,
    steps: int = STEPS,
    restarts: int = 1,
    step_size: float | None = None,
    seed: int = 0,
    indices: Int[Tensor, " B"],
) -> Float[Tensor, "B 3 H W"]:
    """Climb the loss within a box around each image, from random places of it.

    The worst image is kept, of all steps of all restarts and the clean image: one that is
    misclassified, else the one of the highest loss. An image that is misclassified is climbed no
    further, so one whose clean image is stays as it is.

    Args:
        classifier: What to fool; its weights get no gradient and are left as they are.
        images: Colours in [0, 1].
        labels: True classes.
        eps: Largest change of a colour, in [0, 1].
        steps: Gradients of a restart.
        restarts: Random places to start from.
        step_size: Change of a colour in a step; ``None`` is 2.5 ``eps / steps``.
        seed: Of the random places.
        indices: Number of each image in its split, which its random places depend on.

    Returns:
        Colours in [0, 1].

    Raises:
        ConfigError: If a setting is out of range.

    Source:
        Madry et al., 2018, Towards Deep Learning Models Resistant to Adversarial Attacks,
        https://arxiv.org/abs/1706.06083, section 2.1. Theirs keeps the last step of a restart;
        here every step counts, which fools as many images or more.
    """
    _check_eps(eps)
    search = _Search(steps=steps, restarts=restarts, seed=seed, step_size=step_size)
    with frozen(classifier), torch.autocast(images.device.type, enabled=False):
        loss, fallen = _judge_still(classifier, images, labels)
        return _climb(classifier, images, labels, indices, loss, fallen, eps, search)[0]


def robust_correct(
    classifier: PixelClassifier,
    batches: Batches,
    *,
    attack: Attack,
    eps: Sequence[float],
    steps: int = STEPS,
    restarts: int = 1,
    seed: int = 0,
) -> dict[float, Bool[Tensor, " N"]]:
    """Tell for each image and each ``eps`` whether it is still classified correctly.

    An image whose clean image is misclassified counts as fooled. At 0 the clean images are scored,
    in the float32 of the attack.

    PGD's accuracy cannot rise with ``eps``, by construction: what fools within a small box lies in
    every larger one, so an image that fell at a smaller ``eps`` of the list is not attacked again.
    FGSM is one step, and is scored at each ``eps`` by itself: where its accuracy rises, the
    gradient misleads, and that is left to be seen.

    Args:
        classifier: What to fool.
        batches: Colours in [0, 1] and labels; see ``pixel_batches``.
        attack: Which.
        eps: Largest changes of a colour, each in [0, 1].
        steps: Gradients of a restart of PGD.
        restarts: Random places that PGD starts from.
        seed: Of those.

    Raises:
        ConfigError: If a setting is out of range.
    """
    for value in eps:
        _check_eps(value)
    search = _Search(steps=steps, restarts=restarts, seed=seed)
    ascending = sorted(set(eps))
    correct: dict[float, list[Tensor]] = {value: [] for value in ascending}
    seen = 0
    for images, labels in batches:
        indices = torch.arange(seen, seen + len(labels), device=images.device)
        seen += len(labels)
        with frozen(classifier), torch.autocast(images.device.type, enabled=False):
            loss, clean = _judge_still(classifier, images, labels)
            fallen = clean
            for value in ascending:
                if value > 0 and attack == "pgd":
                    _, fallen = _climb(
                        classifier, images, labels, indices, loss, fallen, value, search
                    )
                elif value > 0:
                    moved = fgsm(classifier, images, labels, eps=value)
                    fallen = clean | _judge_still(classifier, moved, labels)[1]
                correct[value].append(~fallen)
    return {value: torch.cat(correct[value]) for value in eps}


def _climb(
    classifier: PixelClassifier,
    images: Float[Tensor, "B 3 H W"],
    labels: Int[Tensor, " B"],
    indices: Int[Tensor, " B"],
    loss: Float[Tensor, " B"],
    fallen: Bool[Tensor, " B"],
    eps: float,
    search: _Search,
) -> tuple[Float[Tensor, "B 3 H W"], Bool[Tensor, " B"]]:
    """Run PGD from clean images of known loss; return the worst images and which are fooled.

    Args:
        classifier: Frozen.
        images: Clean.
        labels: True classes.
        indices: Number of each image.
        loss: Of the clean images.
        fallen: Images to leave alone.
        eps: Largest change of a colour.
        search: How it is looked for.
    """
    size = STEP_FACTOR * eps / search.steps if search.step_size is None else search.step_size
    worst, highest, fallen = images.clone(), loss.clone(), fallen.clone()
    if eps == 0:
        return worst, fallen
    low, high = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    for restart in range(search.restarts):
        active = torch.arange(len(images), device=images.device)
        purpose, epoch = f"attack/pgd/{restart}", torch.zeros_like(indices)
        draws = rng.uniform(search.seed, purpose, epoch, indices, images[0].numel())
        point = images + eps * (2 * draws.view_as(images) - 1)
        for step in range(search.steps + 1):
            # How many are left makes the host wait: asked before steps 0, 1, 2, 4, 8 and so on.
            if step.bit_count() <= 1:
                left = (~fallen[active]).nonzero()[:, 0]
                active, point = active[left], point[left]
                if not len(active):
                    break
            point = torch.minimum(torch.maximum(point, low[active]), high[active])
            last = step == search.steps
            with torch.set_grad_enabled(not last):
                point.requires_grad_(not last)
                now, wrong = _judge(classifier, point, labels[active])
                gradient = None if last else torch.autograd.grad(now.sum(), point)[0]
            now, point = now.detach(), point.detach()
            done = fallen[active]
            worse = ~done & (wrong | (now > highest[active]))
            worst[active] = torch.where(worse[:, None, None, None], point, worst[active])
            highest[active] = torch.where(worse, now, highest[active])
            fallen[active] = done | wrong
            if gradient is not None:
                point = point + size * gradient.sign()
    return worst, fallen


def _judge(
    classifier: PixelClassifier, images: Float[Tensor, "B 3 H W"], labels: Int[Tensor, " B"]
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"]]:
    """Return each image's log odds of being wrong, and whether it is misclassified."""
    logits = classifier(images)
    own = labels[:, None]
    others = logits.scatter(1, own, -math.inf).logsumexp(dim=1)
    return others - logits.gather(1, own)[:, 0], predicted_classes(logits.detach()) != labels


_judge_still = torch.no_grad()(_judge)


def _check_eps(eps: float) -> None:
    if not 0 <= eps <= 1:  # so written, NaN is refused too
        hint = f": for {eps:g} of 255 levels give {eps:g} / 255" if math.isfinite(eps) else ""
        raise ConfigError(f"eps is a change of colours in [0, 1], got {eps:g}{hint}")
