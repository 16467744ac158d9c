"""Greedy decoding against a plain loop, texts by an alphabet, and what cannot be read."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from command import Command
from hypothesis import given
from hypothesis import strategies as st
from models import build, run, save
from PIL import Image

from trp_export.metrics.sample import Span
from trp_export.metrics.sequences import Sequences, greedy

START = Span(0, (8, 24))
READER = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 8, 24] image) => (float[N, 24, 5] steps)
<float[16, 3, 3, 3] one__weight, float[5, 16, 3, 3] two__weight>
{
    a = Conv <pads = [1, 1, 1, 1]> (image, one__weight)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, two__weight)
    axes = Constant <value = int64[1] {2}> ()
    d = ReduceMean <axes = [2], keepdims = 0> (c)
    e = Transpose <perm = [0, 2, 1]> (d)
    steps = Softmax <axis = 2> (e)
}
"""
ARGUMENTS = ("--rank", "1", "--no-bench", "--eval", "images", "--json")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.sampled_from([0, 4]))
def test_greedy_decoding_merges_repetitions_and_drops_blanks(steps: list[int], blank: int) -> None:
    wanted = tuple(number for number, _ in groupby(steps) if number != blank)
    assert greedy(np.eye(5)[steps], blank) == wanted


def test_steps_may_come_first_and_classes_may_be_chosen() -> None:
    scores = np.eye(5)[[[0, 2, 2, 0, 3]]]
    assert Sequences(False, 0, None).predict([scores], START) == [(2, 3)]
    assert Sequences(True, 0, None).predict([scores.transpose(1, 0, 2)], START) == [(2, 3)]
    assert Sequences(False, 0, None).predict([np.array([[7, 7, 1]])], START) == [(7, 7, 1)]


def test_scores_that_are_not_finite_match_nothing() -> None:
    metric = Sequences(False, 0, None)
    broken = metric.predict([np.full((2, 4, 5), np.nan)], START)
    assert metric.score(broken, broken).after == 0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(1)
    for index in range(8):
        Image.fromarray(rng.integers(0, 256, (8, 24, 3), dtype=np.uint8)).save(tmp_path / f"images/{index}.png")
    text = READER.replace("    axes = Constant <value = int64[1] {2}> ()\n", "")
    return save(build(text), tmp_path / "model.onnx")


def read(model: Path, tmp_path: Path) -> tuple[list[tuple[int, ...]], int]:
    """What the network reads in each image, and its blank."""
    paths = sorted((tmp_path / "images").iterdir())
    fed = [np.asarray(Image.open(path), dtype=np.float32).transpose(2, 0, 1) / np.float32(255) for path in paths]
    scores = run(model, {"image": np.stack(fed)})[0]
    first = scores[0].argmax(axis=1)
    blank = 4 if (first == 4).sum() > (first == 0).sum() else 0
    return [greedy(one, blank) for one in scores], blank


def test_without_labels_the_originals_texts_count(trp: Command, model: Path) -> None:
    outcome = trp("model.onnx", *ARGUMENTS[:-1])
    assert outcome.code == 0, outcome.err
    assert "its text stays the same on" in outcome.out
    assert "class" not in outcome.out


def test_texts_are_matched_by_an_alphabet(trp: Command, model: Path, tmp_path: Path) -> None:
    texts, blank = read(model, tmp_path)
    alphabet = 'a"cd'
    (tmp_path / "alphabet.txt").write_text("\n".join(alphabet) + "\n")
    lines = [f"{index}.png\t{''.join(alphabet[number - (blank == 0)] for number in text)}" for index, text
             in enumerate(texts)]  # fmt: skip
    lines[0] = "0.png\tsomething else"
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    arguments = ("--labels", "texts.txt", "--metric", "sequences:alphabet.txt")
    outcome = trp("model.onnx", *ARGUMENTS, *arguments)
    assert outcome.code == 0, outcome.err
    score = json.loads(outcome.out)["deviation"]["score"]
    assert (score["what"], score["before"]) == ("exact match", 7 / 8)


def test_texts_may_be_numbers_of_classes(trp: Command, model: Path, tmp_path: Path) -> None:
    texts, _ = read(model, tmp_path)
    lines = [f"{index}.png,{' '.join(map(str, text))}" for index, text in enumerate(texts)]
    (tmp_path / "texts.csv").write_text("\n".join(lines))
    score = json.loads(trp("model.onnx", *ARGUMENTS, "--labels", "texts.csv").out)["deviation"]["score"]
    assert (score["metric"], score["before"]) == ("sequences", 1)


@pytest.mark.parametrize(
    ("texts", "alphabet", "message"),
    [
        ("0.png,abc\n", "a\nb\nc\nd\n", "no label for 7 of 8 images, such as 1.png"),
        ("0.png,abc\n0.png,abd\n", "a\nb\nc\nd\n", "two labels for 0.png"),
        (None, "a\nb\n", "has 2 characters, and the network has 5 classes"),
        (None, "a\nbc\n", "line 2: an alphabet has one character on each line"),
        (None, "", "an alphabet has one character on each line"),
        (None, None, "needs an alphabet"),
    ],
)
def test_labels_that_cannot_be_used(
    refuses: Command, model: Path, tmp_path: Path, texts: str | None, alphabet: str | None, message: str
) -> None:
    (tmp_path / "texts.csv").write_text(texts or "".join(f"{index}.png,abc\n" for index in range(8)))
    metric = "sequences"
    if alphabet is not None:
        (tmp_path / "alphabet.txt").write_text(alphabet)
        metric = "sequences:alphabet.txt"
    assert message in refuses(3, "model.onnx", *ARGUMENTS, "--labels", "texts.csv", "--metric", metric)
