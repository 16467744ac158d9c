"""The saved state of a training run, last.pt: written after every epoch, and checked field by field when it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models_zoo.registry import imports_code
from training.checkpoint import DENSE, FACTORS
from training.history import Record
from training.options import TrainOptions
from training.run_folder import LAST, read_state, restored_options
from trp_export.errors import LoadError
from trp_export.load.state_dict import get_architecture, outline
from trp_export.planning.saved_plan import parse_plan
from trp_export.system.json_fields import Fields

_FORMAT, _VERSION = "trp-run", 4
_KEYS = (
    *("options", "digests", "kind", "plan", "epoch", "step", "loss_sum"),
    *("model", "optimizer", "method", "average", "history"),
)
_MOST_EPOCHS, _MOST_LAYERS = 1_000_000, 100_000
# How many times as many weights as the file an architecture may have before it is cut, and how many more.
_MOST_TIMES, _MOST_MORE = 64, 2**24
_FIGURES = ("lr", "images_per_s", "waiting", "accuracy", "cut_accuracy", "macs_ratio")


@dataclass(frozen=True, slots=True, eq=False)
class LastState:
    """Where a run stands: `epoch` epochs and `step` steps are done, with `loss_sum` over these steps.

    `digests` are the sha256 of the files that the run reads, by flag. `optimizer` holds the state of each parameter,
    `method` that of TRP, C-SGD and so on in a run whose network is not cut yet, `average` averaged weights.
    """

    options: dict[str, Any]
    digests: dict[str, str]
    kind: str
    plan: Mapping[str, Any] | None
    epoch: int
    step: int
    loss_sum: float
    model: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    method: dict[str, Any] | None
    average: dict[str, Tensor] | None
    history: list[Record]

    def to_content(self) -> dict[str, Any]:
        """The dict that is saved."""
        return {"format": _FORMAT, "version": _VERSION} | {key: getattr(self, key) for key in _KEYS}


def read_last_state(folder: Path) -> LastState:
    """The state in the folder's last.pt. Raises LoadError, naming the field, for anything that no run has written."""
    content, where = read_state(folder, _FORMAT, _VERSION, _KEYS), str(folder / LAST)
    try:
        state = _parse(Fields(content, where))
    except OverflowError as error:
        raise LoadError(f"{where} is damaged: it holds a number of too many digits.") from error
    options = restored_options(TrainOptions, state.options, where)
    epochs = options.optimisation.epochs
    if state.epoch > epochs or len(state.history) != state.epoch:
        raise LoadError(f"{where} is damaged: epoch {state.epoch} does not fit its options or its history.")
    if not math.isfinite(state.loss_sum) or (state.loss_sum and not state.step):
        raise LoadError(f"{where} is damaged: loss_sum is {state.loss_sum:g} after {state.step} steps.")
    has_method = state.kind == DENSE and options.has_method
    if (state.method is not None and not has_method) or (state.method is None and has_method and state.epoch < epochs):
        raise LoadError(f"{where} is damaged: the field method does not fit its options.")
    if state.average is not None and not options.optimisation.ema:
        raise LoadError(f"{where} is damaged: the field average does not fit its options.")
    if state.plan is not None:
        parse_plan(state.plan, f"the plan inside {where}")
    _require_fitting_size(options.start.arch, state.model, where)
    return state


def _require_fitting_size(arch: str | None, model: Mapping[str, Tensor], where: str) -> None:
    """Raise LoadError for an architecture that is far larger than the saved weights: building it could fill memory."""
    if arch is None or imports_code(arch):
        return
    own = sum(tensor.numel() for tensor in outline(get_architecture(arch), None).state_dict().values())
    saved = sum(tensor.numel() for tensor in model.values())
    if own > _MOST_TIMES * saved + _MOST_MORE:
        raise LoadError(f"{where} is damaged: {arch} has {own:,} weights, and the file {saved:,}.")


def _parse(fields: Fields) -> LastState:
    where = fields.where
    return LastState(
        options=fields.inner("options").values,
        digests=_texts(fields.inner("digests")),
        kind=fields.one_of("kind", (DENSE, FACTORS)),
        plan=fields.inner("plan").values if fields.has("plan") else None,
        epoch=fields.whole("epoch"),
        step=fields.whole("step"),
        loss_sum=fields.number("loss_sum"),
        model=_tensors(fields.inner("model").values, f"{where}: model"),
        optimizer=_optimizer(fields.inner("optimizer").values, f"{where}: optimizer"),
        method=fields.inner("method").values if fields.has("method") else None,
        average=_tensors(fields.inner("average").values, f"{where}: average") if fields.has("average") else None,
        history=[_record(record, number + 1) for number, record in enumerate(fields.listed("history", _MOST_EPOCHS))],
    )


def _texts(table: Fields) -> dict[str, str]:
    return {name: table.text(name) for name in table.values}


def _record(record: Fields, epoch: int) -> Record:
    """The record of one epoch."""
    if record.whole("epoch") != epoch:
        raise LoadError(f"{record.where}: the epoch must be {epoch}.")
    record.one_of("kind", (DENSE, FACTORS))
    if not math.isfinite(record.number("loss")):  # By rounding, a distillation's may lie below 0.
        raise LoadError(f"{record.where}: loss must be a number.")
    for name in _FIGURES:
        if not 0 <= record.number(name) < math.inf:
            raise LoadError(f"{record.where}: {name} must be a number of at least 0.")
    ranks = record.inner("ranks")
    if len(ranks.values) > _MOST_LAYERS or not all(
        isinstance(name, str) and name.isprintable() for name in ranks.values
    ):
        raise LoadError(f"{record.where}: ranks must have the names of layers.")
    for name in ranks.values:
        ranks.whole(name)
    record.nothing_more()
    return record.values


def _optimizer(states: dict[Any, Any], where: str) -> dict[int, dict[str, Tensor]]:
    if not all(isinstance(index, int) and isinstance(state, dict) for index, state in states.items()):
        raise LoadError(f"{where} must have a table for each parameter.")
    return {index: _tensors(state, where) for index, state in states.items()}


def _tensors(table: dict[Any, Any], where: str) -> dict[str, Tensor]:
    for name, tensor in table.items():
        is_plain = isinstance(tensor, Tensor) and tensor.layout is torch.strided and not tensor.is_quantized
        if not isinstance(name, str) or not is_plain or tensor.device.type == "meta":
            raise LoadError(f"{where}: {str(name)[:80]} must be an ordinary tensor.")
        if not bool(torch.isfinite(tensor).all()):
            raise LoadError(f"{where}: {name[:80]} has NaN or infinite values.")
    return table
