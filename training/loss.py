"""The loss of a step: cross-entropy, mixed with distillation where there is a teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from trp_export.errors import OptionError


def scores_of(output: object, arch: str) -> Tensor:
    """What a network returns, if it is a score for each class (b, classes). Raises OptionError for anything else."""
    if not isinstance(output, Tensor):
        raise OptionError(f"{arch} returns a {type(output).__name__}; trp-train needs a tensor (images, classes).")
    if output.ndim != 2:
        raise OptionError(f"{arch} returns a tensor {tuple(output.shape)}; trp-train needs one of (images, classes).")
    return output


def training_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    *,
    temperature: float = 1.0,
    share: float = 0.0,
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy, mixed with KL(teacher || student) at a temperature T, times T squared (Hinton et al. 2015).

    `share` is the teacher's part, in [0, 1]; logits are (b, classes). `smoothing` is the share of each label that is
    spread evenly over all classes (Szegedy et al. 2016).
    """
    hard = functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    if teacher_logits is None or share == 0:
        return hard
    student = functional.log_softmax(logits.float() / temperature, 1)
    teacher = functional.log_softmax(teacher_logits.float() / temperature, 1)
    soft = functional.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2
    return (1 - share) * hard + share * soft
