"""Keep part of the calibration samples aside: whatever is made from the others is judged on these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.memory import images_to_walk
from trp_export.graph.shapes import Shape, infer_value_shapes
from trp_export.inputs.samples import Batch, Samples

# One image in four, and no more than judge well: their error is an average over all of them.
_ONE_IN = 4
_MOST = 256
# Neighbours in a folder may be frames of one film: images are held out in runs, of which there are this many.
_RUNS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The samples to fit to, and those held out; None where there are too few for both.

    `fresh` are those to fit to that no earlier run has counted; None where there are none.
    """

    fitting: Samples
    held_out: Samples | None
    fresh: Samples | None


def split_samples(samples: Samples, counted: NDArray[np.bool_] | None = None) -> Split:
    """`counted` tells which samples took part in what earlier runs made: these cannot be held out.

    Each part fills whole batches of a network that takes a fixed number at a time.
    """
    counted = np.zeros(len(samples), dtype=bool) if counted is None else counted
    multiple = samples.at_a_time or 1
    new = np.flatnonzero(~counted)
    units = len(new) // multiple
    wanted = min(max(len(samples) // multiple // _ONE_IN, 1), max(_MOST // multiple, 1))
    # All that are new may be held out where others are left to fit to.
    wanted = min(wanted, units if len(samples) - len(new) >= multiple else units - 1)
    if wanted < 1:
        return Split(samples, None, _whole(samples, new) if counted.any() else samples)
    runs = min(_RUNS, wanted)
    ends = (np.arange(1, runs + 1) * units) // runs
    lengths = np.diff((np.arange(runs + 1) * wanted) // runs)
    held = np.zeros(len(samples), dtype=bool)
    for end, length in zip(ends, lengths, strict=True):
        held[new[(end - length) * multiple : end * multiple]] = True
    fitting = samples.take(np.flatnonzero(~held))
    fresh = _whole(samples, np.flatnonzero(~held & ~counted)) if counted.any() else fitting
    return Split(fitting, samples.take(np.flatnonzero(held)), fresh)


def _whole(samples: Samples, places: NDArray[np.intp]) -> Samples | None:
    """The samples at these places; None where they fill no batch."""
    return samples.take(places) if len(places) >= (samples.at_a_time or 1) else None


def digests(batches: Iterable[Batch]) -> list[str]:
    """What tells each sample from all others, as the network reads it."""
    return [_digest(batch[place : place + 1]) for batch in batches for place in range(len(batch))]


def _digest(sample: Batch) -> str:
    digest = blake2b(digest_size=16)
    for name, array in sorted(sample.arrays.items()):
        text = array.astype(str) if array.dtype.kind == "O" else array
        digest.update(f"{name} {text.dtype} {text.shape}".encode() + text.tobytes())
    return digest.hexdigest()


def take_samples(batches: Sequence[Batch], count: int) -> Sequence[Batch]:
    """About `count` samples, evenly spaced over all batches; whole batches where these are of a fixed size."""
    total = sum(len(batch) for batch in batches)
    if count >= total:
        return batches
    if batches[0].fixed:
        chosen = np.unique(np.linspace(0, len(batches) - 1, max(1, count // len(batches[0]))).astype(int))
        return [batches[index] for index in chosen]
    places = np.linspace(0, total - 1, max(1, count)).astype(int)
    starts = np.cumsum([0, *(len(batch) for batch in batches)])
    parts = [batch[places[(places >= start) & (places < start + len(batch))] - start]
             for batch, start in zip(batches, starts, strict=False)]  # fmt: skip
    return [part for part in parts if len(part)]


def with_room(model: ir.Model, batches: Sequence[Batch]) -> Sequence[Batch]:
    """As many of these samples as memory is for with all that the model answers to them."""
    room = images_with_room(model, batches)
    return batches if room is None else take_samples(batches, room)


def images_with_room(model: ir.Model, batches: Sequence[Batch]) -> int | None:
    """How many samples those are; None for a network without nodes."""
    room = images_to_walk(model, largest_shapes(model, batches))
    return room[-1] if room else None


def largest_shapes(model: ir.Model, batches: Sequence[Batch]) -> Mapping[str, Shape]:
    """The shapes of all values for the largest sample."""
    largest = max(batches, key=lambda batch: sum(array.nbytes for array in batch.arrays.values()) / len(batch))
    return infer_value_shapes(model, {name: array.shape for name, array in largest.first(1).arrays.items()})
