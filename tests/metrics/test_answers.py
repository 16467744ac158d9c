"""R² of outputs that no other metric fits."""

from __future__ import annotations

import numpy as np
import pytest

from trp_export.metrics.answers import Answers, open_answers
from trp_export.metrics.sample import Sample, Span
from trp_export.metrics.score import Score

RNG = np.random.default_rng(0)
SPAN = Span(0, (32, 48))
# A map of three channels of unlike scales, and rows of two values at 1,500 places.
MAPS = (RNG.standard_normal((4, 3, 8, 9)) * np.array([1, 50, 0.1])[:, None, None]).astype(np.float32)
ROWS = RNG.standard_normal((4, 1500, 2)).astype(np.float32)


def opened(*outputs: np.ndarray) -> Answers:
    metric = open_answers(Sample(tuple(map(str, range(len(outputs)))), outputs, 4, (32, 48), 3))
    assert metric is not None
    return metric


def score(before: list[np.ndarray], after: list[np.ndarray]) -> Score:
    metric = opened(*before)
    return metric.score(metric.predict(before, SPAN), metric.predict(after, SPAN))


def test_equal_outputs_keep_everything() -> None:
    assert score([MAPS, ROWS], [MAPS, ROWS]).after == 1


def test_channels_and_outputs_count_alike_whatever_their_scale() -> None:
    still = MAPS.copy()
    still[:, 2] = MAPS[:, 2].mean()
    assert score([MAPS, ROWS], [still, ROWS]).after == pytest.approx(1 - 1 / 6, abs=0.02)


def test_channels_are_the_fewer_of_rows() -> None:
    still = ROWS.copy()
    still[..., 1] = ROWS[..., 1].mean()
    assert score([ROWS], [still]).after == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("wrong", [MAPS * np.nan, -100 * MAPS, MAPS[:, :, :4]])
def test_worthless_outputs_keep_nothing(wrong: np.ndarray) -> None:
    assert score([MAPS], [wrong]).after == 0


def test_outputs_that_are_not_of_images_do_not_count() -> None:
    boxes = np.zeros((7, 6), np.float32)
    assert opened(boxes, MAPS).places == ((1, 1),)
    assert open_answers(Sample(("0",), (boxes,), 4, (32, 48), 3)) is None
