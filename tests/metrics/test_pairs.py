"""Embeddings: thresholds against all thresholds tried, pairs through the command, and words that fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import Command
from hypothesis import given
from hypothesis import strategies as st
from models import build, save
from PIL import Image

from trp_export.errors import LoadError
from trp_export.metrics.pairs import Labels, Pairs, best_threshold, read_pairs
from trp_export.metrics.sample import Span

START = Span(0, (12, 12))
DESCRIPTOR = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 12, 12] image) => (float[N, 64] vector)
<float[16, 3, 3, 3] one__weight, float[64, 16, 3, 3] two__weight>
{
    a = Conv <pads = [1, 1, 1, 1]> (image, one__weight)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, two__weight)
    d = GlobalAveragePool (c)
    vector = Flatten (d)
}
"""
ARGUMENTS = ("--rank", "1", "--no-bench", "--eval", "images")


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=12))
def test_no_other_threshold_makes_fewer_errors(pairs: list[tuple[int, bool]]) -> None:
    near, same = np.array([value / 5 for value, _ in pairs]), np.array([kind for _, kind in pairs])
    chosen = best_threshold(near, same)
    errors = [((near > value) != same).sum() for value in np.linspace(-1.3, 1.3, 27)]
    assert ((near > chosen) != same).sum() == min(errors)


def test_pairs_that_are_easy_are_all_right() -> None:
    labels = Labels(np.array([[0, 1], [0, 2], [1, 3], [2, 3]] * 3), np.array([True, False, False, True] * 3))
    metric = Pairs(labels)
    vectors = [np.array([1.0, 0]), np.array([0.9, 0.1]), np.array([0, 1.0]), np.array([0.1, 0.9])]
    embeddings = metric.predict([np.stack(vectors)], START)
    found = metric.score(embeddings, [np.array([1.0, 0])] * 4)
    assert (found.before, found.what, found.images, found.counted) == (1, "verification accuracy", 12, "pairs")
    assert found.after <= 0.5


def test_scale_does_not_matter_and_what_is_not_finite_is_near_nothing() -> None:
    metric = Pairs(None)
    vectors = np.array([[3.0, 4], [1, 0]])
    before = metric.predict([vectors], START)
    assert metric.score(before, metric.predict([7 * vectors], START)).after == pytest.approx(1)
    assert metric.score(before, metric.predict([np.full((2, 2), np.nan)], START)).after == 0


def test_a_first_pair_with_a_wrong_name_is_no_line_of_heads() -> None:
    images = ["a/1.png", "a/2.png", "b/1.png"]
    rows = (("wrong.png", "a/2.png", "1"), ("a/1.png", "b/1.png", "0"), ("a/1.png", "2.png", "same"))
    with pytest.raises(LoadError, match=r"there is no image wrong\.png"):
        read_pairs(Path("pairs.csv"), rows, images)
    with pytest.raises(LoadError, match=r"there is no image 1\.png"):  # Which of the two is not known.
        read_pairs(Path("pairs.csv"), (("1.png", "a/2.png", "1"), *rows[1:]), images)
    assert read_pairs(Path("pairs.csv"), rows[1:], images).pairs.tolist() == [[0, 2], [0, 1]]


def test_pairs_of_images_that_were_not_run_are_left_out() -> None:
    labels = Labels(np.array([[0, 1], [0, 2], [1, 9]] * 3), np.array([True, False, True] * 3))
    embeddings = list(np.eye(3))
    assert Pairs(labels).score(embeddings, embeddings).images == 6


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(1)
    for index in range(6):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(tmp_path / f"images/{index}.png")
    return save(build(DESCRIPTOR), tmp_path / "model.onnx")


def test_a_descriptor_is_compared_by_its_embeddings(trp: Command, model: Path) -> None:
    outcome = trp("model.onnx", *ARGUMENTS)
    assert outcome.code == 0, outcome.err
    assert "its cosine to the original's embedding is" in outcome.out
    assert "class" not in outcome.out


@pytest.mark.parametrize("head", ["", "first,second,same\n"])
def test_pairs_are_read_from_a_table(trp: Command, model: Path, tmp_path: Path, head: str) -> None:
    rows = ["0.png,1.png,1", "2.png,3.png,same", "0.png,4.png,0", "1.png,5.png,different"]
    (tmp_path / "pairs.csv").write_text(head + "\n".join(rows) + "\n")
    outcome = trp("model.onnx", *ARGUMENTS, "--labels", "pairs.csv", "--json")
    assert outcome.code == 0, outcome.err
    score = json.loads(outcome.out)["deviation"]["score"]
    assert (score["metric"], score["images"], score["counted"]) == ("pairs", 4, "pairs")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0.png,1.png,1\n", "pairs of the same and of different kinds"),
        ("0.png,1.png,1\n2.png,9.png,0\n", "there is no image 9.png"),
        ("0.png,1.png,1\n2.png,3.png,maybe\n", "is not a pair"),
        ("0.png,1.png,1\n2.png\n", "a file name and a label"),
        ("", "is empty"),
        ("\n\n", "is empty"),
    ],
)
def test_pairs_that_cannot_be_used(refuses: Command, model: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "pairs.csv").write_text(content)
    arguments = ("model.onnx", *ARGUMENTS, "--labels", "pairs.csv", "--metric", "pairs")
    assert message in refuses(3, *arguments)
