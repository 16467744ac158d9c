"""Samples for a network of any inputs: from images, from arrays in files, or from a function of the user's.

They calibrate the network, or it is evaluated on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from trp_export.errors import LoadError
from trp_export.inputs.arrays import read_arrays
from trp_export.inputs.description import NetworkInputs
from trp_export.inputs.generator import batch_size, import_function, read_batches, require_names
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.images import array_set, choose, load_images, require_labels
from trp_export.inputs.options import names_function
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.inputs.samples import Samples
from trp_export.inputs.spec import Array, InputSpec, fit_array


def open_calibration(
    source: Path | str,
    inputs: NetworkInputs,
    preprocessing: Preprocessing = Preprocessing(),
    *,
    count: int | None = None,
    most: int | None = None,
    seed: int = 0,
) -> Samples:
    """Samples for a network: the `count` that the user asks for, else `most`; of more a random choice by `seed`.

    `source` is a folder of images or of .npy files (one sample each), an .npy, an .npz (`images`, or one array per
    input, with the samples along its first axis, and perhaps their `labels`), or `module:function` or
    `file.py:function`, a generator function of dicts of arrays. Raises LoadError or OptionError with the remedy.
    """
    limit = most if count is None else count
    if names_function(str(source)):
        samples = _from_function(str(source), inputs, preprocessing, limit)
    elif len(inputs.specs) == 1:
        samples = image_samples(load_images(source, preprocessing, spec=inputs.only, count=limit, seed=seed), inputs)
    else:
        samples = _from_archive(Path(source), inputs, preprocessing, limit, seed)
    if count is None or count <= len(samples):
        return samples
    fewer = f"{source} has {len(samples):,} samples of the {count:,} that were asked for: all are used"
    return replace(samples, notes=(*samples.notes, fewer))


def image_samples(images: ImageSet, inputs: NetworkInputs) -> Samples:
    """Images for a network of one input."""
    return Samples(images.name, {inputs.only.name: images}, inputs.at_a_time, images.notes)


def _from_function(source: str, inputs: NetworkInputs, preprocessing: Preprocessing, count: int | None) -> Samples:
    """The samples that a function yields; an input of another length than the others belongs to all of a batch."""
    batches = read_batches(import_function(source), inputs, source, count)
    sizes = [batch_size(batch, inputs) for batch in batches]
    sets: dict[str, ImageSet] = {}
    for spec in inputs.specs:
        parts = [batch[spec.name] for batch in batches]
        if spec.batched and any(part.shape[:1] != (size,) for part, size in zip(parts, sizes, strict=True)):
            spec = replace(spec, shared=True)
        if not spec.batched:
            if len({part.shape for part in parts}) > 1:
                raise LoadError(
                    f"{source}: {spec.name} needs the samples of its batch or the same shape in each batch."
                )
            parts = [np.repeat(part[None], size, axis=0) for part, size in zip(parts, sizes, strict=True)]
        sets[spec.name] = _fed(source, np.concatenate(parts)[:count], spec)
    return _join(source, sets, inputs, _as_it_is(source, preprocessing))


def _from_archive(
    path: Path, inputs: NetworkInputs, preprocessing: Preprocessing, count: int | None, seed: int
) -> Samples:
    """The samples of an .npz with an array for each input: its samples along the first axis, or one for all."""
    names = ", ".join(spec.name for spec in inputs.specs)
    if path.is_dir() or path.suffix != ".npz":
        raise LoadError(
            f"{path} cannot feed the inputs {names}: give an .npz with one array for each, or FILE.py:FUNCTION."
        )
    arrays = read_arrays(path)
    labels = None if any(spec.name == "labels" for spec in inputs.specs) else arrays.pop("labels", None)
    require_names(arrays, inputs, str(path))
    specs = [_as_stored(spec, arrays[spec.name]) for spec in inputs.specs]
    lengths = {
        spec.name: array.shape[0] if (array := arrays[spec.name]).ndim else 0
        for spec in specs
        if not _is_same_for_all(spec, arrays[spec.name])
    }
    if set(lengths.values()) == {0}:
        raise LoadError(f"{path} holds no samples: the first axis of each array is empty.")
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise LoadError(f"{path}: arrays need the same number of samples along their first axis, not {shown}.")
    available = next(iter(lengths.values()))
    sets = {}
    for spec in specs:
        array = arrays[spec.name]
        if _is_same_for_all(spec, array):
            array = np.broadcast_to(array, (available, *array.shape))
        sets[spec.name] = array_set(path, array, preprocessing, spec) if spec.is_image else _fed(path, array, spec)
    notes = tuple(dict.fromkeys(note for samples in sets.values() for note in samples.notes))
    if not any(spec.is_image for spec in specs):
        notes += _as_it_is(str(path), preprocessing)
    samples = _join(str(path), sets, inputs, notes)
    if labels is not None:
        numbers = require_labels(path, available, labels)
        main = samples.main
        sets = {name: replace(one, labels=numbers) if one is main else one for name, one in sets.items()}
        samples = replace(samples, sets=sets)
    return samples if count is None or count >= available else samples.take(choose(available, count, seed))


def _join(source: str, sets: Mapping[str, ImageSet], inputs: NetworkInputs, notes: tuple[str, ...]) -> Samples:
    specs = tuple(samples.spec or inputs[name] for name, samples in sets.items())
    return Samples(source, sets, replace(inputs, specs=specs).at_a_time, notes)


def _as_it_is(source: str, preprocessing: Preprocessing) -> tuple[str, ...]:
    if preprocessing == Preprocessing():
        return ()
    return (f"{source}: its arrays are fed as they are; --mean, --resize and others do not change them.",)


def _as_stored(spec: InputSpec, array: Array) -> InputSpec:
    """The input; one axis more than it has is that of samples which are fed one at a time."""
    rows = spec.declared is not None and spec.batched and array.ndim == len(spec.declared) + 1
    return replace(spec, shared=True) if rows else spec


def _is_same_for_all(spec: InputSpec, array: Array) -> bool:
    return spec.shared and spec.declared is not None and array.ndim == len(spec.declared)


def _fed(path: Path | str, array: Array, spec: InputSpec) -> ImageSet:
    """An array of samples that is fed as it is."""
    declared = spec.declared
    if declared is not None:
        declared = (None, *(declared[1:] if spec.batched else declared))
    fitted = fit_array(replace(spec, declared=declared), array, str(path))
    return ImageSet(str(path), fitted, None, Preprocessing(), 1, None, (), (), spec, as_is=True)
