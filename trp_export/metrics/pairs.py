"""Embeddings: whether pairs of images are told apart, or how near embeddings stay to the original's.

G. Huang et al., "Labeled Faces in the Wild" (2007): the threshold for each tenth of the pairs is chosen on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trp_export.errors import LoadError
from trp_export.metrics.label_files import Rows
from trp_export.metrics.sample import Outputs, Span, by_name
from trp_export.metrics.score import Score, paired_error

Floats = NDArray[np.float64]
_FOLDS = 10
_WORDS = {"1": True, "same": True, "true": True, "0": False, "different": False, "false": False}


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The numbers of the images of each pair (pairs, 2), and whether both show the same (pairs,)."""

    pairs: NDArray[np.int64]
    same: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Verification accuracy over pairs; without them the mean cosine of each embedding and the original's."""

    labels: Labels | None

    def predict(self, outputs: Outputs, span: Span) -> list[Floats]:
        """The embedding of each image, of length 1."""
        rows = outputs[0].reshape(len(outputs[0]), -1).astype(np.float64)
        rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
        return list(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30))

    def score(self, before: Sequence[Any], after: Sequence[Any]) -> Score:
        """Paired over pairs, or over images."""
        first, second = np.stack(before), np.stack(after)
        if self.labels is None:
            near = np.sum(first * second, axis=1)
            itself = np.sum(first * first, axis=1)
            return _score(itself, near, "cosine to the original's embedding", "images", labelled=False)
        # The last images may not fill a batch of the network.
        seen = (self.labels.pairs < len(first)).all(axis=1)
        if not seen.any():
            raise LoadError("--eval: no pair is left of the images that fill a batch of the network.")
        labels = Labels(self.labels.pairs[seen], self.labels.same[seen])
        right, still = (_right(embeddings, labels) for embeddings in (first, second))
        return _score(right, still, "verification accuracy", "pairs", labelled=True)


def read_pairs(path: Path, rows: Rows, images: Sequence[str]) -> Labels:
    """Rows of two names of images and `1`, `same`, `0` or `different`; a line of heads may come first.

    Raises LoadError for other rows, for names that no image has, and for pairs of one kind only.
    """
    numbers = by_name(images)
    heads = not any(name in numbers for name in rows[0][:2]) and not rows[0][-1].isdigit()
    body = rows[1:] if heads and len(rows) > 1 else rows
    pairs, same = [], []
    for row in body:
        if len(row) < 3 or row[2].lower() not in _WORDS:
            raise LoadError(
                f"{path}: {', '.join(row)[:80]} is not a pair: two file names and 1 (same) or 0 are needed."
            )
        absent = next((name for name in row[:2] if name not in numbers), None)
        if absent is not None:
            raise LoadError(f"{path}: there is no image {absent[:80]}.")
        pairs.append([numbers[row[0]], numbers[row[1]]])
        same.append(_WORDS[row[2].lower()])
    if len(set(same)) < 2:
        raise LoadError(f"{path}: pairs of the same and of different kinds are needed.")
    return Labels(np.array(pairs, dtype=np.int64), np.array(same))


def _right(embeddings: Floats, labels: Labels) -> NDArray[np.bool_]:
    """Whether each pair is told right by a threshold that was chosen without its fold."""
    near = np.sum(embeddings[labels.pairs[:, 0]] * embeddings[labels.pairs[:, 1]], axis=1)
    folds = np.arange(len(near)) % min(_FOLDS, len(near))
    right = np.zeros(len(near), dtype=bool)
    for fold in range(int(folds.max()) + 1):
        others = folds != fold
        threshold = best_threshold(near[others], labels.same[others])
        right[~others] = (near[~others] > threshold) == labels.same[~others]
    return right


def best_threshold(near: Floats, same: NDArray[np.bool_]) -> float:
    """The similarity above which pairs are called the same with the fewest errors; the middle one of several."""
    order = np.argsort(near, kind="stable")
    values = near[order]
    # Errors with the threshold below value i: those of the same kind before it, and the different ones from it on.
    errors = np.concatenate([[0], np.cumsum(same[order])]) + (~same).sum() - np.concatenate(
        [[0], np.cumsum(~same[order])]
    )  # fmt: skip
    between = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    possible = np.concatenate([[True], values[1:] > values[:-1], [True]])
    best = between[possible & (errors == errors[possible].min())]
    return float(best[len(best) // 2])


def _score(before: NDArray[Any], after: NDArray[Any], what: str, counted: str, *, labelled: bool) -> Score:
    return Score(
        metric="pairs",
        what=what,
        before=float(before.mean()),
        after=float(after.mean()),
        images=len(before),
        counted=counted,
        error=paired_error(before, after),
        labelled=labelled,
    )
