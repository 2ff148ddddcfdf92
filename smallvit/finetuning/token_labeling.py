"""Token labeling: supervise every patch token with the teacher's score map.

Shapes in this file:
    B    images in the batch
    C    classes
    h w  token grid
    N    patch tokens per image, row-major over the token grid (N = h * w)
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smallvit.core.errors import ConfigError


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
