"""Parts of one training step: learning rate, loss, and the checks that end a run with numbers that are not finite."""

from __future__ import annotations

from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from trp_export.errors import TrpError

_WARM_UP = 0.05


def learning_rate(schedule: str, peak: float, progress: float) -> float:
    """The rate at `progress` in [0, 1) of the run.

    `step`: a tenth of the peak from 81/164 on and a hundredth from 122/164, as the TRP authors train. `cosine`: linear
    warm-up over the first 5 %, then half a cosine down to zero.
    """
    if schedule == "step":
        return peak * (1.0 if progress < 81 / 164 else 0.1 if progress < 122 / 164 else 0.01)
    if progress < _WARM_UP:
        return peak * progress / _WARM_UP
    return peak * 0.5 * (1 + cos(pi * (progress - _WARM_UP) / (1 - _WARM_UP)))


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


def require_finite(loss: Tensor, model: nn.Module, inputs: Tensor, step: int, last: Path) -> None:
    """Raise TrpError that names the step, and the first layer with such outputs, where the loss is NaN or infinite."""
    if bool(torch.isfinite(loss)):
        return
    layer = _first_broken(model, inputs)
    where = f"{layer} is the first layer with such outputs" if layer else "the outputs of all layers are finite"
    raise diverged(f"the loss is {float(loss.detach()):g}; {where}", step, last)


def require_finite_weights(model: nn.Module, step: int, last: Path) -> None:
    """Raise TrpError that names the step and the first weight that is NaN or infinite."""
    for name, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise diverged(f"{name} is no longer finite", step, last)


def diverged(problem: str, step: int, last: Path) -> TrpError:
    """The error of a run that `step` broke, with the remedy: to continue from `last` if that exists."""
    if last.exists():
        return TrpError(f"step {step}: {problem}. {last} is from before: continue with --resume and a lower --lr.")
    return TrpError(f"step {step}: {problem}. Nothing is saved yet: start again with a lower --lr.")


@torch.no_grad()
def _first_broken(model: nn.Module, inputs: Tensor) -> str | None:
    broken: list[str] = []
    names = {module: name for name, module in model.named_modules() if not list(module.children())}

    def record(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            broken.append(names[module])

    hooks = [module.register_forward_hook(record) for module in names]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return broken[0] if broken else None
