"""The moment in an optimizer's step at which its gradients are complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
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
