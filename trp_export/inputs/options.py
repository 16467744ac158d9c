"""What a user says about a network's inputs on the command line, parsed and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal, get_args

from trp_export.flags import InvalidOptionError, flag

SECTION = "The model"

Layout = Literal["nchw", "nhwc"]
# The name of an input, None for the first one, and its sizes.
NamedShape = tuple[str | None, tuple[int, ...]]

_MOST_AXES = 16
MOST_ELEMENTS = 2**31


def parse_shape(text: str) -> NamedShape:
    """Read `1,3,480,640` (for the first input) or `NAME=1,3,480,640`. Raises ValueError."""
    name, separator, sizes = text.rpartition("=")
    parts = sizes.replace("x", ",").split(",")
    if (separator and not name) or not all(re.fullmatch(r"\s*\d{1,9}\s*", part, re.ASCII) for part in parts):
        raise ValueError(f"{text!r} is not a shape such as 1,3,224,224 or NAME=1,3,224,224.")
    return name or None, tuple(map(int, parts))


def show_shape(shape: NamedShape) -> str:
    """The text that `parse_shape` reads."""
    name, sizes = shape
    numbers = ",".join(map(str, sizes))
    return numbers if name is None else f"{name}={numbers}"


def names_function(text: str) -> bool:
    """Whether a --calib argument names a function: `module:function`, and no file of that name exists."""
    module, colon, function = text.rpartition(":")
    return bool(colon and module and function.isidentifier()) and not Path(text).exists()


def named_file(text: str) -> list[Path]:
    """The file in `FILE.py:function`, `module:function` or `kind:FILE`, where it exists."""
    before, colon, after = text.rpartition(":")
    if not colon:
        return []
    candidates = (Path(before), Path(f"{before.replace('.', '/')}.py"), Path(after))
    return [path for path in candidates if path.is_file()]


@dataclass(frozen=True, slots=True)
class InputOptions:
    """Sizes, data and layout of the inputs, where the file does not say or the user overrides it.

    `shapes` has one entry per input, `file` is an .npz with one array per input (or an .npy for the only input), and
    `layout` says which axis of an image input holds the channels. Raises OptionError.
    """

    shapes: tuple[NamedShape, ...] = flag(
        "--shape",
        "Shape of input NAME, or of the first input. Default: that of the file or the architecture; sizes left open "
        "there follow the images, and those that a file fixes change where the network runs at others.",
        section=SECTION,
        kind="many",
        read=parse_shape,
        write=show_shape,
        metavar="[NAME=]N,C,H,W",
        default=(),
    )
    file: Path | None = flag(
        "--input",
        "Check the result on these inputs instead of random ones: an .npz with one array per input.",
        section=SECTION,
        read=Path,
        metavar="FILE",
        default=None,
    )
    layout: Layout | None = flag(
        "--layout",
        "Axis order of an image input. Default: derived from the graph.",
        section=SECTION,
        choices=get_args(Layout),
        default=None,
    )

    def __post_init__(self) -> None:
        names = [name for name, _ in self.shapes]
        for name, sizes in self.shapes:
            _require_sizes(name, sizes)
            if names.count(name) > 1:
                raise InvalidOptionError(f"{{shapes}} is given twice for {name or 'the first input'}.")
        if self.layout is not None and self.layout not in get_args(Layout):
            raise InvalidOptionError(f"{{layout}} must be {' or '.join(get_args(Layout))}, not {self.layout}.")

    @classmethod
    def of(cls, *sizes: int, name: str | None = None) -> InputOptions:
        """Sizes of one input: of the first one without a name, as in `InputOptions.of(1, 3, 224, 224)`."""
        return cls(((name, sizes),))

    def or_shape(self, sizes: tuple[int, ...] | None) -> InputOptions:
        """The same, with these sizes for the first input where neither sizes nor arrays are given."""
        return self if sizes is None or self.shapes or self.file is not None else replace(self, shapes=((None, sizes),))


def _require_sizes(name: str | None, sizes: tuple[int, ...]) -> None:
    shown = show_shape((name, sizes))
    if min(sizes, default=0) < 0:
        raise InvalidOptionError(f"{{shapes}} {shown}: no size is below 0.")
    if len(sizes) > _MOST_AXES or prod(sizes) > MOST_ELEMENTS:
        raise InvalidOptionError(
            f"{{shapes}} {shown}: an input has at most {_MOST_AXES} axes and {MOST_ELEMENTS:,} elements."
        )
