"""Checks that end a run whose numbers are no longer finite."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from trp_export.errors import TrpError


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
