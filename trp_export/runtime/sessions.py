"""Run model files in onnxruntime, on noise or on real inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trp_export.errors import first_line

Array = NDArray[Any]
Inputs = Mapping[str, Array]

ORT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class CannotRunError(Exception):
    """onnxruntime cannot run this model, for example for lack of a custom operator.

    `opened` is True where it could be opened but not run on these inputs. The message names no folder.
    """

    def __init__(self, reason: str, model: Path, opened: bool = False) -> None:
        super().__init__(reason.replace(str(model), model.name).replace(str(model.resolve()), model.name))
        self.opened = opened


def run(model: Path, batches: Iterable[Inputs]) -> list[Array]:
    """The outputs of a model file, batch after batch, joined along the first axis. Raises CannotRunError."""
    answers = list(stream(model, batches))
    return answers[0] if len(answers) == 1 else [np.concatenate(parts) for parts in zip(*answers, strict=True)]


def stream(model: Path, batches: Iterable[Inputs]) -> Iterator[list[Array]]:
    """The outputs of a model file for each batch. Raises CannotRunError."""
    session = open_session(model)
    for inputs in batches:
        try:
            answer = session.run(None, dict(inputs))
        except Exception as error:  # onnxruntime's errors share no base class.
            raise CannotRunError(first_line(error), model, opened=True) from error
        yield [np.asarray(output) for output in answer]


def open_session(model: Path) -> Any:
    """An onnxruntime session on the CPU. Raises CannotRunError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CannotRunError(first_line(error), model) from error


def noise(model: Path, shapes: Mapping[str, Sequence[int | None]], seed: int = 0) -> dict[str, Array]:
    """Seeded inputs of the given shapes: standard normal, small whole numbers for integer types.

    Raises CannotRunError where the model cannot be opened or wants something that noise cannot stand for.
    """
    generator = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for wanted in open_session(model).get_inputs():
        if wanted.type not in ORT_TYPES:
            raise CannotRunError(f"input {wanted.name} is {wanted.type}", model)
        declared = shapes.get(wanted.name, ())
        shape = [size or 1 for size in declared]
        dtype = ORT_TYPES[wanted.type]
        drawn = (
            generator.standard_normal(shape) if np.issubdtype(dtype, np.floating) else generator.integers(0, 2, shape)
        )
        made[wanted.name] = np.asarray(drawn).astype(dtype)
    return made


def fixed_batch(model: Path) -> tuple[int | None, Any]:
    """The batch size that a model of one input insists on, None where it is open, and its numpy type."""
    wanted = open_session(model).get_inputs()[0]
    size = wanted.shape[0] if wanted.shape else None
    return (size if isinstance(size, int) else None), ORT_TYPES.get(wanted.type, np.float32)
