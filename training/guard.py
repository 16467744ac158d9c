"""What can go wrong in the middle of a run: a request to stop, and numbers that are no numbers."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType, TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.replicas import world
from trp_export.errors import TrpError


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a question asked between two steps. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def pending(self, step: int) -> bool:
        """Whether to stop after this step; replicas agree on it, every tenth step."""
        if world()[1] == 1:
            return self._asked
        if step % 10:
            return False
        vote = torch.tensor([float(self._asked)])
        dist.all_reduce(vote)
        return bool(vote.item() > 0)


def require_finite(loss: Tensor, model: nn.Module, inputs: Tensor, step: int, last: Path) -> None:
    """Raises TrpError that names the step and the first layer at fault where the loss is NaN or infinite."""
    if bool(torch.isfinite(loss)):
        return
    layer = _first_broken(model, inputs)
    where = f"{layer} the first layer with such outputs" if layer else "though all layers are finite"
    raise diverged(f"the loss is {float(loss.detach()):g}, {where}", step, last)


def require_finite_weights(model: nn.Module, step: int, last: Path) -> None:
    """Raises TrpError that names the step and the first weight at fault where one is NaN or infinite."""
    for name, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise diverged(f"{name} is no longer finite", step, last)


def diverged(what: str, step: int, last: Path) -> TrpError:
    """The error of a run that `step` broke. `last` is where the last checkpoint lies, if there is one."""
    if last.exists():
        return TrpError(f"{what} at step {step}. {last} is from before: go on with --resume and a lower --lr.")
    return TrpError(f"{what} at step {step}. Nothing is saved yet: start again with a lower --lr.")


@torch.no_grad()
def _first_broken(model: nn.Module, inputs: Tensor) -> str | None:
    broken: list[str] = []
    names = {module: name for name, module in model.named_modules() if not list(module.children())}

    def look(module: nn.Module, given: object, output: object) -> None:
        if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            broken.append(names[module])

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return broken[0] if broken else None
