"""What the outputs of a network look like, so that a metric can be chosen for them."""

from __future__ import annotations

import numpy as np

from trp_export.calibration.divergence import share_in_common
from trp_export.metrics.answers import open_answers
from trp_export.metrics.classes import are_classes, are_numbers
from trp_export.metrics.heads import find_head
from trp_export.metrics.sample import Array, Sample, Span
from trp_export.metrics.segmentation import MOST_CLASSES, tells_apart
from trp_export.metrics.sequences import open_sequences

# Descriptors have a power of two of values from here on; few networks tell so many classes apart.
_LEAST_EMBEDDING = 64
_UNIT = 1e-3
# Ratings and coordinates move together: they have more of their variance in common than this share, and than
# independent scores have by so many standard errors.
_IN_COMMON = 0.25
_ERRORS = 4.0
# Five landmarks are the fewest. Their mean over these many images leaves less than this share of their variance, and
# they lie outside their crop by less than this share of it.
_LEAST_PLACES = 10
_LEAST_IMAGES = 8
_DIFFERENT = 0.1
_OUTSIDE = 0.1
# Maps of classes are distorted by less than this.
_ASPECT = 2.0
# The strides of a detector's levels.
_LEVELS = (8, 16, 32, 64)
# Between peaks a heat map lies below this share of them.
_FLAT = 0.1
# Networks that read answer most steps with a blank or the class of the step before.
_LONGEST_TEXT = 0.7
# A few images of text hold as many classes beside the blank.
_LEAST_LETTERS = 3


def kind_of(sample: Sample) -> str | None:
    """The metric that fits the outputs; None where nothing is recognised."""
    if _are_chosen_steps(sample):
        return "sequences"
    classes = are_classes(sample.first, sample.count)
    if not (classes and len(sample.outputs) == 1) and find_head(sample) is not None:
        return "map"
    if classes and (_has_classes_elsewhere(sample) or _are_largest(sample)):
        return "outputs"
    if classes:
        scores = are_scores(sample.first, sample.count) and not _are_places(sample.first)
        if sample.classes or are_numbers(sample.first) or scores:
            return "top1"
        return "pairs" if _are_embeddings(sample.first) else "outputs"
    fits = _kind_of_map(sample) or ("sequences" if _are_steps(sample) else None)
    return fits or ("outputs" if open_answers(sample) is not None else None)


def are_scores(rows: Array, count: int) -> bool:
    """True for one row of scores of classes for each of `count` images, and for no descriptors, ratings or places."""
    vectors = rows.ndim > 1 and are_classes(rows, count)
    return vectors and not _are_embeddings(rows) and not _move_together(rows)


def _are_embeddings(rows: Array) -> bool:
    """True for vectors (n, values) of length 1, and for those of 64, 128, 256, ... values that are no probabilities."""
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    if not np.isfinite(rows).all():
        return False
    probabilities = _are_probabilities(rows)
    unit = bool(np.allclose(np.linalg.norm(rows, axis=1), 1, atol=_UNIT))
    values = rows.shape[1]
    return not probabilities and (unit or (values >= _LEAST_EMBEDDING and values & (values - 1) == 0))


def _move_together(rows: Array) -> bool:
    """True for vectors (n, values) whose values move together, as ratings and coordinates do, and no scores do."""
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    if not np.isfinite(rows).all() or _are_probabilities(rows):
        return False
    if len(rows) < 2:
        return False
    independent = (1 + _ERRORS * np.sqrt(2 / (len(rows) - 1))) / rows.shape[1]
    return bool(share_in_common(rows) > max(_IN_COMMON, independent))


def _are_places(rows: Array) -> bool:
    """True for landmarks in aligned crops: many coordinates, hardly below 0, that differ little from image to image.

    Logits that hardly differ, as for images of noise, are as often below 0.
    """
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    if len(rows) < _LEAST_IMAGES or rows.shape[1] < _LEAST_PLACES or _are_probabilities(rows):
        return False
    inside = bool(rows.min() >= -_OUTSIDE * rows.max())
    return inside and bool(rows.var(axis=0).mean() < _DIFFERENT * rows.mean(axis=0).var())


def _are_probabilities(rows: Array) -> bool:
    return bool((rows >= 0).all()) and bool(np.allclose(rows.sum(axis=1), 1, atol=_UNIT))


def _has_classes_elsewhere(sample: Sample) -> bool:
    """True where another output holds the probabilities of classes, and the first holds something else."""
    first, *others = sample.outputs
    wide = [other for other in others if other.ndim == 2 and other.shape[1] not in (1, first.size // len(first))]
    return not _are_probabilities(first.reshape(len(first), -1)) and any(map(_are_probabilities, wide))


def _are_largest(sample: Sample) -> bool:
    """True for the rows of a TopK: falling scores, with numbers beside them. The first is always the largest."""
    first, *others = sample.outputs
    falls = first.dtype.kind == "f" and bool((np.diff(first.reshape(len(first), -1), axis=1) <= 0).all())
    return falls and any(other.dtype.kind in "iu" and other.shape == first.shape for other in others)


def is_picture(sample: Sample) -> bool:
    """True for as many colours as the input has, in maps no smaller than half of it."""
    output = sample.first
    if output.ndim != 4 or output.dtype.kind not in "fu":
        return False
    sides = output.shape[1:3] if sample.channels_last else output.shape[2:]
    channels = output.shape[3 if sample.channels_last else 1]
    colours = channels == sample.channels and (channels > 1 or output.dtype.kind == "f")  # One of bytes: classes.
    return colours and all(2 * own >= fed for own, fed in zip(sides, sample.size, strict=True))


def _kind_of_map(sample: Sample) -> str | None:
    output = sample.first
    if is_picture(sample):
        return "psnr"
    channels = {other.shape[3 if sample.channels_last else 1] for other in sample.outputs if other.ndim == 4}
    if len(channels) > 1 or _are_levels(sample):
        return None  # Maps of unlike kinds, such as scores, offsets and sizes of boxes, or of boxes of unlike sizes.
    whole = output.dtype.kind in "iub"
    sides = [side for side in output.shape[1:] if side != 1]
    few = output.ndim == 4 and (whole or output.shape[3 if sample.channels_last else 1] <= MOST_CLASSES)
    if few and len(output) == sample.count and len(sides) >= 2 and output.dtype.kind in "iubf":
        classes = tells_apart(output, channels_last=sample.channels_last) and _has_aspect(sample)
        classes = classes and not _are_peaks(sample)
        return "miou" if classes else None
    return "miou" if whole and output.ndim == 3 and output.shape[1:] == sample.size else None


def _has_aspect(sample: Sample) -> bool:
    """True for maps about as wide for their height as the input, which tables of boxes are not; numbers say nothing."""
    first = sample.first
    height, width = first.shape[1:3] if sample.channels_last else first.shape[2:]
    one, other = sample.size[0] * width, sample.size[1] * height
    return first.dtype.kind != "f" or max(one, other) <= _ASPECT * min(one, other)


def _are_levels(sample: Sample) -> bool:
    """True for the levels of a detection head: maps of every 8th, 16th, 32nd or 64th pixel, one of each."""
    sides = [one.shape[1:3] if sample.channels_last else one.shape[2:] for one in sample.outputs if one.ndim == 4]
    known = {tuple(-(-side // stride) for side in sample.size) for stride in _LEVELS}
    return len(sides) > 1 and len(set(sides)) == len(sides) and set(sides) <= known


def _are_peaks(sample: Sample) -> bool:
    """True for heat maps, as of the joints of a body: several channels, hardly below 0, and near it at most places."""
    heat = sample.first.max(axis=3 if sample.channels_last else 1)
    if sample.first.dtype.kind != "f" or sample.first.size < 2 * heat.size or not heat.size:
        return False
    most, peak = np.quantile(heat, [0.5, 0.99])
    return bool(most < _FLAT * peak and sample.first.min() >= -_FLAT * peak)


def _are_steps(sample: Sample) -> bool:
    """True for scores of classes that CTC decodes to far fewer than there are steps."""
    output = sample.first
    if len(sample.outputs) > 1 or output.ndim != 3 or output.dtype.kind != "f":
        return False
    if sample.count not in output.shape[:2] or output.shape[1:] == sample.size:
        return False
    steps = output.reshape(-1, output.shape[2]).astype(np.float64)
    if not _are_probabilities(steps) and not _are_log_probabilities(steps) and not _are_logits_with_blank(steps):
        return False
    texts = open_sequences(sample, None, None).predict(sample.outputs, Span(0, sample.size))
    return bool(sum(map(len, texts)) <= _LONGEST_TEXT * len(steps))


def _are_log_probabilities(rows: Array) -> bool:
    return bool((rows <= 0).all()) and _are_probabilities(np.exp(rows))


def _are_logits_with_blank(rows: Array) -> bool:
    """True where the first class or the last is the largest most often, and several others are.

    Rows of boxes may have large coordinates in front, but some of their columns are shares of 1 or whole numbers.
    """
    if not np.isfinite(rows).all():
        return False
    chosen, often = np.unique(rows.argmax(axis=1), return_counts=True)
    blank = int(chosen[often.argmax()]) in (0, rows.shape[1] - 1)
    shares = ((rows >= 0) & (rows <= 1)).all(axis=0)
    whole = (rows == np.rint(rows)).all(axis=0)
    return blank and len(chosen) > _LEAST_LETTERS and not (shares | whole).any()


def _are_chosen_steps(sample: Sample) -> bool:
    """True for one class at each step: rows of wide whole numbers, since scores are floats or bytes."""
    output = sample.first
    rows = output.ndim == 2 and len(output) == sample.count and output.shape[1] > 1
    return rows and len(sample.outputs) == 1 and output.dtype in (np.int32, np.int64)
