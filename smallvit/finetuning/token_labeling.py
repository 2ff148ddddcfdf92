"""Token labeling: supervise every patch token with the teacher's score map.

Shapes in this file:
    B    images in the batch
    C    classes
    h w  token grid
    N    patch tokens per image, row-major over the token grid (N = h * w)
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError
from smallvit.finetuning.targets import ClsTarget, TokenTarget


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


def soft_cross_entropy(
    logits: Float[Tensor, "*batch C"], targets: Float[Tensor, "*batch C"]
) -> Float[Tensor, "*batch"]:
    """Cross-entropy, in nats, of ``logits`` against target distributions over the last axis.

    One fused call: written out, its backward pass takes five times as long for 200 classes.
    """
    num_classes = logits.shape[-1]
    rows = logits.float().reshape(-1, num_classes), targets.float().reshape(-1, num_classes)
    return F.cross_entropy(*rows, reduction="none").reshape(logits.shape[:-1])


class TokenLabelingLoss(nn.Module):
    r"""Class-token loss plus the mean loss over patch tokens.

    .. math::
        L = H(z_\text{cls}, y) + \beta \cdot \frac{1}{N} \sum_{i=1}^{N} H(z_i, s_i)

    with image label :math:`y`, token label :math:`s_i` from the teacher, and :math:`H` the soft
    cross-entropy. Both targets must already be mixed if the tokens were: this module does not
    know about mixing.

    Args:
        token_weight: Weight beta of the patch-token term; 0 trains on the class token alone.

    Raises:
        ConfigError: If ``token_weight`` is negative.

    Source:
        Jiang et al., 2021, All Tokens Matter, https://arxiv.org/abs/2104.10858, Eq. 4 and 5, with
        the image's own label for the class token. zihangJiang/TokenLabeling@9dbfd59,
        tlt/loss/cross_entropy.py, takes the map's mean over the crop instead, which
        ``cls_target`` pooled does here too. Guidance that ends early: see docs/token-labeling.md.
    """

    def __init__(self, *, token_weight: float = 0.5) -> None:
        super().__init__()
        if token_weight < 0:
            raise ConfigError(f"token_weight must not be negative, got {token_weight}")
        self.token_weight = token_weight

    def forward(
        self,
        cls_logits: Float[Tensor, "B C"],
        token_logits: Float[Tensor, "B N C"],
        labels: Float[Tensor, "B C"],
        token_labels: Float[Tensor, "B N C"],
        *,
        share: float = 1.0,
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Compute the loss of one batch.

        Args:
            cls_logits: Class-token logits.
            token_logits: Patch-token logits.
            labels: Target distribution per image; rows sum to 1.
            token_labels: Teacher distribution per patch token, cropped and mirrored like the
                image; the last axis sums to 1.
            share: Part of the weight that is left at this point of training.

        Returns:
            The loss in nats, averaged over images, and its two terms, detached.
        """
        cls_loss = soft_cross_entropy(cls_logits, labels).mean()
        token_loss = soft_cross_entropy(token_logits, token_labels).mean()  # (B, N) -> ()
        loss = cls_loss + share * self.token_weight * token_loss
        return loss, {
            "train/loss_cls": cls_loss.detach(),
            "train/loss_token": token_loss.detach(),
        }


def token_labels_from(score_map: Float[Tensor, "B C h w"]) -> Float[Tensor, "B h*w C"]:
    """Flatten score maps in the order in which a ViT flattens its patches."""
    return torch.einsum("bchw->bhwc", score_map).flatten(1, 2)
