"""What a user says about a network's inputs on the command line, parsed and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trp_export.errors import LoadError, OptionError
from trp_export.inputs.arrays import read_arrays

Layout = Literal["nchw", "nhwc"]
# The name of an input, None for the first one, and its sizes.
NamedShape = tuple[str | None, tuple[int, ...]]

_MOST_AXES = 16
_MOST_ELEMENTS = 2**31


@dataclass(frozen=True, slots=True)
class InputOptions:
    """Sizes, data and layout of the inputs where the model's file does not tell, or where the user knows better.

    `shapes` has one entry per input, `file` is an .npz with one array per input (or an .npy for the only input), and
    `layout` says which axis of an image input holds the channels. Raises OptionError.
    """

    shapes: tuple[NamedShape, ...] = ()
    file: Path | None = None
    layout: Layout | None = None

    def __post_init__(self) -> None:
        names = [name for name, _ in self.shapes]
        for name, sizes in self.shapes:
            _require_sizes(name, sizes)
            if names.count(name) > 1:
                raise OptionError(f"--shape is given twice for {name or 'the first input'}.")
        if self.layout is not None and self.layout not in get_args(Layout):
            raise OptionError(f"--layout {self.layout} is unknown; use {' or '.join(get_args(Layout))}.")

    @property
    def first_shape(self) -> tuple[int, ...] | None:
        """The sizes given for the first input without its name, else for the only named input."""
        unnamed = [sizes for name, sizes in self.shapes if name is None]
        if unnamed:
            return unnamed[0]
        return self.shapes[0][1] if len(self.shapes) == 1 else None


def parse_shape(text: str) -> NamedShape:
    """Read `1,3,480,640` (for the first input) or `NAME=1,3,480,640`. Raises OptionError."""
    name, separator, sizes = text.rpartition("=")
    if separator and not name:
        raise OptionError(f"--shape {text}: the name of the input is missing; use NAME=1,3,224,224.")
    try:
        numbers = tuple(int(size) for size in sizes.split(","))
    except ValueError as error:
        raise OptionError(f"--shape {text} is not a shape; use 1,3,224,224 or NAME=1,3,224,224.") from error
    _require_sizes(name or None, numbers)
    return name or None, numbers


def show_shape(shape: NamedShape) -> str:
    """The text that `parse_shape` reads."""
    name, sizes = shape
    numbers = ",".join(map(str, sizes))
    return numbers if name is None else f"{name}={numbers}"


def read_input_file(path: Path) -> Mapping[str, NDArray[np.generic]]:
    """The arrays of an .npz by name, or the array of an .npy under the empty name. Raises LoadError."""
    arrays = read_arrays(path)
    empty = next((name for name, array in arrays.items() if not array.size), None)
    if empty is not None:
        raise LoadError(f"{path}: array {empty!r} is empty.")
    if not arrays:
        raise LoadError(f"{path} holds no array; store one per input, under the input's name.")
    return arrays


def _require_sizes(name: str | None, sizes: tuple[int, ...]) -> None:
    shown = show_shape((name, sizes))
    if min(sizes, default=1) < 1:
        raise OptionError(f"--shape {shown}: every size must be at least 1.")
    if len(sizes) > _MOST_AXES or float(np.prod(np.asarray(sizes, dtype=float))) > _MOST_ELEMENTS:
        raise OptionError(f"--shape {shown}: an input has at most {_MOST_AXES} axes and {_MOST_ELEMENTS:,} elements.")
