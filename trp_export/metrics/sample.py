"""What the first images show of a network: enough to tell what kind of answer it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trp_export.graph.shapes import Shape
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.pictures import picture_size
from trp_export.inputs.placement import Placement, Size, place

Array = NDArray[Any]
Outputs = Sequence[Array]


@dataclass(frozen=True, slots=True)
class Span:
    """The number of the first image of a batch, and the (height, width) at which its images were fed."""

    start: int
    size: Size


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """The outputs of the original for one batch, with their names.

    `count` images made the batch; `size` is the (height, width) of the input, `channels` its number of
    channels, which the outputs have last where the input has (`channels_last`).
    `classes` are the names of the network's classes, where the checkpoint has them; `fed` the shape of each input by
    its name.
    """

    names: tuple[str, ...]
    outputs: tuple[Array, ...]
    count: int
    size: Size
    channels: int
    channels_last: bool = False
    classes: tuple[str, ...] = ()
    fed: Mapping[str, Shape] = field(default_factory=dict)

    @property
    def first(self) -> Array:
        """The output that metrics of one output look at."""
        return self.outputs[0]

    def describe(self) -> str:
        """The shapes of the outputs, for messages."""
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in zip(self.names, self.outputs, strict=True))
        return shapes if len(shapes) < 200 else f"{shapes[:200]}..."


def image_names(images: ImageSet) -> tuple[str, ...]:
    """The name of each image as labels call it: its path below the folder, or its number in an array."""
    if isinstance(images.pixels, np.ndarray):
        return tuple(str(index) for index in range(len(images)))
    folder = Path(images.name)
    return tuple(path.relative_to(folder).as_posix() for path in images.pixels)


def by_name(images: Sequence[str]) -> dict[str, int]:
    """The number of each image by its name, and by its name without folders where no other image has that."""
    numbers = {name: number for number, name in enumerate(images)}
    bare = Counter(Path(name).name for name in images)
    return {Path(name).name: number for name, number in numbers.items() if bare[Path(name).name] == 1} | numbers


def placements(images: ImageSet, size: Size) -> tuple[Placement, ...]:
    """Where each image lies in the input; arrays that are fed as they are fill an input of `size`."""
    if images.as_is or (isinstance(images.pixels, np.ndarray) and images.pixels.dtype != np.uint8):
        return (Placement(size),) * len(images)
    steps = images.steps
    if isinstance(images.pixels, np.ndarray):
        return (place(images.pixels.shape[1:3], steps),) * len(images)
    return tuple(place(picture_size(path) or size, steps) for path in images.pixels)
