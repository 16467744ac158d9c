"""One input of a network as a value, and arrays that fit it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trp_export.errors import LoadError, OptionError, UnsupportedError

Array = NDArray[Any]
Extents = tuple[int | None, ...]
Layout = Literal["NCHW", "NHWC", "CHW", "HWC", "other", "unknown"]

CHANNEL_AXES: Mapping[str, int] = {"NCHW": 1, "NHWC": 3, "CHW": 0, "HWC": 2}
# For sizes that nothing tells: large enough that every tap of every kernel is used.
OPEN_EXTENT = 224
# For waveforms, whose networks divide time by hundreds: about a second of speech, and a power of two.
WAVEFORM_EXTENT = 16_384
# For volumes, which would take gigabytes at the usual extent: as many voxels as a picture of 181 x 181 has pixels.
VOLUME_EXTENT = 32
_LIMIT_BYTES = 4 * 2**30
# Names of open sizes that exporters and shape inference count up: nobody wrote them.
_NUMBERED = re.compile(r"(unk__|dynamic\w*|dim_?|s|u)\d+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a network.

    `dtype` is ONNX's name of the type in lower case (float32, uint8, int64, string, ...). `declared` are the sizes in
    the file, None where it leaves one open; `shape` are those known by now; both are None where not even the number of
    axes is known. `symbols` are the names of open sizes: one name is one size. `layout` is "unknown" for an image
    whose channels neither the graph nor the user points out. `takes_pixels`: the graph itself scales 0..255. `shared`:
    the input has no axis of samples beside inputs that have one. `state`: it is the state of a recurrent layer, with
    its samples on the second axis.
    """

    name: str
    dtype: str = "float32"
    declared: Extents | None = None
    shape: Extents | None = None
    symbols: tuple[str | None, ...] = ()
    layout: Layout = "other"
    channels: int | None = None
    takes_pixels: bool = False
    shared: bool = False
    state: bool = False

    @classmethod
    def of_images(cls, shape: Sequence[int | None], name: str = "input") -> InputSpec:
        """A float32 image input (N, C, H, W), as PyTorch modules take it."""
        extents = tuple(shape)
        return cls(name, "float32", extents, extents, (None,) * len(extents), "NCHW", extents[1])

    @property
    def is_image(self) -> bool:
        return self.layout in CHANNEL_AXES

    @property
    def is_integer(self) -> bool:
        return self.dtype.startswith(("int", "uint"))

    @property
    def is_waveform(self) -> bool:
        """True for floats of an open length in one or two channels: (N, T), (N, C, T) or (N, T, C)."""
        if self.declared is None or not self.dtype.startswith(("float", "double")) or not self.batched:
            return False
        open_axes, known = self.declared[1:].count(None), [size for size in self.declared[1:] if size is not None]
        return len(self.declared) in (2, 3) and open_axes == 1 and all(size <= 2 for size in known)

    @property
    def is_volume(self) -> bool:
        """True for an input with three open axes or more beside that of the samples."""
        return self.declared is not None and self.declared[1 if self.batched else 0 :].count(None) > 2

    @property
    def batched(self) -> bool:
        """False for an input without an axis of samples."""
        return not self.shared and self.layout not in ("CHW", "HWC")

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of an image input, None where one of them is open."""
        height, width = self.extents
        return None if height is None or width is None else (height, width)

    @property
    def extents(self) -> tuple[int | None, int | None]:
        """Height and width of an image input as far as they are known."""
        if self.shape is None or not self.is_image:
            return None, None
        axis = CHANNEL_AXES[self.layout]
        height, width = (size for index, size in enumerate(self.shape[-3:], len(self.shape) - 3) if index != axis)
        return height, width

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Raises UnsupportedError for types that numpy does not have."""
        try:
            return np.dtype({"string": "O"}.get(self.dtype, self.dtype))
        except TypeError as error:
            raise UnsupportedError(f"input {self.name} is {self.dtype}, which cannot be fed.") from error

    def arrange(self, images: Array) -> Array:
        """Images (n, H, W, C) -> this input's layout, contiguous."""
        order = {"NCHW": (0, 3, 1, 2), "CHW": (0, 3, 1, 2)}.get(self.layout, (0, 1, 2, 3))
        arranged = np.ascontiguousarray(images.transpose(order))
        return arranged if self.batched else arranged[0]

    def require_image(self) -> InputSpec:
        """Itself. Raises OptionError where it is not an image, or where the graph hides which axis has the channels."""
        if self.layout == "unknown":
            _, second, third, fourth = ("any" if size is None else str(size) for size in self.declared or (None,) * 4)
            raise OptionError(
                f"the graph does not tell where input {self.name} {self.show()} holds its channels: it has "
                f"{second} channels of {third} x {fourth} pixels (--layout nchw), "
                f"or {fourth} channels of {second} x {third} pixels (--layout nhwc). Say which."
            )
        if not self.is_image:
            raise OptionError(
                f"input {self.name} {self.show()} is not an image. "
                f"Give an .npz with the array {self.name!r}, or --calib FILE.py:FUNCTION."
            )
        return self

    def show(self) -> str:
        """Its shape for messages: open sizes by their name, else `any`."""
        if self.declared is None:
            return "(any)"
        names = [*self.symbols, *(None for _ in self.declared)]
        return "(" + ", ".join(_shown(size, name) for size, name in zip(self.declared, names, strict=False)) + ")"


def main_input(specs: Sequence[InputSpec]) -> InputSpec:
    """The input that others, outputs and labels follow: the image, else the one of most axes that is no state."""
    return max(specs, key=lambda spec: (spec.is_image, not spec.state, len(spec.declared or spec.shape or ())))


def fit_array(spec: InputSpec, array: Array, where: str) -> Array:
    """The array in the type of the input. Raises LoadError where the shape does not fit or values would be lost."""
    declared = spec.declared
    if declared is not None and (
        array.ndim != len(declared) or any(a not in (None, b) for a, b in zip(declared, array.shape, strict=True))
    ):
        raise LoadError(f"{where}: array {spec.name} has shape {array.shape}; the input is {spec.show()}.")
    wanted = spec.numpy_dtype
    if array.dtype == wanted:
        return array
    if wanted.kind == "O" and array.dtype.kind in "US":
        return array.astype(object)
    if array.dtype.kind not in "biuf" or wanted.kind not in "biuf":
        raise LoadError(f"{where}: array {spec.name} is {array.dtype}; the input is {spec.dtype}.")
    if wanted.kind in "iub" and not np.array_equal(array, _clipped(array, wanted)):
        raise LoadError(
            f"{where}: array {spec.name} is {array.dtype} with values of {_range(array)}; "
            f"the input is {spec.dtype}, which cannot hold them."
        )
    return array.astype(wanted)


def random_input(spec: InputSpec, shape: Sequence[int | None] | None, generator: np.random.Generator) -> Array:
    """Noise for one input. Raises UnsupportedError where noise cannot stand for it."""
    remedy = "give real data with --input FILE.npz"
    if shape is None or None in shape:
        raise UnsupportedError(f"the shape of input {spec.name} {spec.show()} is not known: {remedy}, or --shape.")
    sizes = [size for size in shape if size is not None]
    if prod(sizes) * 8 > _LIMIT_BYTES:
        raise UnsupportedError(f"input {spec.name} of shape {sizes} is larger than {_LIMIT_BYTES / 1e9:.0f} GB.")
    kind = spec.numpy_dtype
    if kind.kind == "f":
        return np.asarray(generator.standard_normal(sizes)).astype(kind)
    if kind.kind == "b" or (kind.kind in "iu" and not (spec.is_image or kind == np.uint8)):
        return np.asarray(generator.integers(0, 2, sizes)).astype(kind)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return np.asarray(generator.integers(max(limits.min, -128), min(limits.max, 255), sizes, endpoint=True)).astype(
            kind
        )
    raise UnsupportedError(f"input {spec.name} is {spec.dtype}, which noise cannot stand for: {remedy}.")


def _shown(size: int | None, symbol: str | None) -> str:
    if size is not None:
        return str(size)
    return symbol if symbol and len(symbol) <= 12 and not _NUMBERED.fullmatch(symbol) else "any"


def _clipped(array: Array, wanted: np.dtype[Any]) -> Array:
    """The array as the type holds it, without the warnings and wrap-arounds of a cast out of range."""
    if wanted.kind == "b":
        return np.asarray(array).astype(bool)
    limits = np.iinfo(wanted)
    finite = np.nan_to_num(np.asarray(array, dtype=np.float64)) if array.dtype.kind == "f" else array
    clipped: Array = np.clip(np.trunc(finite), limits.min, limits.max)
    return clipped


def _range(array: Array) -> str:
    return f"{array.min():.4g} to {array.max():.4g}"
