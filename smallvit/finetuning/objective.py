"""Supervised training of a classifier, with or without token labels; teachers use it too.

Shapes in this file:
    B    images
    C    classes
    D    embed dim
    N    patch tokens (N = h * w)
    h w  token grid
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.core.objective import AbstractObjective, StepOutput
from smallvit.data.batches import LabeledBatch, TokenBox
from smallvit.finetuning.config import SupervisedConfig, TokenLabelConfig
from smallvit.finetuning.mix_token import mix_labels, mix_tokens
from smallvit.finetuning.online import EmaTeacher, OnlineTeacher
from smallvit.finetuning.targets import image_target, smooth, token_targets
from smallvit.finetuning.token_labeling import (
    TokenLabelingLoss,
    soft_cross_entropy,
    token_labels_from,
)
from smallvit.models.tokens import AbstractBackbone


class FinetuneObjective(AbstractObjective[LabeledBatch]):
    """Cross-entropy on the image's target plus, with token labels, that on its patch tokens.

    The token head is the network's own where it has one (LV-ViT). Else it is a classifier beside
    the network, so that the exported one is the plain one.

    Args:
        backbone: The network.
        num_classes: C.
        config: Settings of the image loss.
        token_label: Settings of token labeling; ``None`` or not enabled trains without it.
        teacher: Makes the score maps in each step where ``token_label.source`` is ``online``.

    Raises:
        ConfigError: If the classifier is to be shared and the network has a token head.
    """

    def __init__(
        self,
        backbone: AbstractBackbone,
        *,
        num_classes: int,
        config: SupervisedConfig,
        token_label: TokenLabelConfig | None = None,
        teacher: OnlineTeacher | None = None,
    ) -> None:
        super().__init__()
        self.student = backbone
        self.num_classes = num_classes
        self.label_smoothing = config.label_smoothing
        self.token_label = token_label if token_label is not None and token_label.enabled else None
        self.token_head: nn.Linear | None = None
        self.ema_teacher: EmaTeacher | None = None
        self.teacher = teacher
        if self.token_label is None:
            return
        if self.token_label.token_head == "shared" and backbone.token_head is not None:
            raise ConfigError(
                f"token_label.token_head shared: {backbone.model_name} has a token head of its "
                "own, which would learn nothing: leave it out"
            )
        self.criterion = TokenLabelingLoss(token_weight=self.token_label.token_weight)
        own = self.token_label.token_head == "own" and backbone.token_head is None
        if own and self.token_label.token_weight:
            self.token_head = nn.Linear(backbone.embed_dim, num_classes)
            nn.init.trunc_normal_(self.token_head.weight, std=0.02)
            nn.init.zeros_(self.token_head.bias)
        if self.token_label.source == "ema":
            self.ema_teacher = EmaTeacher(backbone, self.token_head)

    def forward(self, batch: LabeledBatch) -> StepOutput:
        """Classify images and, with score maps, tokens."""
        patches = self.student.embed(batch.images)
        if batch.mix_box is not None:
            patches = mix_tokens(patches, batch.mix_box)
        tokens = self.student.encode(patches)
        cls_logits = self.student.classify(tokens.pooled)
        labels = F.one_hot(batch.labels, self.num_classes).float()
        labels = smooth(labels, self.label_smoothing)
        if batch.partner_share is not None:
            labels = torch.lerp(labels, labels.flip(0), batch.partner_share[:, None])
        config = self.token_label
        share = 0.0 if config is None else config.share_at(batch.progress)
        score_maps, target = None, labels
        if config is not None and (share or config.cls_target != "label"):
            score_maps = self._score_maps(batch, tokens.grid)
            target = image_target(
                labels, score_maps, config.cls_target, smoothing=self.label_smoothing
            )
        if batch.mix_box is not None:
            labels, target = mix_labels(labels, batch.mix_box), mix_labels(target, batch.mix_box)
        if share and score_maps is not None:
            loss, metrics = self.criterion(
                cls_logits,
                self.read_tokens(tokens.patch),
                target,
                self._token_targets(score_maps, batch.mix_box),
                share=share,
            )
        else:
            loss, metrics = soft_cross_entropy(cls_logits, target).mean(), {}
        top1 = (cls_logits.argmax(dim=1) == labels.argmax(dim=1)).float().mean()
        return StepOutput(loss=loss, metrics={**metrics, "train/top1": top1})

    def after_step(self, progress: float) -> None:
        """Move the student's average, where it labels the patches."""
        if self.ema_teacher is not None:
            assert self.token_label is not None
            momentum = self.token_label.ema_momentum
            self.ema_teacher.update(self.student, self.token_head, momentum)

    def read_tokens(self, patch: Float[Tensor, "B N D"]) -> Float[Tensor, "B N C"]:
        """Return the logits of patch tokens that are trained."""
        if self.token_label is not None and self.token_label.token_head == "shared":
            return self.student.classify(patch)
        return (self.token_head or self.student.classify_tokens)(patch)

    def _score_maps(self, batch: LabeledBatch, grid: tuple[int, int]) -> Float[Tensor, "B C h w"]:
        """Return the teacher's maps of the batch, before tokens are mixed."""
        teacher = self.teacher or self.ema_teacher
        if teacher is not None:
            return teacher(batch.images, grid)
        assert batch.score_maps is not None, "token labeling needs score maps in its batches"
        return batch.score_maps

    def _token_targets(
        self, score_maps: Float[Tensor, "B C h w"], box: TokenBox | None
    ) -> Float[Tensor, "B N C"]:
        """Return the target of every patch token."""
        assert self.token_label is not None
        if box is not None:
            score_maps = mix_tokens(score_maps.movedim(1, -1), box).movedim(-1, 1)
        return token_targets(
            token_labels_from(score_maps),
            self.token_label.token_target,
            smoothing=self.token_label.label_smoothing,
        )
