"""Where a run stands, made into the saved state last.pt and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from training.history import Record
from training.last_state import LastState
from training.methods import steps_at_rest
from training.options import TrainOptions
from training.phase import Phase
from training.run_folder import stored_options
from trp_export.errors import LoadError


@dataclass(slots=True)
class Position:
    """`epoch` epochs and `step` steps are done, with `loss_sum` over these steps; `history` has a record per epoch."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    history: list[Record] = field(default_factory=list)

    def steps_done(self, steps_per_epoch: int) -> int:
        """Steps since the start of the run."""
        return self.epoch * steps_per_epoch + self.step


def state_of(options: TrainOptions, digests: dict[str, str], phase: Phase, position: Position) -> LastState:
    """All that a resumed run needs."""
    return LastState(
        options=stored_options(options),
        digests=digests,
        kind=phase.network.kind,
        plan=phase.network.plan,
        epoch=position.epoch,
        step=position.step,
        loss_sum=position.loss_sum,
        model=phase.network.module.state_dict(),
        optimizer=phase.optimizer.state_dict()["state"],
        method=phase.method.state_dict() if phase.method else None,
        average=phase.average.state_dict() if phase.average else None,
        history=position.history,
    )


def restore(state: LastState, phase: Phase, steps_per_epoch: int, momentum: float, *, data_changed: bool) -> Position:
    """Fill the phase, which is of the state's kind, and return where the run stands.

    Where the data has changed, an epoch may have another number of steps: the run stands in the same epoch, and at its
    end where it was beyond that. Raises ValueError, or what torch raises, where the state does not fit.
    """
    position = Position(state.epoch, state.step, state.loss_sum, state.history)
    if state.step > steps_per_epoch:
        if not data_changed:
            raise ValueError(f"step {state.step} of an epoch of {steps_per_epoch}")
        position.step, position.loss_sum = steps_per_epoch, state.loss_sum / state.step * steps_per_epoch
    phase.network.module.load_state_dict(state.model)
    done = position.steps_done(steps_per_epoch)
    if momentum and not state.optimizer and done > steps_at_rest(phase.method):
        raise ValueError("the optimizer's state is missing")
    phase.restore_optimizer(state.optimizer)
    if phase.method is not None and state.method is not None:
        if state.method["step"] != done and not data_changed:
            raise ValueError("the method has counted other steps")
        phase.method.load_state_dict({**state.method, "step": done})
    elif phase.method is not None:  # It was cut after the last epoch. A second cut would lower the ranks again.
        phase.method = phase.average = None
    if phase.average is not None and state.average is not None:
        phase.average.load_state_dict(state.average)
    elif phase.average is not None:
        raise ValueError("the averaged weights are missing")
    return position


@contextmanager
def damage_named(path: Path, arch: str) -> Iterator[None]:
    """Raise LoadError, naming the file, for whatever a state that does not fit raises."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:  # RuntimeError is torch's.
        raise LoadError(
            f"{path} does not fit {arch}: the file is damaged, or the network or its plan has changed."
        ) from error
