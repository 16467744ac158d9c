"""What the methods need to know of an optimizer's steps: when gradients are complete, their scale, and the count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle


def register_before_update(optimizer: torch.optim.Optimizer, act: Callable[[], None]) -> RemovableHandle:
    """Call `act` in every step between its gradients and its update.

    Where the step is given a closure, as Lightning does, that computes the gradients inside the step.
    """

    def hook(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            act()
            return None

        def closure_then_act() -> Any:
            loss = closure()
            act()
            return loss

        return args[:1], kwargs | {"closure": closure_then_act}

    return optimizer.register_step_pre_hook(hook)


def gradient_scale(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """The factor of a GradScaler in gradients that are complete; None where there is none.

    A fused optimizer takes it out in its step; others get gradients without it.
    """
    return getattr(optimizer, "grad_scale", None)


def was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler makes a fused optimizer skip this step, since a gradient is not finite."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def stored_step(state: Mapping[str, Any]) -> int:
    """The number of steps in the saved state of a method. Raises LookupError or ValueError where it is none."""
    step = state["step"]
    if type(step) is not int or step < 0:
        raise ValueError(f"step {step!r} is not a count")
    return step
