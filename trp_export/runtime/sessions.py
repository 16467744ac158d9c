"""Open models in onnxruntime and run them, on noise or on real inputs. Nothing else but `bench` opens a session."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.errors import first_line

Array = NDArray[Any]
Inputs = Mapping[str, Array]

ORT_TYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}

_NO_LOGGING = 4
# Of larger models onnxruntime makes no copies of weights in an order of its own; convs then take a little longer.
_LARGE_BYTES = 1 << 26


_MESSAGE = 400
# What onnxruntime puts around its messages.
_CATEGORY = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_FAILED_NODE = re.compile(
    r"Non-zero status code returned while running (\w+) node\. Name:'([^']*)' Status Message: "
    r"(?:/onnxruntime_src/\S+ [\w:]+\(.*?\) )?"
)


class CannotRunError(Exception):
    """onnxruntime cannot run this model, for example because it lacks a custom operator.

    `opened` is True where the model could be opened but not run on these inputs. The message names no folder.
    """

    def __init__(self, reason: str, model: Path | None = None, opened: bool = False) -> None:
        reason = _FAILED_NODE.sub(_node_and_reason, _CATEGORY.sub("", reason))
        if model is not None:
            reason = reason.replace(str(model), model.name).replace(str(model.resolve()), model.name)
        super().__init__(reason)
        self.opened = opened


def _node_and_reason(match: re.Match[str]) -> str:
    return f"{match[1]} {match[2]}: " if match[2] else f"{match[1]}: "


def open_session(model: Path | bytes, *, threads: int = 1, optimise: bool = True) -> Any:
    """An onnxruntime session on the CPU, of a file or a serialised model; 0 threads means one for each core.

    Raises CannotRunError.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _NO_LOGGING
    # numpy works between two runs: threads that spin would take its cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Else it rounds activations to 8 bits in front of a MatMul whose weight a DequantizeLinear makes.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    levels, is_large = onnxruntime.GraphOptimizationLevel, _size_bytes(model) > _LARGE_BYTES
    if not optimise:
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
    elif is_large:
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED
    if is_large:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class.
        raise CannotRunError(first_line(error, _MESSAGE), model if isinstance(model, Path) else None) from error


def _size_bytes(model: Path | bytes) -> int:
    """With the weights in a file beside it, as `save_model` names it."""
    if isinstance(model, bytes):
        return len(model)
    return sum(path.stat().st_size for path in (model, model.with_name(f"{model.name}.data")) if path.is_file())


def run(model: Path, batches: Iterable[Inputs]) -> list[Array]:
    """The outputs of a model file, batch after batch, joined along the first axis. Raises CannotRunError."""
    return join(list(stream(model, batches)))


def join(answers: Sequence[list[Array]]) -> list[Array]:
    """The outputs of several batches, joined along the first axis; of unlike sizes, all entries in one row."""
    return answers[0] if len(answers) == 1 else [_join(parts) for parts in zip(*answers, strict=True)]


def _join(parts: Sequence[Array]) -> Array:
    alike = len({part.shape[1:] for part in parts}) == 1 and parts[0].ndim > 0
    return np.concatenate([part if alike else part.ravel() for part in parts])


def stream(model: Path, batches: Iterable[Inputs]) -> Iterator[list[Array]]:
    """The outputs of a model file for each batch. Raises CannotRunError."""
    session = open_session(model)
    for inputs in batches:
        try:
            yield run_session(session, inputs)
        except CannotRunError as error:
            raise CannotRunError(str(error), model, opened=True) from error


def run_session(session: Any, inputs: Inputs) -> list[Array]:
    """All outputs for one batch; a sequence stands as its elements. Raises CannotRunError."""
    try:
        outputs = session.run(None, dict(inputs))
    except Exception as error:
        raise CannotRunError(first_line(error, _MESSAGE), opened=True) from error
    arrays: list[Array] = []
    for output in outputs:
        arrays += map(np.asarray, output if isinstance(output, list) else [output])
    return arrays


def numpy_type(value: Any) -> type[np.generic]:
    """The type of arrays that a session takes for one of its inputs; float32 for what the table does not hold."""
    return ORT_TYPES.get(value.type, np.float32)


def noise(model: Path, shapes: Mapping[str, Sequence[int | None]], seed: int = 0) -> dict[str, Array]:
    """Seeded inputs of these shapes: standard normal for floating point, 0 and 1 for whole numbers.

    Raises CannotRunError where an input is of a type that noise cannot stand for, such as text.
    """
    generator = np.random.default_rng(seed)
    graph = ir.load(model).graph
    arrays: dict[str, Array] = {}
    for value in graph.inputs:
        name = value.name or ""
        if name in graph.initializers:
            continue
        if not isinstance(value.type, ir.TensorType) or value.dtype in (None, ir.DataType.STRING):
            raise CannotRunError(f"noise cannot stand for input {name}, which is {value.type}", model)
        arrays[name] = draw(generator, [size or 1 for size in shapes.get(name, ())], value.type.dtype.numpy())
    return arrays


def draw(generator: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Standard normal for floating point, 0 and 1 for whole numbers and booleans."""
    floating = dtype.kind not in "iub"
    return np.asarray(generator.standard_normal(shape) if floating else generator.integers(0, 2, shape)).astype(dtype)
