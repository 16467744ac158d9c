"""What every loader returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from trp_export.inputs.options import InputOptions

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Probe:
    """Inputs, and the outputs that the source itself gives for them: the exported graph must agree."""

    inputs: Mapping[str, NDArray[Any]]
    outputs: Sequence[NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Source:
    """A model with what its file tells about it.

    `path` is the ONNX file itself where the source is one, `bytes` its size with its external data.
    `inputs` are the sizes or arrays of inputs that were known when it was read; `aliases` are the names of inputs in
    the graph by those that the source had. `plan` is the plan stored in a checkpoint. `normal` is true once the model
    is in normal form.
    """

    name: str
    model: ir.Model
    path: Path | None = None
    bytes: int | None = None
    arch: str | None = None
    inputs: InputOptions = InputOptions()
    aliases: Mapping[str, str] = field(default_factory=dict)
    probe: Probe | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] = ()
    plan: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())
    normal: bool = False
