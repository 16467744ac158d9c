"""The loss of a step: cross-entropy, mixed with distillation where there is a teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def training_loss(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, temperature: float, share: float
) -> Tensor:
    """Cross-entropy, mixed with KL(teacher || student) at a temperature T, times T squared (Hinton et al. 2015).

    `share` is the teacher's part, in [0, 1]; logits are (b, classes).
    """
    hard = functional.cross_entropy(logits.float(), labels)
    if teacher_logits is None or share == 0:
        return hard
    student = functional.log_softmax(logits.float() / temperature, 1)
    teacher = functional.log_softmax(teacher_logits.float() / temperature, 1)
    soft = functional.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2
    return (1 - share) * hard + share * soft
