"""Average precision against COCO's own program, small cases counted by hand, and properties that must hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.metrics.average_precision import Truth, mean_average_precision
from trp_export.metrics.boxes import Boxes, overlaps, suppress


def boxes(rows: list[list[float]]) -> Boxes:
    """Rows of x1, y1, x2, y2, score, class."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Boxes(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def truth(rows: list[list[float]], crowd: list[bool] | None = None) -> Truth:
    """Rows of x1, y1, x2, y2, class."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    marks = np.zeros(len(table), dtype=bool) if crowd is None else np.array(crowd)
    return Truth(table[:, :4], table[:, 4].astype(np.int64), marks)


SQUARE = [0, 0, 10, 10]
FAR = [50, 50, 60, 60]


@pytest.mark.parametrize(
    ("found", "true", "mean", "at_50"),
    [
        ([[*SQUARE, 0.9, 0]], [[*SQUARE, 0]], 1.0, 1.0),
        ([[*SQUARE, 0.9, 1]], [[*SQUARE, 0]], 0.0, 0.0),
        ([], [[*SQUARE, 0]], 0.0, 0.0),
        ([[*SQUARE, 0.9, 0]], [[*SQUARE, 0], [*FAR, 0]], 51 / 101, 51 / 101),  # Recalls of 0 to 0.50 are reached.
        ([[*FAR, 0.9, 0], [*SQUARE, 0.8, 0]], [[*SQUARE, 0]], 0.5, 0.5),  # A wrong one first halves the precision.
        ([[*SQUARE, 0.9, 0], [*FAR, 0.8, 0]], [[*SQUARE, 0]], 1.0, 1.0),  # A wrong one last costs nothing.
        ([[*SQUARE, 0.9, 0], [*SQUARE, 0.8, 0]], [[*SQUARE, 0], [*FAR, 0]], 51 / 101, 51 / 101),  # A box counts once.
        ([[0, 0, 10, 7.2, 0.9, 0]], [[*SQUARE, 0]], 0.5, 1.0),  # An overlap of 0.72 holds at 0.50 to 0.70.
        ([[*SQUARE, 0.9, 0]], [[*SQUARE, 0], [*FAR, 1]], 0.5, 0.5),  # The mean over two classes.
    ],
)
def test_mean_average_precision_of_cases_counted_by_hand(
    found: list[list[float]], true: list[list[float]], mean: float, at_50: float
) -> None:
    precision = mean_average_precision([boxes(found)], [truth(true)])
    assert precision.mean == pytest.approx(mean)
    assert precision.at_50 == pytest.approx(at_50)


def test_a_detection_of_a_crowd_is_neither_right_nor_wrong() -> None:
    true = truth([[*FAR, 0], [0, 0, 40, 40, 0]], crowd=[False, True])
    found = boxes([[*SQUARE, 0.9, 0], [20, 20, 30, 30, 0.8, 0], [*FAR, 0.7, 0]])
    assert mean_average_precision([found], [true]).mean == 1.0


def random_scene(rng: np.random.Generator) -> tuple[list[Boxes], list[Truth]]:
    """A few images, classes and crowds; detections are true boxes moved a little, some made up, with equal scores."""
    found, true = [], []
    for _ in range(int(rng.integers(1, 6))):
        count = int(rng.integers(0, 6))
        corners = rng.uniform(0, 50, (count, 2))
        real = np.concatenate([corners, corners + rng.uniform(5, 40, (count, 2))], axis=1)
        classes = rng.integers(0, 3, count)
        true.append(Truth(real, classes.astype(np.int64), rng.random(count) < 0.2))
        guessed = np.repeat(real, 2, axis=0) + rng.normal(0, 2, (2 * count, 4))
        guessed = np.concatenate([guessed, [[1, 1, 9, 9]]])
        scores = np.round(rng.random(len(guessed)), 1) + 0.05
        guesses = np.append(np.repeat(classes, 2), 1) if rng.random() < 0.8 else rng.integers(0, 4, len(guessed))
        guessed[:, 2:] = np.maximum(guessed[:, :2] + 0.5, guessed[:, 2:])
        found.append(Boxes(guessed, scores, guesses.astype(np.int64)))
    return found, true


def by_coco(found: list[Boxes], true: list[Truth]) -> tuple[float, float]:
    """mAP and AP50 as pycocotools counts them."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    from pycocotools.cocoeval import COCOeval

    rows: list[dict[str, Any]] = []
    for image, one in enumerate(true):
        for corners, number, crowd in zip(one.boxes, one.classes, one.crowd, strict=True):
            box = [*corners[:2], *(corners[2:] - corners[:2])]
            rows.append({"id": len(rows) + 1, "image_id": image, "category_id": int(number), "bbox": box,
                         "area": box[2] * box[3], "iscrowd": int(crowd)})  # fmt: skip
    wanted = coco.COCO()
    wanted.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(true))],
        "annotations": rows,
        "categories": [{"id": number} for number in range(4)],
    }
    wanted.createIndex()
    detections = wanted.loadRes(
        [
            {
                "image_id": image,
                "category_id": int(number),
                "score": float(score),
                "bbox": [*corners[:2], *(corners[2:] - corners[:2])],
            }
            for image, one in enumerate(found)
            for corners, score, number in zip(one.corners, one.scores, one.classes, strict=True)
        ]
    )
    judge = COCOeval(wanted, detections, "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return float(judge.stats[0]), float(judge.stats[1])


@pytest.mark.parametrize("seed", range(25))
def test_mean_average_precision_is_that_of_pycocotools(seed: int) -> None:
    found, true = random_scene(np.random.default_rng(seed))
    mean, at_50 = by_coco(found, true)
    ours = mean_average_precision(found, true)
    assert (ours.mean, ours.at_50) == pytest.approx((max(mean, 0), max(at_50, 0)), abs=1e-12)


@given(st.integers(0, 10_000))
def test_a_wrong_detection_below_all_others_never_raises_precision(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, true = random_scene(rng)
    more = [
        Boxes(
            np.concatenate([one.corners, rng.uniform(200, 300, (1, 4))]),
            np.append(one.scores, 0.01),
            np.append(one.classes, rng.integers(0, 3)),
        )
        for one in found
    ]
    assert mean_average_precision(more, true).mean <= mean_average_precision(found, true).mean + 1e-12


@given(st.integers(0, 10_000))
def test_true_boxes_as_detections_are_perfect(seed: int) -> None:
    _, true = random_scene(np.random.default_rng(seed))
    found = [Boxes(one.boxes[~one.crowd], np.ones(int((~one.crowd).sum())), one.classes[~one.crowd]) for one in true]
    anything = any((~one.crowd).any() for one in true)
    assert mean_average_precision(found, true).mean == (1.0 if anything else 0.0)


@given(st.integers(0, 10_000))
def test_counting_images_several_times_is_the_precision_of_their_copies(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, true = random_scene(rng)
    found = [Boxes(one.corners, rng.random(len(one)) + 0.01, one.classes) for one in found]  # No two scores are equal.
    counts = rng.integers(0, 3, len(true))
    drawn = np.repeat(np.arange(len(true)), counts)
    weighted = mean_average_precision(found, true, counts[None].astype(np.float64)).resampled
    if len(drawn):
        repeated = mean_average_precision([found[index] for index in drawn], [true[index] for index in drawn])
        assert weighted == pytest.approx([repeated.mean], abs=1e-12)


def test_overlaps_are_intersection_over_union() -> None:
    first, second = np.array([[0, 0, 10, 10.0]]), np.array([[5, 0, 15, 10], [0, 0, 10, 10], [20, 0, 30, 10.0]])
    assert overlaps(first, second)[0] == pytest.approx([1 / 3, 1, 0])
    assert overlaps(first, second, of_first=True)[0] == pytest.approx([0.5, 1, 0])


@given(st.integers(0, 10_000))
def test_suppression_keeps_what_a_plain_loop_keeps(seed: int) -> None:
    found = random_scene(np.random.default_rng(seed))[0][0]
    order = np.argsort(-found.scores, kind="stable")
    kept: list[int] = []
    for index in order:
        same = [one for one in kept if found.classes[one] == found.classes[index]]
        if all(overlaps(found.corners[[index]], found.corners[[one]])[0, 0] <= 0.65 for one in same):
            kept.append(int(index))
    assert np.array_equal(suppress(found).corners, found.corners[kept])


def test_suppression_drops_what_is_not_finite() -> None:
    found = boxes([[*SQUARE, 0.9, 0], [np.nan, 0, 1, 1, 0.8, 0], [*FAR, np.inf, 0], [*FAR, 0.0001, 0]])
    assert len(suppress(found)) == 1
