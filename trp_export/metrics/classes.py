"""Classes: how often the right one has the largest output (top-1), or one of the five largest (top-5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trp_export.errors import LoadError, OptionError
from trp_export.inputs.image_set import ImageSet
from trp_export.metrics.sample import Array, Outputs, Span
from trp_export.metrics.score import Detail, Score, paired_error

Labels = NDArray[np.int64]
Ranked = NDArray[np.intp]
TOP = 5
# The class of an image whose outputs are not finite: it equals no label and no other class.
NO_CLASS = -1
# A remark where the first class of the network is the background, which labels do not count.
FROM_ONE = "its classes count from 1"
# Labels must fit better so, by this many standard errors: luck does not give ten images more.
_CLEARLY = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """The share of images whose label is the first class, or among the first five; without labels, the original's.

    `spare` says that the network has more classes than the labels need: its first one may be the background.
    """

    metric: Literal["top1", "top5"]
    labels: Labels | None
    spare: bool = False

    def predict(self, outputs: Outputs, span: Span) -> list[Ranked]:
        """The classes of each image with the largest outputs, at most five, the largest first."""
        return list(ranked(outputs[0]))

    def score(self, before: Sequence[Ranked], after: Sequence[Ranked]) -> Score:
        """The share before and after; top-5 beside top-1 where the network gives so many classes."""
        first, second = np.stack(before), np.stack(after)
        if self.labels is None:  # The original's class is right, also where its outputs are not finite.
            first = np.where(first == NO_CLASS, NO_CLASS - 1, first)
        few = first.shape[1] < TOP
        wide = 1 if self.metric == "top1" else TOP
        truth = first[:, 0] if self.labels is None else self.labels[: len(first)]
        from_one = self.spare and self.labels is not None and _count_from_one(first, truth, wide)
        truth = truth + from_one
        right, still = _hits(first, truth, wide), _hits(second, truth, wide)
        changed = _remark(right, still, labelled=self.labels is not None)
        detail = Detail("top-5", float(_hits(first, truth, TOP).mean()), float(_hits(second, truth, TOP).mean()))
        return Score(
            metric=self.metric,
            what=_WORDS[self.metric, self.labels is not None],
            before=float(right.mean()),
            after=float(still.mean()),
            images=len(before),
            error=paired_error(right, still),
            labelled=self.labels is not None,
            details=() if few or self.metric == "top5" or self.labels is None else (detail,),
            remark="; ".join(filter(None, (changed, FROM_ONE if from_one else ""))),
        )


_WORDS = {
    ("top1", True): "top-1 accuracy",
    ("top5", True): "top-5 accuracy",
    ("top1", False): "same class",
    ("top5", False): "original's class among five",
}


def ranked(outputs: Array) -> Ranked:
    """The classes of each image (n, k <= 5), the largest output first: from logits (n, classes, 1, ...), -1 where they
    are not finite, or from the number of the class."""
    rows = outputs.reshape(len(outputs), -1)
    if are_numbers(outputs):
        return np.asarray(rows[:, :1], dtype=np.intp)
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :TOP]
    finite = rows.dtype.kind != "f" or np.isfinite(rows).all(axis=1, keepdims=True)
    return np.asarray(np.where(finite, order, NO_CLASS))


def top1(outputs: Array) -> Ranked:
    """The class of each image: (n,)."""
    return np.asarray(ranked(outputs)[:, 0])


def are_numbers(outputs: Array) -> bool:
    """True for one whole number per image: the output of an ArgMax."""
    return outputs.dtype.kind in "iu" and outputs.ndim > 0 and outputs.size == len(outputs)


def are_classes(outputs: Array, count: int) -> bool:
    """True for one row of scores for each of `count` images, or for numbers of classes."""
    if are_numbers(outputs):
        return len(outputs) == count
    shape = outputs.shape
    return len(shape) > 1 and shape[0] == count and shape[1] > 1 and outputs.size == count * shape[1]


def require_classes(outputs: Array, count: int, shapes: str) -> None:
    """Raises OptionError where the output is not classes."""
    if not are_classes(outputs, count):
        raise OptionError(
            f"--metric top1 and top5 need one row of class scores for each image; the outputs for {count} images are "
            f"{shapes}. --metric names another metric."
        )


def labels_of(
    images: ImageSet, count: int | None, names: Sequence[str], numbers: Sequence[int] | None = None
) -> tuple[Labels | None, tuple[str, ...]]:
    """The labels as numbers of the network's classes, if they can be known, and a note where they cannot.

    `numbers` are those of a file of labels, in the order of the images. Raises LoadError for numbers that no class has.
    """
    labels = images.labels if numbers is None else np.array(numbers, dtype=np.int64)
    if labels is None:
        return None, ()
    if images.classes and numbers is None:
        return _labels_by_name(images, labels, count, names)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (count is not None and high >= count):
        raise LoadError(
            f"{images.name}: labels run from {low} to {high}; the network has classes 0 to {(count or 0) - 1}."
        )
    return labels, ()


def _labels_by_name(
    images: ImageSet, labels: Labels, count: int | None, names: Sequence[str]
) -> tuple[Labels | None, tuple[str, ...]]:
    """Folders are classes: matched by the names in the checkpoint, else in alphabetical order where none is missing."""
    if names and count in (None, len(names)) and set(images.classes) <= set(names):
        index = np.array([names.index(name) for name in images.classes], dtype=np.int64)
        return index[labels], ()
    if len(images.classes) == count:
        return labels, ()
    wanted = "an unknown number of" if count is None else count
    return None, (
        f"{images.name}: {len(images.classes)} folders for {wanted} classes, so it is not known which folder "
        "holds which class: the classes of both models are compared instead of accuracy",
    )


def _count_from_one(original: Ranked, labels: Labels, wide: int) -> bool:
    """Whether the original is clearly right more often where class 1 is the first of the labels."""
    plain, moved = _hits(original, labels, wide), _hits(original, labels + 1, wide)
    gained, lost = int((moved & ~plain).sum()), int((plain & ~moved).sum())
    return gained - lost > _CLEARLY * float(np.sqrt(gained + lost))


def _hits(classes: Ranked, truth: NDArray[Any], wide: int) -> NDArray[np.bool_]:
    return np.asarray((classes[:, :wide] == truth[:, None]).any(axis=1))


def _remark(right: NDArray[np.bool_], still: NDArray[np.bool_], *, labelled: bool) -> str:
    lost, gained = int((right & ~still).sum()), int((still & ~right).sum())
    if not lost + gained:
        return ""
    if not labelled:
        return f"{lost:,} of {len(right):,} images change their class"
    return f"{lost:,} of {len(right):,} images were right and are wrong now, {gained:,} the reverse"
