"""Sequences, such as lines of text: the share that is exactly right, decoded greedily as CTC does.

A. Graves et al., "Connectionist Temporal Classification" (2006): the best class at each step, repetitions merged,
blanks left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trp_export.errors import LoadError
from trp_export.metrics.sample import Array, Outputs, Sample, Span
from trp_export.metrics.score import Score, paired_error
from trp_export.system.files import read_bounded

Text = tuple[int, ...]
_LARGEST_ALPHABET = 2**22
_NOT_FINITE: Text = (-1,)


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """The share of exact matches with `labels`, or with what the original reads.

    Outputs are scores (n, steps, classes), (steps, n, classes) where `steps_first`, or classes (n, steps).
    """

    steps_first: bool
    blank: int
    labels: Sequence[Text] | None

    def predict(self, outputs: Outputs, span: Span) -> list[Text]:
        """The classes that each image reads, without repetitions and blanks; classes that are chosen as they are."""
        scores = outputs[0]
        if scores.dtype.kind in "iu":
            return [tuple(map(int, row)) for row in scores.reshape(len(scores), -1)]
        scores = scores.transpose(1, 0, 2) if self.steps_first else scores
        return [greedy(one, self.blank) for one in scores]

    def score(self, before: Sequence[Text], after: Sequence[Text]) -> Score:
        """Matches before and after, paired over images."""
        truth = before if self.labels is None else self.labels[: len(before)]
        right = [own == label and own != _NOT_FINITE for own, label in zip(before, truth, strict=True)]
        still = [own == label and own != _NOT_FINITE for own, label in zip(after, truth, strict=True)]
        changed = sum(own != other for own, other in zip(before, after, strict=True))
        return Score(
            metric="sequences",
            what="exact match" if self.labels is not None else "same text",
            before=float(np.mean(right)),
            after=float(np.mean(still)),
            images=len(before),
            error=paired_error(right, still),
            labelled=self.labels is not None,
            remark=f"{changed:,} of {len(before):,} images are read differently" if changed else "",
        )


def greedy(scores: Array, blank: int) -> Text:
    """The classes in scores (steps, classes): the best of each step, repetitions merged, blanks left out."""
    if not np.isfinite(scores).all():
        return _NOT_FINITE
    best = scores.argmax(axis=1)
    first = np.append(True, best[1:] != best[:-1])
    return tuple(int(number) for number in best[first] if number != blank)


def are_sequences(sample: Sample) -> bool:
    """Whether outputs are scores of steps, or the class of each step."""
    output = sample.first
    scores = output.ndim == 3 and output.dtype.kind == "f" and sample.count in output.shape[:2]
    return scores or (output.ndim == 2 and output.dtype.kind in "iu" and len(output) == sample.count)


def open_sequences(sample: Sample, texts: Sequence[str] | None, alphabet: Path | None) -> Sequences:
    """The metric for what the network showed. Texts are lines of characters of the `alphabet`, or numbers of classes.

    The blank is class 0, or the last one where the network gives that more often. Raises LoadError.
    """
    scores = sample.first
    steps_first = scores.ndim == 3 and len(scores) != sample.count and scores.shape[1] == sample.count
    classes = scores.shape[-1]
    best = scores.argmax(axis=-1) if scores.dtype.kind == "f" else np.zeros(0)
    blank = classes - 1 if (best == classes - 1).sum() > (best == 0).sum() else 0
    numbers = None if alphabet is None else _numbers(read_alphabet(alphabet), blank, classes, alphabet)
    labels = None if texts is None else [_label(text, numbers) for text in texts]
    return Sequences(steps_first, blank, labels)


def read_alphabet(path: Path) -> list[str]:
    """The characters of a file with one on each line, in the order of the classes. Raises LoadError."""
    try:
        lines = read_bounded(path, _LARGEST_ALPHABET).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise LoadError(f"{path} is not a text in UTF-8 ({error.reason}).") from error
    lines = [line.removesuffix("\r") for line in lines]
    characters = lines[:-1] if lines and not lines[-1] else lines
    odd = next((index for index, line in enumerate(characters) if len(line) != 1), None)
    if odd is not None or not characters:
        raise LoadError(f"{path}, line {(odd or 0) + 1}: an alphabet has one character on each line.")
    return characters


def _numbers(characters: Sequence[str], blank: int, classes: int, path: Path) -> dict[str, int]:
    """The class of each character; one class more than that and the blank is a space at the end."""
    if classes == len(characters) + 2:
        characters = [*characters, " "]
    if classes not in (len(characters), len(characters) + 1):
        raise LoadError(f"{path} has {len(characters):,} characters, and the network has {classes:,} classes.")
    start = 1 if blank == 0 and classes == len(characters) + 1 else 0
    return {character: index + start for index, character in enumerate(characters)}


def _label(text: str, numbers: dict[str, int] | None) -> Text:
    if numbers is not None:
        return tuple(numbers.get(character, -2) for character in text)
    parts = text.split()
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise LoadError(
            f"the text {text[:40]!r} needs an alphabet: --metric sequences:FILE, with one character on each line, in "
            "the order of the network's classes."
        )
    return tuple(map(int, parts))
