"""View prediction: a student predicts, from one view, what its momentum teacher sees in another.

Shapes in this file:
    V    global views
    B    images
    K    prototypes
"""

import torch

from smallvit.core.objective import StepOutput
from smallvit.data.batches import ViewBatch
from smallvit.models.tokens import AbstractBackbone
from smallvit.pretraining.config import DinoConfig
from smallvit.pretraining.method import project
from smallvit.pretraining.prototypes import AbstractPrototypes, freeze_prototypes, target_metrics


class DinoObjective(AbstractPrototypes[DinoConfig]):
    """Student, momentum teacher, their heads and the loss of view prediction.

    The loss is the mean cross-entropy over all pairs of a global view of the momentum teacher and
    another view of the student: 18 pairs for two global and eight local views.

    Args:
        backbone: The student; the momentum teacher starts as its copy.
        config: Settings.
        image_size: Not needed: every size of view goes through the same network.
    """

    def __init__(
        self, backbone: AbstractBackbone, config: DinoConfig, *, image_size: int | None = None
    ) -> None:
        super().__init__(backbone, config)

    def forward(self, batch: ViewBatch) -> StepOutput:
        """Compare the student's views with the momentum teacher's."""
        config = self.config
        self.ema_teacher.train(self.training and config.ema_teacher_mode == "train")
        freeze_prototypes(self.student_head, batch.epoch < config.freeze_last_layer_epochs)
        with torch.no_grad():
            teacher = project(self.ema_teacher, self.ema_teacher_head, batch.global_views)
        student = list(project(self.student, self.student_head, batch.global_views))
        if batch.local_views is not None:
            student += project(self.student, self.student_head, batch.local_views)
        temp = config.target_temp(batch.epoch)
        metrics = target_metrics(teacher, self.criterion.center, temp)
        with torch.autocast(teacher.device.type, enabled=False):  # bfloat16 has two digits
            loss = self.criterion(list(teacher), student, teacher_temp=temp)
        return StepOutput(loss=loss, metrics=metrics)
