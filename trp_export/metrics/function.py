"""A measure of the user's own: a function that gives a number for each image."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from trp_export.errors import LoadError, first_line
from trp_export.inputs.generator import import_function
from trp_export.metrics.names import without_folder
from trp_export.metrics.sample import Outputs, Span
from trp_export.metrics.score import Score, paired_error


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """The mean over images of `measure(name, outputs)`: more is better, in a unit of its own.

    `outputs` are arrays by the names of the network's outputs, each with a batch of one image.
    """

    text: str
    measure: Callable[[str, dict[str, Any]], float]
    images: Sequence[str]
    outputs: Sequence[str]

    def predict(self, outputs: Outputs, span: Span) -> list[float]:
        """What the function gives for each image. Raises LoadError where it fails or gives no number."""
        named = dict(zip(self.outputs, outputs, strict=True))
        counts = {len(array) if array.ndim else None for array in outputs}
        count = counts.pop() if len(counts) == 1 else None
        if count is None:  # Rows are not images.
            parts = [named]
        else:
            parts = [{name: array[index : index + 1] for name, array in named.items()} for index in range(count)]
        return [self._call(self.images[span.start + index], part) for index, part in enumerate(parts)]

    def score(self, before: Sequence[float], after: Sequence[float]) -> Score:
        """The means, and the error of the mean change."""
        return Score(
            metric=without_folder(self.text),
            what=self.text.rpartition(":")[2],
            before=math.fsum(before) / len(before),
            after=math.fsum(after) / len(after),
            unit="",
            images=len(before),
            error=paired_error(before, after),
        )

    def _call(self, image: str, outputs: dict[str, Any]) -> float:
        try:
            with redirect_stdout(sys.stderr):  # stdout is for the report.
                value = float(self.measure(image, outputs))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # The user's own code, which may raise anything, SystemExit included.
            raise LoadError(
                f"--metric {self.text} failed on {image}: {type(error).__name__}: {first_line(error)}"
            ) from error
        if not math.isfinite(value):
            raise LoadError(f"--metric {self.text} returned {value} for {image}; a finite number is needed.")
        return value


def open_function(text: str, images: Sequence[str], outputs: Sequence[str]) -> Function:
    """The function that `module:function` or `FILE.py:function` names. Raises OptionError."""
    return Function(text, import_function(text, "--metric"), images, outputs)
