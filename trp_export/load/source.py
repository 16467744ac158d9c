"""What every loader returns, and the choice between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.errors import LoadError, OptionError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to read a model. Only files that are not ONNX need the architecture."""

    arch: str | None = None
    input_shape: tuple[int, ...] | None = None
    static: bool = False
    trust_pickle: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """Inputs, and the outputs that the source itself gives for them: the exported graph must agree."""

    inputs: Mapping[str, NDArray[Any]]
    outputs: Sequence[NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Source:
    """A model with what its file tells about it.

    `path` is the ONNX file itself where the source is one, `bytes` its size with its external data.
    `plan` is the plan stored in a checkpoint.
    """

    name: str
    model: ir.Model
    path: Path | None = None
    bytes: int | None = None
    arch: str | None = None
    input_shape: tuple[int, ...] | None = None
    probe: Probe | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] = ()
    plan: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())


def load(model: str | Path | nn.Module, options: LoadOptions) -> Source:
    """Read a model. Raises LoadError, OptionError or UnsupportedError with the remedy."""
    if not isinstance(model, (str, Path)):
        from trp_export.load.torch_module import load_module

        return load_module(model, options)
    path = Path(model)
    _require_file(path)
    if path.suffix.lower() == ".onnx":
        if options.arch:
            raise OptionError("--arch is for PyTorch weights; an ONNX file holds its architecture itself.")
        from trp_export.load.onnx_file import load_onnx

        return load_onnx(path, options)
    from trp_export.load.torch_file import load_torch

    return load_torch(path, options)


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise LoadError(f"{path} is a folder; name the model file in it.")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}.") from error
    if empty:
        raise LoadError(f"{path} is empty.")
