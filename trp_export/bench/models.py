"""Models to be measured: their files, inputs, precision, hash, and the data they are run on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from trp_export.bench.runners.python_runner import ELEMENTS
from trp_export.errors import OptionError, UnsupportedError
from trp_export.graph.model_files import external_files, read_proto
from trp_export.graph.precision_of import precision_of
from trp_export.inputs.options import MOST_ELEMENTS
from trp_export.load.foreign import require_model_file
from trp_export.system.files import sha256

# Relative L2 between a device's outputs and the local ones.
LIMITS = {"fp32": 1e-4, "fp16": 2e-2, "int8": 5e-2}
SEED = 20200


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a model. `element` is ONNX's number for its type; a dimension is a size, a name, or None."""

    name: str
    element: int
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class BenchModel:
    """One model to be measured with its inputs' data, in the order of the model's inputs.

    `files` are all its files, the model first, then external data. `precision` is fp32, fp16 or int8:
    the coarsest arithmetic in the graph, which sets how close a device's outputs must be to the local ones. `resized`
    says in words where a copy at other sizes than the user's file fixes is measured in its place.
    """

    path: Path
    label: str
    sha256: str
    file_bytes: int
    files: tuple[Path, ...]
    precision: str
    inputs: tuple[Input, ...]
    feeds: tuple[np.ndarray, ...]
    resized: str = ""

    @property
    def limit(self) -> float:
        """The largest relative L2 deviation from the local outputs that is accepted."""
        return LIMITS[self.precision]


def read_cases(
    paths: Sequence[Path],
    *,
    batch: int = 1,
    inputs: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    folder: Path | None = None,
) -> tuple[BenchModel, ...]:
    """All models with their data; equal inputs of different models get equal data.

    Where a file fixes other sizes than `shapes`, a copy at these takes its place in `folder`, if there is one. Raises
    LoadError for files that are not ONNX models, OptionError for shapes that do not fit.
    """
    if not paths:
        raise OptionError("name at least one ONNX file")
    if batch < 1:
        raise OptionError(f"batch must be at least 1, not {batch}")
    labels = _labels(paths)
    cases = tuple(
        _read_case(path, label, batch, inputs, shapes or {}, folder and folder / f"{place}.onnx")
        for place, (path, label) in enumerate(zip(paths, labels, strict=True))
    )
    names = {value.name for case in cases for value in case.inputs}
    if unknown := sorted(set(shapes or ()) - names):
        raise OptionError(f"no input {unknown[0]!r} to give a shape to; there are {', '.join(sorted(names)) or 'none'}")
    return cases


def signature(case: BenchModel) -> str:
    """The shapes and types of the inputs, in order. Models with unlike inputs are not compared."""
    return ", ".join(f"{feed.dtype}{list(feed.shape)}".replace(" ", "") for feed in case.feeds)


def digest_of_values(case: BenchModel) -> str:
    """A short digest of what is fed: some networks take longer for some images."""
    digest = hashlib.sha256()
    for feed in case.feeds:
        digest.update(np.ascontiguousarray(feed).tobytes())
    return digest.hexdigest()[:12]


def _labels(paths: Sequence[Path]) -> list[str]:
    """File names, or whole paths where names repeat; a number tells repeated paths apart."""
    names = [path.name for path in paths]
    labels = names if len(set(names)) == len(names) else [str(path) for path in paths]
    return [label if labels.index(label) == i else f"{label} #{i + 1}" for i, label in enumerate(labels)]


def _read_case(
    path: Path,
    label: str,
    batch: int,
    inputs: Mapping[str, np.ndarray] | None,
    shapes: Mapping[str, Sequence[int]],
    copy: Path | None,
) -> BenchModel:
    require_model_file(path)
    model = read_proto(path)
    files = (path, *external_files(model, path))
    digest, size = sha256(files), sum(file.stat().st_size for file in files)
    found = _inputs(model, path)
    resized = _resize(path, found, shapes, copy) if copy is not None else ""
    if copy is not None and resized:
        model = read_proto(copy)
        path, files, found = copy, (copy, *external_files(model, copy)), _inputs(model, copy)
    feeds = [
        _given(value, inputs, path) if inputs is not None else _random(value, _shape(value, batch, shapes, path), index)
        for index, value in enumerate(found)
    ]
    return BenchModel(
        path=path,
        label=label,
        sha256=digest,
        file_bytes=size,
        files=files,
        precision=precision_of(model),
        inputs=found,
        feeds=tuple(feeds),
        resized=resized,
    )


def _resize(path: Path, inputs: Sequence[Input], shapes: Mapping[str, Sequence[int]], copy: Path) -> str:
    """Save a copy at other sizes than the file fixes. Returns what was changed, in words; raises OptionError."""
    wanted = {value.name: tuple(shapes[value.name]) for value in inputs if value.name in shapes}
    if all(_fits(value, wanted[value.name]) for value in inputs if value.name in wanted):
        return ""
    from trp_export.graph.large_files import read_model
    from trp_export.inputs.options import InputOptions
    from trp_export.runtime.new_sizes import set_sizes

    return set_sizes(read_model(path), InputOptions(tuple(wanted.items())), copy)


def _fits(value: Input, wanted: Sequence[int]) -> bool:
    """Whether the file leaves these sizes open, or fixes the same."""
    return value.shape == (None,) or (
        len(wanted) == len(value.shape)
        and all(
            size > 0 and (size == dim or not isinstance(dim, int))
            for size, dim in zip(wanted, value.shape, strict=True)
        )
    )


def _inputs(model: Any, path: Path) -> tuple[Input, ...]:
    """The inputs a caller must feed: those that are not initializers. Raises UnsupportedError for non-tensors."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or kind.elem_type not in ELEMENTS:
            raise UnsupportedError(
                f"{path}: input {value.name!r} is not a tensor of numbers, and trp-bench can feed nothing else."
            )
        if not kind.HasField("shape"):
            found.append(Input(value.name, kind.elem_type, (None,)))
            continue
        found.append(Input(value.name, kind.elem_type, tuple(map(_dimension, kind.shape.dim))))
    return tuple(found)


def _dimension(dim: Any) -> int | str | None:
    """A size, a name, or None; some exporters write a size that is open as -1."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return dim.dim_param or None


def _shape(value: Input, batch: int, shapes: Mapping[str, Sequence[int]], path: Path) -> tuple[int, ...]:
    """A shape for random data: as declared, a dynamic first dimension taken as the batch. Raises OptionError."""
    declared = ", ".join(str(dim or "?") for dim in value.shape)
    if wanted := shapes.get(value.name):
        if not _fits(value, wanted):
            raise OptionError(f"{path}: input {value.name!r} is ({declared}); {tuple(wanted)} does not fit.")
        return tuple(wanted)
    if not value.shape:
        return ()
    first, *others = value.shape
    if any(not isinstance(dim, int) for dim in others) or value.shape == (None,):
        example = ",".join(str(dim) if isinstance(dim, int) else "N" for dim in (batch, *others))
        raise OptionError(
            f"{path}: input {value.name!r} is ({declared}), and only a dynamic first dimension has a default.\n"
            f"Give its sizes: --shape {value.name}={example}"
        )
    if isinstance(first, int) and batch not in (1, first):
        raise OptionError(
            f"{path}: input {value.name!r} has a fixed first dimension of {first}; --batch {batch} cannot change it."
        )
    return (first if isinstance(first, int) else batch, *(dim for dim in others if isinstance(dim, int)))


def _random(value: Input, shape: tuple[int, ...], index: int) -> np.ndarray:
    """Repeatable data: normal floats, full-range 8-bit integers, and 0 or 1 for wider ones (indices, masks).

    Raises OptionError for more elements than an input may have.
    """
    if prod(shape) > MOST_ELEMENTS:
        raise OptionError(f"input {value.name!r} of the shape {shape} has more than {MOST_ELEMENTS:,} elements.")
    dtype = np.dtype(ELEMENTS[value.element])
    rng = np.random.default_rng(SEED + index)
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape), dtype=dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.asarray(rng.integers(limits.min, limits.max, shape, endpoint=True), dtype=dtype)
    return np.asarray(rng.integers(0, 2, shape), dtype=dtype)


def _given(value: Input, inputs: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    """The user's array for this input, checked. A lone unnamed array (key "") serves a model of one input."""
    array = inputs.get(value.name, inputs.get(""))
    if array is None:
        raise OptionError(
            f"{path}: no data for input {value.name!r}; the file holds {', '.join(sorted(inputs)) or 'nothing'}."
        )
    declared = ", ".join(str(dim or "?") for dim in value.shape)
    wanted = np.dtype(ELEMENTS[value.element])
    fits = value.shape == (None,) or (
        array.ndim == len(value.shape)
        and all(size == dim or not isinstance(dim, int) for size, dim in zip(array.shape, value.shape, strict=True))
    )
    if not fits or array.dtype != wanted:
        raise OptionError(f"{path}: input {value.name!r} is {wanted} ({declared}); got {array.dtype} {array.shape}.")
    return np.ascontiguousarray(array)
