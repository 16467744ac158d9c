"""Decoders against outputs that are made from known boxes, and which of them is found from shapes and values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from trp_export.metrics.heads import find_head, numbers_images
from trp_export.metrics.sample import Sample

SIZE = (96, 64)
STRIDES = (8, 16, 32)
CELLS = sum((SIZE[0] // stride) * (SIZE[1] // stride) for stride in STRIDES)
CLASSES = 7
# Two boxes: x1, y1, x2, y2; score; class.
CORNERS = np.array([[10.0, 20, 30, 60], [5, 6, 50, 40]])
SCORES = np.array([0.9, 0.4])
NUMBERS = np.array([3, 5])
# The cells that answer.
AT = np.array([17, CELLS - 1])


def centres() -> np.ndarray:
    """x, y, width, height."""
    return np.concatenate([(CORNERS[:, :2] + CORNERS[:, 2:]) / 2, CORNERS[:, 2:] - CORNERS[:, :2]], axis=1)


def rows(anchors: int = 1) -> np.ndarray:
    """(1, cells, 5 + classes) in pixels, with objectness; silent cells have boxes somewhere."""
    made = np.zeros((1, anchors * CELLS, 5 + CLASSES), dtype=np.float32)
    made[..., :4] = [30, 40, 8, 8]
    made[0, AT, :4] = centres()
    made[0, AT, 4] = SCORES
    made[0, AT, 5 + NUMBERS] = 1
    return made


def masks() -> list[np.ndarray]:
    """Coefficients of masks behind the classes, and the maps that they weigh, as YOLOv5-seg's."""
    coefficients = np.random.default_rng(0).normal(size=(1, CELLS, 32))
    return [np.concatenate([rows(), coefficients], axis=2).astype(np.float32), np.zeros((1, 32, 24, 16), np.float32)]


def landmarks() -> list[np.ndarray]:
    """Landmarks in pixels between objectness and classes, as YOLOv5-face's; silent boxes have a class, too."""
    made = rows(anchors=3)
    made[..., 5:][made[..., 4] == 0] = 0.99
    return [np.insert(made, [5] * 10, 33.0, axis=2)]


def always_an_object() -> list[np.ndarray]:
    """As YOLOv6, whose objectness is 1."""
    made = rows()
    made[..., 5:] *= made[..., 4:5]
    made[..., 4] = 1
    return [made]


def yolox() -> list[np.ndarray]:
    grid = [
        (column, row, stride)
        for stride in STRIDES
        for row in range(SIZE[0] // stride)
        for column in range(SIZE[1] // stride)
    ]
    cell, stride = np.array(grid)[:, :2], np.array(grid)[:, 2:]
    made = rows()
    made[0, :, :2] = made[0, :, :2] / stride - cell
    made[0, :, 2:4] = np.log(made[0, :, 2:4] / stride)
    return [made]


def yolov8(points: int = 0) -> list[np.ndarray]:
    """Objectness times class; then key points in pixels."""
    made = rows()
    scores = made[..., 4:5] * made[..., 5:]
    more = np.full((1, CELLS, points), 33.0, dtype=np.float32)
    return [np.concatenate([made[..., :4], scores, more], axis=2).transpose(0, 2, 1)]


def rows_first(points: int = 0) -> list[np.ndarray]:
    return [yolov8(points)[0].transpose(0, 2, 1)]


def fastestdet() -> list[np.ndarray]:
    """Cells of 8 x 8 pixels; two of them answer."""
    height, width = SIZE[0] // 8, SIZE[1] // 8
    made = np.zeros((1, 5 + CLASSES, height, width), dtype=np.float64)
    made[:, 5] = 1
    for (x, y, across, down), score, number in zip(centres(), SCORES, NUMBERS, strict=True):
        column, row = int(x // 8), int(y // 8)
        made[0, 0, row, column] = score ** (1 / 0.6)
        made[0, 1, row, column] = np.arctanh(x / 8 - column)
        made[0, 2, row, column] = np.arctanh(y / 8 - row)
        share = across / SIZE[1], down / SIZE[0]
        made[0, 3:5, row, column] = [np.log(one / (1 - one)) for one in share]
        made[0, 5:, row, column] = np.eye(CLASSES)[number]
    return [made.astype(np.float32)]


def nanodet(apart: bool) -> list[np.ndarray]:
    """All in one output, or scores and distances of each level apart, in any order; cells reach over the border."""
    counts = [-(-SIZE[0] // stride) * -(-SIZE[1] // stride) for stride in (8, 16, 32, 64)]
    levels = [(np.zeros((1, count, CLASSES)), np.full((1, count, 4, 8), -50.0)) for count in counts]
    stride, middle = 16, 0.5 if apart else 0.0
    for corners, score, number in zip(CORNERS, SCORES, NUMBERS, strict=True):
        column, row = np.rint((corners[:2] + corners[2:]) / 2 / stride - middle).astype(int)
        at, centre = row * (SIZE[1] // stride) + column, (np.array([column, row]) + middle) * stride
        levels[1][0][0, at, number] = score
        for side, distance in enumerate(np.concatenate([centre - corners[:2], corners[2:] - centre]) / stride):
            low = int(distance)
            levels[1][1][0, at, side, [low, low + 1]] = np.log([1 - distance + low, max(distance - low, 1e-12)])
    parts = [(scores.astype(np.float32), sides.reshape(1, -1, 32).astype(np.float32)) for scores, sides in levels]
    if apart:
        return [scores for scores, _ in parts] + [sides for _, sides in parts]
    return [np.concatenate([np.concatenate(level, axis=2) for level in parts], axis=1)]


def ssd(background: bool, shares: bool) -> list[np.ndarray]:
    corners = np.tile(np.array([1, 1, 9, 9], dtype=np.float32), (1, 40, 1))
    scores = np.zeros((1, 40, CLASSES + background), dtype=np.float32)
    corners[0, :2] = CORNERS
    scores[0, [0, 1], NUMBERS + background] = SCORES
    if background:
        scores[..., 0] = 1 - scores.sum(axis=2)
    return [scores, corners / np.array([SIZE[1], SIZE[0]] * 2, dtype=np.float32) if shares else corners]


def six() -> list[np.ndarray]:
    return [np.concatenate([CORNERS, SCORES[:, None], NUMBERS[:, None]], axis=1)[None].astype(np.float32)]


def seven() -> list[np.ndarray]:
    return [np.concatenate([[[0], [0]], CORNERS, NUMBERS[:, None], SCORES[:, None]], axis=1).astype(np.float32)]


def separate(batched: bool) -> list[np.ndarray]:
    parts = [CORNERS.astype(np.float32), NUMBERS.astype(np.int64), SCORES.astype(np.float32)]
    return [part[None] for part in parts] if batched else parts


MAKERS: list[tuple[str, Callable[[], list[np.ndarray]]]] = [
    ("yolox", yolox),
    ("yolov5", lambda: [rows()]),
    ("yolov5", lambda: [rows(anchors=3)]),
    ("yolov5", masks),
    ("yolov5", landmarks),
    ("yolov5", always_an_object),
    ("yolov8", yolov8),
    ("yolov8", lambda: yolov8(points=10)),
    ("yolov8", rows_first),
    ("yolov8", lambda: rows_first(points=10)),
    ("fastestdet", fastestdet),
    ("nanodet", lambda: nanodet(apart=True)),
    ("nanodet", lambda: nanodet(apart=False)),
    ("ssd", lambda: ssd(background=True, shares=True)),
    ("ssd", lambda: ssd(background=False, shares=False)),
    ("nms", six),
    ("nms", seven),
    ("nms", lambda: separate(batched=True)),
    ("nms", lambda: separate(batched=False)),
]


def sample(outputs: list[np.ndarray], names: tuple[str, ...] | None = None) -> Sample:
    return Sample(names or tuple(map(str, range(len(outputs)))), tuple(outputs), 1, SIZE, 3)


@pytest.mark.parametrize(("name", "make"), MAKERS)
@pytest.mark.parametrize("chosen", [False, True])
def test_head_is_found_and_gives_the_boxes(name: str, make: Callable[[], list[np.ndarray]], chosen: bool) -> None:
    outputs = make()
    head = find_head(sample(outputs), name if chosen else None)
    assert head is not None
    assert head.name == name
    (found,) = head.decode(outputs, SIZE)
    best = found.usable
    assert best.corners[:2] == pytest.approx(CORNERS, abs=1e-3)
    assert best.scores[:2] == pytest.approx(SCORES, abs=1e-6)
    assert best.classes[:2].tolist() == NUMBERS.tolist()


def test_tensorflow_boxes_have_rows_first() -> None:
    boxes, numbers, scores = separate(batched=True)
    outputs = [boxes[..., [1, 0, 3, 2]], numbers, scores]
    head = find_head(sample(outputs, ("detection_boxes", "detection_classes", "detection_scores")))
    assert head is not None
    assert head.decode(outputs, SIZE)[0].corners == pytest.approx(CORNERS, abs=1e-3)


def test_numbers_of_anchors_are_no_classes() -> None:
    boxes, numbers, scores = separate(batched=True)
    outputs = [7.0 + 0 * numbers, boxes[..., [1, 0, 3, 2]], numbers, scores]
    names = ("detection_anchor_indices", "detection_boxes", "detection_classes", "detection_scores")
    head = find_head(sample(outputs, names))
    assert head is not None
    assert head.decode(outputs, SIZE)[0].corners == pytest.approx(CORNERS, abs=1e-3)


@pytest.mark.parametrize(
    "outputs",
    [
        [np.zeros((1, 10), np.float32)],
        [np.zeros((1, 40, 37), np.float32)],
        [np.zeros((1, 11, 24, 32), np.float32)],
        [np.full((1, 40, 3), 0.3, np.float32), np.tile(np.float32([0.5, 0.5, -0.5, -0.5]), (1, 40, 1))],
    ],
    ids=["classes", "a sequence", "a map of classes", "offsets from priors"],
)
def test_other_outputs_are_no_head(outputs: list[np.ndarray]) -> None:
    assert find_head(sample(outputs)) is None


def test_rows_that_fill_up_say_nothing_about_the_unit() -> None:
    """One box in pixels among 300 rows, as exports with suppression inside and a fixed number of rows give it."""
    made = np.zeros((1, 300, 6), dtype=np.float32)
    made[0, 0] = [*CORNERS[0], 0.9, 3]
    head = find_head(sample([made]))
    assert head is not None
    np.testing.assert_allclose(head.decode([made], SIZE)[0].usable.corners, CORNERS[:1])


def test_boxes_that_hold_the_number_of_their_image_are_told_from_rows_of_images() -> None:
    boxes = np.array([[0, 10, 20, 30, 60, 3, 0.9]], dtype=np.float32)
    assert numbers_images([boxes])
    assert not numbers_images([np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)])


def test_images_without_objects_show_the_head_by_types() -> None:
    """Scores that are all zero are whole numbers, too."""
    empty = [np.zeros((1, 9, 4), np.float32), np.zeros((1, 9), np.float32), np.zeros((1, 9), np.int32)]
    assert find_head(sample(empty, ("boxes", "scores", "classes"))) is not None


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_the_first_class_of_rows_is_told_from_objectness(classes: int) -> None:
    """Objects of the first class alone; class probabilities of YOLOv5 are high where no object is, too."""
    made = np.full((1, CELLS, 4 + classes), 1e-4, dtype=np.float32)
    made[..., :4] = [30, 40, 8, 8]
    made[0, AT, :4] = centres()
    made[0, AT, 4] = SCORES
    head = find_head(sample([made]))
    assert head is not None
    assert head.name == "yolov8"
    found = head.decode([made], SIZE)[0].usable
    assert found.scores[:2] == pytest.approx(SCORES)
    if classes > 1:
        made[..., 5] = np.linspace(0.2, 0.9, CELLS)
        made[0, AT, 5] = 0.9
        head = find_head(sample([made]))
        assert head is not None
        assert head.name == "yolov5"


@pytest.mark.parametrize(("share", "name"), [(0.1, "yolov8"), (0.9, "yolov5")])
def test_high_classes_without_an_object_in_the_first_column(share: float, name: str) -> None:
    """A crowd answers at some boxes; classes of YOLOv5 are high anywhere where nothing is."""
    made = np.full((1, CELLS, 4 + CLASSES), 1e-4, dtype=np.float32)
    made[..., :4] = [30, 40, 8, 8]
    made[0, : int(share * CELLS), 7] = 0.8
    head = find_head(sample([made]))
    assert head is not None
    assert head.name == name


def test_key_points_with_shares_are_no_landmarks() -> None:
    """x, y and how sure it is, of each; rows first, as YOLOv8-pose."""
    made = np.concatenate([rows_first()[0][..., :4], rows()[..., 4:5], np.full((1, CELLS, 6), 33.0)], axis=2)
    made[..., [7, 10]] = 0.9
    head = find_head(sample([made.astype(np.float32)]))
    assert head is not None
    assert head.name == "yolov8"


def test_rows_without_a_share_are_no_yolov5() -> None:
    made = np.insert(rows(anchors=3)[..., :5], [5] * 4, 33.0, axis=2)
    assert find_head(sample([made]), "yolov5") is None


@pytest.mark.parametrize(("count", "suppressed"), [(300, True), (CELLS, False), (3 * CELLS, False)])
def test_as_many_boxes_as_cells_hold_duplicates(count: int, suppressed: bool) -> None:
    made = np.zeros((1, count, 6), dtype=np.float32)
    made[0, :2] = six()[0]
    head = find_head(sample([made]))
    assert head is not None
    assert (head.name, head.suppressed) == ("nms", suppressed)
