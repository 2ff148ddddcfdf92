"""Settings of stage 2; this file imports no torch, so that help is quick."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from smallvit.core.config import Range

ClsTarget = Literal["label", "pooled", "blend"]
TokenTarget = Literal["soft", "hard", "gumbel"]


@dataclass(frozen=True, kw_only=True)
class TokenLabelConfig:
    """Token labeling.

    Attributes:
        enabled: Whether patch tokens are supervised at all.
        token_weight: Weight beta of the patch-token term; the paper has 0.5, its code 1.0. With 0
            the maps serve the image's target alone: ReLabel, with ``cls_target`` pooled.
        token_until: Part of training after which the patch-token term is left out.
        token_decay: How its weight falls to 0 up to there: at once at the end (``constant``),
            ``linear`` or ``cosine``.
        cls_target: Target of the image: its ``label``, the mean of its score map over the crop
            (``pooled``), or a ``blend``.
        token_target: Target of a patch token: the teacher's probabilities (``soft``), its likeliest
            class (``hard``) or a class drawn from them (``gumbel``).
        label_smoothing: Part of the token targets that is spread evenly over all classes.
        token_head: Classifier of the patch tokens: one of their ``own``, or the image's
            (``shared``).
        mix_token: Whether a box of patch tokens is taken from another image in every step, as in
            the paper; it helps long runs and harms short ones (docs/log.md).
        source: Where score maps come from: the ``stored`` file; a teacher in every step
            (``online``), which sees the augmented image; or the student's running average
            (``ema``).
        ema_momentum: Decay of that average.
    """

    enabled: bool = False
    token_weight: Annotated[float, Range(ge=0)] = 0.5
    token_until: Annotated[float, Range(gt=0, le=1)] = 1.0
    token_decay: Literal["constant", "linear", "cosine"] = "constant"
    cls_target: ClsTarget = "label"
    token_target: TokenTarget = "soft"
    label_smoothing: Annotated[float, Range(ge=0, lt=1)] = 0.0
    token_head: Literal["own", "shared"] = "own"
    mix_token: bool = True
    source: Literal["stored", "online", "ema"] = "stored"
    ema_momentum: Annotated[float, Range(ge=0, lt=1)] = 0.996

    def share_at(self, progress: float) -> float:
        """Return the part of the weight that is left after a part of training, both in [0, 1]."""
        done = progress / self.token_until
        if done >= 1 or not self.token_weight:
            return 0.0
        match self.token_decay:
            case "constant":
                return 1.0
            case "linear":
                return 1 - done
            case "cosine":
                return (1 + math.cos(math.pi * done)) / 2

    def mapped_steps(self, total_steps: int) -> int:
        """Return how many of all steps need score maps: the first ones."""
        if self.cls_target != "label":
            return total_steps
        return sum(self.share_at(step / total_steps) > 0 for step in range(total_steps))


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """The loss on image labels.

    Attributes:
        label_smoothing: Part of the target that is spread evenly over all classes.
    """

    label_smoothing: Annotated[float, Range(ge=0, lt=1)] = 0.1
