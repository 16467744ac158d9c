"""Top-1 and top-5 by a table of labels, against onnxruntime asked directly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import Command
from models import build, run, save
from PIL import Image

from trp_export.errors import LoadError
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.metrics.choice import Metric, open_metric
from trp_export.metrics.sample import Sample, Span
from trp_export.options import Images

COUNT = 30
ARGUMENTS = ("model.onnx", "--rank", "1", "--no-bench", "--eval", "images", "--json")


@pytest.fixture
def scores(tmp_path: Path) -> np.ndarray:
    """What the network answers for pictures in a folder."""
    model = save(build(), tmp_path / "model.onnx")
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, 12, 12, 3), dtype=np.uint8)
    for index, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"images/{index:02}.png")
    fed = (pixels.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
    return np.asarray(run(model, {"image": fed})[0])


def write(path: Path, labels: np.ndarray, head: str = "file,label,name\n") -> None:
    path.write_text(head + "".join(f"{index:02}.png,{label},x\n" for index, label in enumerate(labels)))


@pytest.mark.parametrize("metric", ["auto", "top1", "top5"])
def test_labels_are_read_from_a_table(trp: Command, scores: np.ndarray, tmp_path: Path, metric: str) -> None:
    labels = np.random.default_rng(1).integers(0, 10, COUNT)
    write(tmp_path / "labels.csv", labels)
    outcome = trp(*ARGUMENTS, "--labels", "labels.csv", "--metric", metric)
    assert outcome.code == 0, outcome.err
    score = json.loads(outcome.out)["deviation"]["score"]
    order = np.argsort(-scores, axis=1)
    shares = {width: float((order[:, :width] == labels[:, None]).any(axis=1).mean()) for width in (1, 5)}
    assert score["before"] == pytest.approx(shares[5 if metric == "top5" else 1])
    if metric != "top5":
        assert score["details"][0]["what"] == "top-5"
        assert score["details"][0]["before"] == pytest.approx(shares[5])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(COUNT), "labels run from 0 to 29; the network has classes 0 to 9"),
        (np.zeros(COUNT - 1, dtype=int), "no label for 1 of 30 images, such as 29.png"),
        (["cat"] * COUNT, "'cat' is not the number of a class"),
    ],
)
def test_labels_that_do_not_fit(
    refuses: Command, scores: np.ndarray, tmp_path: Path, labels: np.ndarray, message: str
) -> None:
    write(tmp_path / "labels.csv", labels)
    assert message in refuses(3, *ARGUMENTS, "--labels", "labels.csv", "--metric", "top1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "is not a text in UTF-8"),
        (b"only names\n" * 3, "no label for 30"),
        (b"a\n", "line 1: a file name"),
    ],
)
def test_files_that_are_no_table(
    refuses: Command, scores: np.ndarray, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    assert message in refuses(3, *ARGUMENTS, "--labels", "labels.csv", "--metric", "top1")


def test_labels_are_never_written_over(refuses: Command, scores: np.ndarray, tmp_path: Path) -> None:
    write(tmp_path / "labels.json", np.zeros(COUNT, dtype=int))
    arguments = (*ARGUMENTS[:-1], "--labels", "labels.json", "--metric", "top1", "-o", "labels.onnx")
    assert "labels.json" in refuses(2, *arguments)


@pytest.mark.parametrize("arguments", [("--metric", "map"), ("--labels", "x.json")])
def test_metrics_and_labels_need_images(refuses: Command, scores: np.ndarray, arguments: tuple[str, ...]) -> None:
    assert f"{arguments[0]} needs --eval PATH" in refuses(2, "model.onnx", "--rank", "1", *arguments)


def test_numbers_stay_numbers_where_classes_have_numbers_for_names(tmp_path: Path) -> None:
    """Folders 0 to 11 in alphabetical order: class 10 is not the one that is called so."""
    classes = sorted(map(str, range(12)))
    images = ImageSet("made", np.zeros((2, 3, 4, 4), np.float32), None, Preprocessing(), 3, None, ())
    shown = Sample(("y",), (np.zeros((2, 12), np.float32),), 2, (4, 4), 3, classes=tuple(classes))
    for content, wanted in (("0,10\n1,1\n", [10, 1]), (f"0,{classes[3]}\n1,cat\n", None)):
        (tmp_path / "labels.csv").write_text(content)
        options = Images(tmp_path, labels=tmp_path / "labels.csv", metric="top1")
        if wanted is None:
            with pytest.raises(LoadError, match="'cat' is not the number of a class"):
                open_metric(options, images, shown, tmp_path / "model.onnx")
        else:
            metric, _ = open_metric(options, images, shown, tmp_path / "model.onnx")
            assert metric.labels.tolist() == wanted


def opened(path: Path, labels: np.ndarray, count: int) -> Metric:
    images = ImageSet("made", np.zeros((len(labels), 3, 4, 4), np.float32), labels, Preprocessing(), 3, None, ())
    shown = Sample(("y",), (np.zeros((4, count), np.float32),), 4, (4, 4), 3)
    return open_metric(Images(path, metric="top1"), images, shown, path)[0]


@pytest.mark.parametrize(("offset", "right"), [(0, 1.0), (1, 1.0), (2, 0.0)])
def test_a_network_may_have_the_background_first(tmp_path: Path, offset: int, right: float) -> None:
    """As networks of TensorFlow do: 1,001 classes of ImageNet."""
    labels = np.arange(40) % 9
    answers = np.eye(12, dtype=np.float32)[labels + offset]
    metric = opened(tmp_path, labels, 12)
    before = metric.predict([answers], Span(0, (4, 4)))
    score = metric.score(before, metric.predict([np.roll(answers, 1, axis=1)], Span(0, (4, 4))))
    assert (score.before, score.after) == (right, 0.0)
    assert ("its classes count from 1" in score.remark) == (offset == 1)


@pytest.mark.parametrize(
    ("labels", "count"), [(np.arange(9), 12), (np.arange(40) % 9, 9)], ids=["nine images", "no class to spare"]
)
def test_labels_are_not_moved_without_proof(tmp_path: Path, labels: np.ndarray, count: int) -> None:
    answers = np.eye(count, dtype=np.float32)[np.minimum(labels + 1, count - 1)]
    metric = opened(tmp_path, labels, count)
    before = metric.predict([answers], Span(0, (4, 4)))
    assert metric.score(before, before).before < 0.2
