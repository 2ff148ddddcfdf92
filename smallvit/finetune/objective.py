"""Supervised training of a classifier, with or without token labels; teachers use it too.

Shapes in this file:
    B    images
    C    classes
    N    patch tokens (N = h * w)
    h w  token grid
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smallvit.core.config import Range
from smallvit.core.objective import AbstractObjective, StepOutput
from smallvit.data.batches import LabelledBatch
from smallvit.finetune.mix_token import mix_labels, mix_tokens
from smallvit.finetune.token_labeling import (
    TokenLabelingLoss,
    soft_cross_entropy,
    token_labels_from,
)
from smallvit.models.tokens import AbstractBackbone


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """The loss on image labels.

    Attributes:
        label_smoothing: Part of the target that is spread evenly over all classes.
    """

    label_smoothing: Annotated[float, Range(ge=0, lt=1)] = 0.1


class FinetuneObjective(AbstractObjective[LabelledBatch]):
    """Cross-entropy on the image label plus, where batches carry score maps, token labeling.

    The token head is the network's own where it has one (LV-ViT). Else it is a classifier used in
    training alone, so that the exported network is the plain one.

    Args:
        backbone: The network.
        num_classes: C.
        config: Settings of the image loss.
        token_weight: Weight of token labeling, or ``None`` to train without it.
    """

    def __init__(
        self,
        backbone: AbstractBackbone,
        *,
        num_classes: int,
        config: SupervisedConfig,
        token_weight: float | None = None,
    ) -> None:
        super().__init__()
        self.student = backbone
        self.num_classes = num_classes
        self.label_smoothing = config.label_smoothing
        self.criterion: TokenLabelingLoss | None = None
        self.token_head: nn.Linear | None = None
        if token_weight is not None:
            self.criterion = TokenLabelingLoss(token_weight=token_weight)
        if token_weight is not None and backbone.token_head is None:
            self.token_head = nn.Linear(backbone.embed_dim, num_classes)
            nn.init.trunc_normal_(self.token_head.weight, std=0.02)
            nn.init.zeros_(self.token_head.bias)

    def forward(self, batch: LabelledBatch) -> StepOutput:
        """Classify images and, with score maps, tokens."""
        patches = self.student.embed(batch.images)
        if batch.mix_box is not None:
            patches = mix_tokens(patches, batch.mix_box)
        tokens = self.student.encode(patches)
        cls_logits = self.student.classify(tokens.pooled)
        labels = self._targets(batch.labels)
        if batch.partner_share is not None:
            labels = torch.lerp(labels, labels.flip(0), batch.partner_share[:, None])
        if batch.mix_box is not None:
            labels = mix_labels(labels, batch.mix_box, tokens.grid)
        if self.criterion is None:
            loss, metrics = soft_cross_entropy(cls_logits, labels).mean(), {}
        else:
            assert batch.score_maps is not None, "token labeling needs score maps in its batches"
            score_maps = batch.score_maps
            if batch.mix_box is not None:
                score_maps = mix_tokens(score_maps.movedim(1, -1), batch.mix_box).movedim(-1, 1)
            read_tokens = self.token_head or self.student.classify_tokens
            loss, metrics = self.criterion(
                cls_logits, read_tokens(tokens.patch), labels, token_labels_from(score_maps)
            )
        top1 = (cls_logits.argmax(dim=1) == labels.argmax(dim=1)).float().mean()
        return StepOutput(loss=loss, metrics={**metrics, "train/top1": top1})

    def _targets(self, labels: Int[Tensor, " B"]) -> Float[Tensor, "B C"]:
        one_hot = F.one_hot(labels, self.num_classes).float()
        return torch.lerp(
            one_hot, torch.full_like(one_hot, 1 / self.num_classes), self.label_smoothing
        )
