"""Images in a fixed order that become inputs of a network a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trp_export.errors import LoadError, OptionError
from trp_export.inputs.pictures import bring_to_size, read_picture, shown_size
from trp_export.inputs.placement import Size, placed_size
from trp_export.inputs.preprocessing import SCALE, Preprocessing, Resize
from trp_export.inputs.spec import Array, InputSpec, fit_array

Pixels = tuple[Path, ...] | NDArray[Any]

_LARGEST_FRACTION = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images in a fixed order, decoded when asked for. `notes` are what the user should know about them.

    `pixels` are paths, or one array: uint8 (N, H, W, C), or an array that is fed as it is (`as_is`; always so for
    floats). `size` is the (height, width) that images are resized and cut to where the preprocessing names neither.
    `classes` are the names of the folders that labels count. `spec` is the input that is fed, (N, C, H, W) of float32
    where it is None.
    """

    name: str
    pixels: Pixels
    labels: NDArray[np.int64] | None
    preprocessing: Preprocessing
    channels: int
    size: tuple[int, int] | None
    notes: tuple[str, ...]
    classes: tuple[str, ...] = ()
    spec: InputSpec | None = None
    as_is: bool = False

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def sizes(self) -> tuple[Size, ...] | None:
        """The (height, width) of each image as it is fed; None where all are sure to be alike. Raises LoadError."""
        steps = self.steps
        boxed = isinstance(steps.resize, Resize) and steps.resize.mode != "multiple"
        if isinstance(self.pixels, np.ndarray) or steps.crop is not None or boxed:
            return None
        return tuple(placed_size(shown_size(path), steps) for path in self.pixels)

    def batch(self, start: int, stop: int) -> Array:
        """Images `start` to `stop` in the layout and type of the input. Raises LoadError, naming an unusable image."""
        if isinstance(self.pixels, np.ndarray) and (self.as_is or self.pixels.dtype != np.uint8):
            return self._fed_as_they_are(start, stop)
        steps = self.steps
        images = self._all_pixels(start, min(stop, len(self)), steps)
        spec = self.spec or InputSpec.of_images((None, self.channels, None, None))
        return spec.arrange(_in_type(_normalise(np.stack(images), steps), spec))

    def take(self, places: NDArray[np.intp]) -> ImageSet:
        """The images at these places, with their labels."""
        pixels = (
            tuple(self.pixels[place] for place in places) if isinstance(self.pixels, tuple) else self.pixels[places]
        )
        return replace(self, pixels=pixels, labels=self.labels[places] if self.labels is not None else None)

    def batches(self, batch_size: int) -> Iterator[Array]:
        for start in range(0, len(self), batch_size):
            yield self.batch(start, min(start + batch_size, len(self)))

    def decoded(self, most_bytes: int) -> ImageSet:
        """The same with files decoded, resized and cut, as one array of pixels; itself where that is too large."""
        steps = self.steps
        if not isinstance(self.pixels, tuple) or self._pixels(0, steps).size * len(self) > most_bytes:
            return self
        images = np.stack(self._all_pixels(0, len(self), steps))
        rest = Preprocessing(steps.mean, steps.std, scale=steps.scale)
        return replace(self, pixels=images, preprocessing=rest, size=None)

    @property
    def inputs(self) -> Array:
        """All images at once."""
        return self.batch(0, len(self))

    @property
    def steps(self) -> Preprocessing:
        """The preprocessing with every choice spelled out; as it is where it does nothing."""
        if self.as_is:
            return self.preprocessing
        spec = self.spec
        return self.preprocessing.complete(
            self.channels,
            self.size,
            integer=spec is not None and spec.is_integer,
            takes_pixels=spec is not None and spec.takes_pixels,
        )

    def _all_pixels(self, start: int, stop: int, steps: Preprocessing) -> list[NDArray[np.uint8]]:
        """Images of one size."""
        images = [self._pixels(index, steps) for index in range(start, stop)]
        odd = next((index for index, image in enumerate(images) if image.shape != images[0].shape), None)
        if odd is not None:
            raise LoadError(
                f"{self._call(start + odd)} is {_size(images[odd])} and {self._call(start)} {_size(images[0])}: "
                "images of one set must agree in size. Add --resize and --crop."
            )
        return images

    def _pixels(self, index: int, steps: Preprocessing) -> NDArray[np.uint8]:
        """One image (H, W, C) in the order of the network's channels."""
        grey = steps.colour == "grey"
        if isinstance(self.pixels, tuple):
            image = bring_to_size(read_picture(self.pixels[index], grey=grey), steps, str(self.pixels[index]))
            pixels = np.asarray(image)
        else:
            pixels = self._from_array(self.pixels[index], steps)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if steps.colour == "bgr":
            return pixels[:, :, ::-1]
        return np.repeat(pixels, self.channels, axis=2) if pixels.shape[2] == 1 < self.channels else pixels

    def _from_array(self, pixels: NDArray[np.uint8], steps: Preprocessing) -> NDArray[np.uint8]:
        to_grey = steps.colour == "grey" and pixels.shape[2] == 3
        wanted = steps.resize is not None or steps.crop is not None
        if not to_grey and (not wanted or (self.preprocessing.is_plain and pixels.shape[:2] == self.size)):
            return pixels
        if pixels.shape[2] not in (1, 3):
            raise OptionError(
                f"{self.name}: images of {pixels.shape[2]} channels cannot be resized; store them in size."
            )
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return np.asarray(bring_to_size(image.convert("L") if to_grey else image, steps, self.name))

    def _fed_as_they_are(self, start: int, stop: int) -> Array:
        part = np.asarray(self.pixels[start:stop])
        spec = self.spec
        with np.errstate(all="ignore"):
            inputs = part.astype(np.float32) if part.dtype.kind == "f" else part
        if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
            finite = np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1)
            raise LoadError(
                f"{self.name}: image {start + int(np.flatnonzero(~finite)[0])} holds NaN or infinite values."
            )
        if spec is None:
            return np.ascontiguousarray(inputs)
        free = replace(spec, declared=None)  # The shape was checked when the set was opened.
        fitted = np.ascontiguousarray(fit_array(free, inputs, self.name))
        if spec.batched:
            return fitted
        if (fitted != fitted[0]).any():
            raise LoadError(
                f"{self.name}: {spec.name} differs among samples {start} to {start + len(fitted) - 1}, which the "
                "network takes together."
            )
        return np.asarray(fitted[0])

    def _call(self, index: int) -> str:
        return str(self.pixels[index]) if isinstance(self.pixels, tuple) else f"{self.name}: image {index}"


def _normalise(pixels: NDArray[np.uint8], steps: Preprocessing) -> NDArray[np.float32]:
    """Pixels (..., C) -> float32 of the same shape: (pixel * scale - mean) / std."""
    values: NDArray[np.float32] = pixels.astype(np.float32)
    if steps.scale in (None, SCALE):
        values /= np.float32(255)
    elif steps.scale != 1:
        values *= np.float32(steps.scale)
    if steps.mean is not None and any(steps.mean):
        values -= np.asarray(steps.mean, dtype=np.float32)
    if steps.std is not None and any(value != 1 for value in steps.std):
        values /= np.asarray(steps.std, dtype=np.float32)
    return values


def _in_type(values: NDArray[np.float32], spec: InputSpec) -> Array:
    """The values in the type of the input. Raises OptionError where a whole-number type cannot hold them."""
    if not spec.is_integer:
        return values.astype(spec.numpy_dtype, copy=False)
    whole, limits = np.rint(values), np.iinfo(spec.numpy_dtype)
    if whole.min() < limits.min or whole.max() > limits.max or np.abs(values - whole).max() > _LARGEST_FRACTION:
        raise OptionError(
            f"input {spec.name} is {spec.dtype}, and the preprocessing makes values of {values.min():.4g} to "
            f"{values.max():.4g}: choose --scale and --mean that keep whole numbers of {limits.min} to {limits.max}."
        )
    return whole.astype(spec.numpy_dtype)


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
