"""Which metric is chosen where the user names none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trp_export.errors import OptionError
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.metrics.choice import choose_metric
from trp_export.metrics.recognise import kind_of
from trp_export.metrics.sample import Sample

RNG = np.random.default_rng(0)


def sample(*outputs: np.ndarray, classes: tuple[str, ...] = ()) -> Sample:
    return Sample(tuple(map(str, range(len(outputs)))), outputs, 1, (32, 48), 3, classes=classes)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def softmax(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True))


def read_text(*shape: int) -> np.ndarray:
    """Scores that are blank at three of four steps."""
    scores = normal(*shape).reshape(-1, shape[-1])
    scores[np.arange(len(scores)) % 4 > 0, 0] = 9
    return scores.reshape(shape)


def boxes(sides: int, scores: int, largest: float = 640) -> np.ndarray:
    """300 boxes that are wide and low, and scores of classes."""
    made = RNG.uniform(0, 0.3, (1, 300, sides + scores)).astype(np.float32)
    made[..., :sides] = RNG.uniform(0, 1, (1, 300, sides)) * [1, 0.6, 0.6, 0.6][:sides] * largest
    return made


def peaks() -> np.ndarray:
    """A bell of each of 17 joints, and the noise of a network."""
    y, x = np.mgrid[:64, :48][..., None, None]
    centre = RNG.uniform(8, 40, (2, 4, 17))
    made = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 8) + 0.01 * RNG.standard_normal((64, 48, 4, 17))
    return np.asarray(made.transpose(2, 3, 0, 1), dtype=np.float32)


def several(output: np.ndarray, classes: tuple[str, ...] = ()) -> Sample:
    return replace(sample(output, classes=classes), count=len(output))


# Three grades of each of 32 sounds, and 34 landmarks of each of four faces: they move together.
RATINGS = (RNG.uniform(1, 5, (32, 1)) + 0.2 * RNG.standard_normal((32, 3)) + [0.3, 0.5, 0.1]).astype(np.float32)
LANDMARKS = (np.tile(RNG.standard_normal((4, 2)), 17) + RNG.uniform(0, 9, 34)).astype(np.float32)
# 34 landmarks of each of 16 aligned faces: they hardly move.
ALIGNED = (RNG.uniform(0, 1, 68) + 0.02 * RNG.standard_normal((16, 68))).astype(np.float32)
IMAGES = ImageSet("made", np.zeros((2, 3, 32, 48), np.float32), None, Preprocessing(), 3, None, ())


@pytest.mark.parametrize(
    ("shown", "metric"),
    [
        (sample(normal(1, 10)), "top1"),
        (sample(normal(1, 1000)), "top1"),
        (sample(normal(1, 1000, 1, 1)), "top1"),
        (several(normal(4, 3)), "top1"),
        (several(RATINGS), "outputs"),
        (several(softmax(RATINGS)), "top1"),
        (several(RATINGS, classes=("a", "b", "c")), "top1"),
        (several(LANDMARKS), "outputs"),
        (several(ALIGNED), "outputs"),
        (several(112 * ALIGNED), "outputs"),
        (several(ALIGNED[:4]), "top1"),
        (several(ALIGNED - 0.5), "top1"),
        (several(softmax(9 * ALIGNED)), "top1"),
        (sample(normal(1, 10), normal(1, 10)), "top1"),
        (sample(softmax(normal(1, 128))), "top1"),
        (sample(normal(1, 10), softmax(normal(1, 10))), "top1"),
        (sample(normal(1, 4), softmax(normal(1, 2))), "outputs"),
        (sample(normal(1, 128), classes=("a", "b")), "top1"),
        (sample(np.array([7])), "top1"),
        (sample(normal(1, 512)), "pairs"),
        (sample(normal(1, 100) / np.float32(np.sqrt(100))), "top1"),
        (sample(np.full((1, 100), 0.1, np.float32)), "pairs"),
        (sample(normal(1, 3, 64, 96)), "psnr"),
        (sample(normal(1, 3, 24, 40)), "psnr"),
        (sample(normal(1, 1, 32, 48)), "miou"),
        (sample(1 + abs(normal(1, 1, 32, 48))), "outputs"),
        (replace(sample(1 + abs(normal(1, 40, 56))), size=(40, 56)), "outputs"),
        (sample(np.float32([[5, 3, 2, 1, 0]]), np.array([[7, 1, 4, 9, 2]])), "outputs"),
        (sample(normal(1, 21, 8, 12)), "miou"),
        (sample(normal(1, 21, 8, 12), normal(1, 21, 4, 6)), "miou"),
        (sample(normal(1, 1, 8, 12), normal(1, 2, 8, 12)), "outputs"),
        (sample(normal(1, 80, 4, 6), normal(1, 80, 2, 3), normal(1, 80, 1, 2)), "outputs"),
        (sample(normal(1, 80, 4, 6), normal(1, 80, 4, 6)), "miou"),
        (sample(normal(1, 1, 200, 7)), "outputs"),
        (several(peaks()), "outputs"),
        (replace(several(peaks().transpose(0, 2, 3, 1)), channels_last=True), "outputs"),
        (several(9 * peaks() - 5), "miou"),
        (sample(RNG.integers(0, 9, (1, 32, 48))), "miou"),
        (sample(RNG.integers(0, 9, (1, 1, 32, 48))), "miou"),
        (sample(read_text(40, 1, 37)), "sequences"),
        (sample(read_text(1, 40, 6625)), "sequences"),
        (sample(normal(1, 40, 37)), "outputs"),
        (sample(softmax(read_text(40, 37))[None]), "sequences"),
        (sample(np.log(softmax(read_text(40, 37)))[None]), "sequences"),
        (sample(np.flip(read_text(1, 40, 37), axis=2)), "sequences"),
        (sample(np.roll(read_text(1, 40, 37), 7, axis=2)), "outputs"),
        (sample(boxes(4, 80, largest=1)), "outputs"),
        (sample(boxes(4, 80, largest=640)), "outputs"),
        (sample(np.concatenate([boxes(4, 0, largest=1), normal(1, 300, 80) - 4], axis=2)), "outputs"),
        (sample(np.concatenate([0 * boxes(1, 0), boxes(4, 1), np.ones((1, 300, 1))], axis=2)), "outputs"),
        (sample(read_text(1, 40, 37), read_text(1, 40, 37)), "outputs"),
        (sample(RNG.integers(0, 9, (1, 25))), "sequences"),
        (sample(np.abs(normal(1, 24 + 6 + 2, 85))), "map"),
        (sample(softmax(normal(1, 84, 32))), "map"),
        (sample(np.float32(3.0).reshape(())), None),
        (sample(normal(1, 5, 4, 4, 4)), "outputs"),
        (sample(normal(1, 512, 8, 12)), "outputs"),
        (sample(RNG.integers(0, 255, (1, 3, 32, 48), dtype=np.uint8)), "psnr"),
        (sample(RNG.integers(0, 255, (1, 5, 32, 48), dtype=np.uint8)), "miou"),
    ],
)
def test_outputs_point_to_a_metric(shown: Sample, metric: str | None) -> None:
    assert kind_of(shown) == metric


@pytest.mark.parametrize(
    ("name", "content", "shown", "metric"),
    [
        ("boxes.json", "{}", sample(normal(1, 31, 85)), "map"),
        ("labels.csv", "file,label\n0,3\n1,4\n", sample(normal(1, 512)), "top1"),
        ("labels.csv", "0,1,same\n", sample(normal(1, 512)), "pairs"),
        ("labels.csv", "0,12\n1,34\n", sample(normal(1, 25, 11)), "sequences"),
        ("labels.tsv", "0\thello world\n", sample(normal(1, 25, 11)), "sequences"),
        ("labels.tsv", '0\t"quoted\n1\tmore\n', sample(normal(1, 25, 11)), "sequences"),
        ("labels.csv", "0,cat\n1,dog\n", sample(normal(1, 10)), "top1"),
        ("folder", None, sample(normal(1, 3, 64, 96)), "psnr"),
        ("folder", None, sample(normal(1, 4, 64, 96)), "miou"),
    ],
)
def test_labels_decide_where_there_are_any(
    tmp_path: Path, name: str, content: str | None, shown: Sample, metric: str
) -> None:
    labels = tmp_path / name
    if content is None:
        labels.mkdir()
    else:
        labels.write_text(content)
    assert choose_metric(shown, IMAGES, labels) == metric


@pytest.mark.parametrize("output", [normal(1, 1), normal(1, 5, 32, 48)], ids=["one logit", "maps"])
def test_a_table_beside_other_outputs_is_refused(tmp_path: Path, output: np.ndarray) -> None:
    (tmp_path / "labels.csv").write_text("0,1\n1,0\n")
    with pytest.raises(OptionError, match="is a table, and the outputs are neither classes nor sequences"):
        choose_metric(sample(output), IMAGES, tmp_path / "labels.csv")


@pytest.mark.parametrize(("count", "metric"), [(512, "pairs"), (2, "top1")])
def test_folders_of_images_are_classes_where_there_are_as_many(count: int, metric: str) -> None:
    """Photos of people in a folder each are no classes of a descriptor."""
    people = replace(IMAGES, labels=np.array([0, 1]), classes=("ann", "bob"))
    assert choose_metric(sample(normal(1, count)), people, None) == metric


def test_nothing_that_fits_is_an_error_with_a_remedy() -> None:
    with pytest.raises(OptionError, match=r"cannot tell what the outputs are: 0 \[\].*FILE.py:FUNCTION"):
        choose_metric(sample(np.float32(3.0).reshape(())), IMAGES, None)
