"""Whether a network takes the batch sizes that its file leaves open: exporters freeze some inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from trp_export.errors import UnsupportedError
from trp_export.inputs.description import NetworkInputs
from trp_export.runtime.sessions import CannotRunError, open_session, run_session

# Small sizes first: most networks run on them, and the answer is the same.
_EXTENTS = (64, 224)
_NOTE = "the network runs on one sample at a time, although its file leaves the batch size open"


def with_true_batch(inputs: NetworkInputs, file: Path) -> NetworkInputs:
    """The inputs, of one sample at a time where onnxruntime runs the model on one and not on two."""
    if inputs.at_a_time is not None or not inputs.specs:
        return inputs
    try:
        session = open_session(file)
    except CannotRunError:
        return inputs
    usual = next((sized for sized in map(_sized(inputs), _EXTENTS) if _runs(session, sized, 1)), None)
    if usual is None or _runs(session, usual, 2):
        return inputs
    specs = tuple(
        replace(spec, declared=(1, *spec.declared[1:])) if spec.batched and spec.declared else spec
        for spec in inputs.specs
    )
    return replace(inputs, specs=specs, notes=(*inputs.notes, _NOTE))


def _sized(inputs: NetworkInputs) -> Callable[[int], NetworkInputs]:
    noise = replace(inputs, arrays={})
    return lambda extent: noise.completed(extent=extent)


def _runs(session: Any, inputs: NetworkInputs, count: int) -> bool:
    specs = tuple(
        replace(spec, shape=(count, *spec.shape[1:])) if spec.batched and spec.shape else spec for spec in inputs.specs
    )
    try:
        run_session(session, replace(inputs, specs=specs).feeds())
    except (CannotRunError, UnsupportedError):
        return False
    return True
