"""Samples of all inputs of a network in a fixed order, and the batches that the network takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.errors import LoadError
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.placement import Size
from trp_export.inputs.spec import Array, main_input

Indices = slice | NDArray[Any]
Groups = NDArray[np.intp]

_LARGEST_BATCH = 64
# Eight images of 3x224x224: every layer's input is in memory at once.
_BATCH_ELEMENTS = 8 * 3 * 224 * 224


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a network is fed at a time: an array for each input by name, with the samples along its first axis.

    `shared` names the inputs without an axis of samples. `fixed`: the network takes no other number of samples.
    `groups` (n,) number the samples whose answers are of one size, where they differ by far; else None.
    `len` is the number of samples, and an index chooses among them.
    """

    arrays: Mapping[str, Array]
    shared: frozenset[str] = frozenset()
    fixed: bool = False
    groups: Groups | None = None

    def __len__(self) -> int:
        return next((len(array) for name, array in self.arrays.items() if name not in self.shared), 1)

    def __getitem__(self, places: Indices) -> Batch:
        arrays = {name: array if name in self.shared else array[places] for name, array in self.arrays.items()}
        return replace(self, arrays=arrays, groups=None if self.groups is None else self.groups[places])

    def first(self, count: int) -> Batch:
        """The first samples, all of them where the network takes no other number."""
        return self if self.fixed else self[:count]

    def in_types(self, types: Mapping[str, np.dtype[Any]]) -> Batch:
        """The same in these types by input name."""
        return replace(self, arrays={name: array.astype(types[name]) for name, array in self.arrays.items()})

    @property
    def varies(self) -> bool:
        """True where one sample at least holds different values in one of its inputs."""
        return any(
            float(np.ptp(row)) > 0
            for array in self.arrays.values()
            for row in np.atleast_1d(array)
            if array.dtype.kind in "biuf"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Samples for a network: for each input by name a set, all of the same length.

    `at_a_time` is the number of samples that the network takes, None for any. `notes` are for the user. `groups` are as
    in `Batch`.
    """

    name: str
    sets: Mapping[str, ImageSet]
    at_a_time: int | None = None
    notes: tuple[str, ...] = ()
    groups: Groups | None = None

    def __len__(self) -> int:
        return len(next(iter(self.sets.values())))

    @property
    def main(self) -> ImageSet:
        """The set that labels and metrics go by."""
        specs = [samples.spec for samples in self.sets.values() if samples.spec is not None]
        return self.sets[main_input(specs).name] if specs else next(iter(self.sets.values()))

    @property
    def first(self) -> Mapping[str, Array]:
        """The first sample: an array for each input by name, in a batch of one."""
        return self.batch(0, 1).arrays

    def batch(self, start: int, stop: int) -> Batch:
        """Samples `start` to `stop` as the network takes them. Raises LoadError, naming an unusable sample."""
        arrays = {name: samples.batch(start, stop) for name, samples in self.sets.items()}
        shared = (name for name, samples in self.sets.items() if samples.spec is not None and not samples.spec.batched)
        groups = None if self.groups is None else self.groups[start:stop]
        return Batch(arrays, frozenset(shared), self.at_a_time is not None, groups)

    @property
    def largest(self) -> Batch:
        """A sample of the largest size, in as many copies as the network takes at a time."""
        sizes, count = self._sizes(), self.at_a_time or 1
        place = max(range(len(self)), key=lambda index: sum(map(prod, sizes[index])))
        return self.take(np.full(count, place)).batch(0, count)

    def batches(self, most: int | None = None) -> Iterator[Batch]:
        """All samples in batches that the network takes and memory holds, of at most `most` samples where it takes any.

        All samples of a batch have one size: another size begins another batch. Samples that do not fill a fixed batch
        are left out. Raises LoadError where there are too few for one.
        """
        fixed = self.at_a_time
        if fixed is not None and fixed > len(self):
            raise LoadError(f"the network takes {fixed} samples at a time; {self.name} has {len(self)}.")
        elements = sum(array.size for array in self.largest.arrays.values())
        largest = min(most or _LARGEST_BATCH, _LARGEST_BATCH)
        size = fixed or int(np.clip(_BATCH_ELEMENTS // elements, 1, largest))
        sizes, start = self._sizes(), 0
        while start < len(self) and (fixed is None or start + fixed <= len(self)):
            stop = min(start + size, len(self))
            if fixed is None:
                stop = next((place for place in range(start, stop) if sizes[place] != sizes[start]), stop)
            yield self.batch(start, stop)
            start = stop

    def _sizes(self) -> list[tuple[Size, ...]]:
        """Of each sample the size of each input whose images may differ in size."""
        varying = [sizes for samples in self.sets.values() if (sizes := samples.sizes) is not None]
        return list(zip(*varying, strict=True)) if varying else [()] * len(self)

    def take(self, places: NDArray[np.intp]) -> Samples:
        """The samples at these places."""
        sets = {name: samples.take(places) for name, samples in self.sets.items()}
        return replace(self, sets=sets, groups=None if self.groups is None else self.groups[places])


def groups_of(batches: Sequence[Batch]) -> Groups | None:
    """The groups of the samples of all batches, in order; None where they form one."""
    groups = [batch.groups for batch in batches if batch.groups is not None]
    return np.concatenate(groups) if groups and len(groups) == len(batches) else None


def input_types(model: ir.Model) -> dict[str, np.dtype[Any]]:
    """The types of a model's inputs by name, float32 where the file does not tell."""
    inputs = {value.name or "": value.dtype for value in model.graph.inputs}
    return {name: np.dtype(np.float32) if dtype is None else dtype.numpy() for name, dtype in inputs.items()}
