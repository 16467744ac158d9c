"""Calibration data as the network takes it: a sequence of batches, each a dict with one array per input.

It comes from images, from arrays in files, or from a function of the user's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trp_export.errors import LoadError
from trp_export.inputs.arrays import read_arrays
from trp_export.inputs.description import NetworkInputs
from trp_export.inputs.generator import batch_size, fit_batch, import_function, read_batches
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.images import load_images
from trp_export.inputs.options import names_function
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.inputs.spec import Array

# Eight images of 3x224x224: every layer's input is in memory at once.
_BATCH_ELEMENTS = 8 * 3 * 224 * 224
_LARGEST_BATCH = 64
# Decoded pixels are kept up to this size, so that images are not decoded in each pass.
_KEPT_BYTES = 2**30

Batch = Mapping[str, Array]


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationSet:
    """Batches for a network. `count` is the number of samples in all of them; `notes` are for the user.

    `batches` may be read any number of times; those of images are decoded when they are read.
    """

    name: str
    batches: Sequence[Batch]
    count: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each input in the first batch: what `NetworkInputs.completed` takes."""
        return {name: array.shape for name, array in self.batches[0].items()}

    @property
    def arrays(self) -> Sequence[Array]:
        """The batches of a network of one input as plain arrays."""
        return _OnlyInput(self.batches)


def open_calibration(
    source: Path | str,
    inputs: NetworkInputs,
    preprocessing: Preprocessing = Preprocessing(),
    *,
    count: int | None = None,
    seed: int = 0,
) -> CalibrationSet:
    """Calibration data for a network; of more than `count` samples a random choice by `seed`.

    `source` is a folder of images or of .npy files (one sample each), an .npy, an .npz (`images`, or one array per
    input, with the samples along its first axis), or `module:function` or `file.py:function`, a generator function of
    dicts of arrays. Raises LoadError or OptionError with the remedy.
    """
    path = Path(source)
    if len(inputs.specs) == 1:
        samples = open_samples(source, inputs, preprocessing, count=count, seed=seed)
        return image_batches(samples, inputs)
    if names_function(str(source)):
        batches = read_batches(import_function(str(source)), inputs, str(source), count)
        return CalibrationSet(str(source), batches, sum(batch_size(batch, inputs) for batch in batches))
    return _split(path, _read_samples(path, inputs), inputs, count, seed)


def open_samples(
    source: Path | str,
    inputs: NetworkInputs,
    preprocessing: Preprocessing = Preprocessing(),
    *,
    count: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """The same for a network of one input, as a set of samples that can be divided."""
    if not names_function(str(source)):
        return load_images(source, preprocessing, spec=inputs.only, count=count, seed=seed)
    spec = inputs.only
    batches = read_batches(import_function(str(source)), inputs, str(source), count)
    arrays = [batch[spec.name] if spec.batched else batch[spec.name][None] for batch in batches]
    samples = np.concatenate(arrays)
    notes: tuple[str, ...] = ()
    if preprocessing != Preprocessing():
        notes = (f"{source}: what the function yields is fed as it is; --mean, --resize and others do not change it.",)
    return ImageSet(str(source), samples[:count], None, preprocessing, 1, None, notes, (), spec, as_is=True)


def image_batches(images: ImageSet, inputs: NetworkInputs) -> CalibrationSet:
    """Images in batches that the network takes and memory holds; an incomplete last batch of a fixed size is left out.

    Raises LoadError where the network takes more images at a time than there are.
    """
    fixed = _fixed_batch(inputs)
    if fixed is not None and fixed > len(images):
        raise LoadError(f"the network takes {fixed} images at a time; {images.name} has {len(images)}.")
    size = fixed or int(np.clip(_BATCH_ELEMENTS // images.batch(0, 1).size, 1, _LARGEST_BATCH))
    batches = _ImageBatches(images.decoded(_KEPT_BYTES), inputs.only.name, size, fixed is not None)
    return CalibrationSet(images.name, batches, min(len(images), len(batches) * size), images.notes)


class _ImageBatches(Sequence[Batch]):
    """Batches of an image set under the name of the input, made when they are read."""

    def __init__(self, images: ImageSet, name: str, size: int, full_only: bool) -> None:
        self._images, self._name, self._size = images, name, size
        self._count = len(images) // size if full_only else -(-len(images) // size)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start = (index % len(self)) * self._size
        return {self._name: self._images.batch(start, min(start + self._size, len(self._images)))}


class _OnlyInput(Sequence[Array]):
    """The batches of a network of one input, without its name."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Array:  # type: ignore[override]
        (array,) = self._batches[index].values()
        return array


def _read_samples(path: Path, inputs: NetworkInputs) -> dict[str, Array]:
    """The arrays of an .npz by input, with the same number of samples along the first axis of each."""
    names = ", ".join(spec.name for spec in inputs.specs)
    if path.is_dir() or path.suffix != ".npz":
        raise LoadError(
            f"{path} cannot feed the inputs {names}: give an .npz with one array for each, or FILE.py:FUNCTION."
        )
    arrays = fit_batch(read_arrays(path), inputs.without_fixed_batch(), str(path))
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise LoadError(f"{path}: arrays need the same number of samples along their first axis, not {shown}.")
    return arrays


def _split(
    path: Path, arrays: Mapping[str, Array], inputs: NetworkInputs, count: int | None, seed: int
) -> CalibrationSet:
    """Arrays of samples in batches, of more than `count` samples a random choice."""
    available = len(next(iter(arrays.values())))
    chosen = np.arange(available)
    if count is not None and count < available:
        chosen = np.sort(np.random.default_rng(seed).permutation(available)[:count])
    fixed = _fixed_batch(inputs)
    if fixed is not None and fixed > len(chosen):
        raise LoadError(f"the network takes {fixed} samples at a time; {path} has {len(chosen)}.")
    elements = sum(array[0].size for array in arrays.values())
    size = fixed or int(np.clip(_BATCH_ELEMENTS // max(elements, 1), 1, _LARGEST_BATCH))
    stop = len(chosen) - (len(chosen) % size if fixed else 0)
    batches = [
        {name: np.asarray(array[chosen[start : start + size]]) for name, array in arrays.items()}
        for start in range(0, stop, size)
    ]
    return CalibrationSet(str(path), batches, stop)


def _fixed_batch(inputs: NetworkInputs) -> int | None:
    """The number of samples that the network takes at a time, None where it takes any."""
    spec = inputs.specs[0]
    if not spec.batched:
        return 1
    return spec.declared[0] if spec.declared else None
