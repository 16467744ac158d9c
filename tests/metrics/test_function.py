"""A measure of the user's own, named on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import Command
from models import build, run, save

from trp_export.metrics.function import Function
from trp_export.metrics.sample import Span

ARGUMENTS = ("model.onnx", "--rank", "1", "--no-bench", "--eval", "images.npy", "--json")
MEASURE = """
def worth(name, outputs):
    print("not for stdout")
    assert list(outputs) == ["logits"] and outputs["logits"].shape == (1, 10)
    return outputs["logits"][0, int(name) % 10]
"""


@pytest.fixture
def inputs(tmp_path: Path) -> np.ndarray:
    save(build(), tmp_path / "model.onnx")
    made = np.random.default_rng(0).standard_normal((20, 3, 12, 12)).astype(np.float32)
    np.save(tmp_path / "images.npy", made)
    return made


def test_a_function_scores_each_image(trp: Command, inputs: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MEASURE)
    outcome = trp(*ARGUMENTS, "--metric", "own.py:worth")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    score, images = document["deviation"]["score"], np.arange(20)
    before = run(tmp_path / "model.onnx", {"image": inputs})[0][images, images % 10]
    after = run(tmp_path / "model.trp.onnx", {"image": inputs})[0][images, images % 10]
    assert (score["what"], score["unit"], score["images"]) == ("worth", "", 20)
    assert (score["before"], score["after"]) == pytest.approx((before.mean(), after.mean()), abs=1e-6)
    assert score["error"] == pytest.approx(np.std(after - before) / np.sqrt(20), abs=1e-6)


def test_a_limit_that_allows_everything_is_refused(refuses: Command, inputs: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def share(name, outputs):\n    return 0.4\n")
    arguments = ("model.onnx", "--max-drop", "1", *ARGUMENTS[3:-1], "--metric", "own.py:share")
    assert "it counts in the unit of your function" in refuses(2, *arguments)


@pytest.mark.parametrize(
    ("code", "text", "message"),
    [
        (2, "", "own.py has no function worth"),
        (2, "worth = 3", "worth is a int, not a function"),
        (2, "1 / 0", "cannot be imported"),
        (3, "def worth(name, outputs): return float('nan')", "returned nan for 0"),
        (3, "def worth(name, outputs): return 'much'", "failed on 0: ValueError"),
        (3, "def worth(name, outputs): raise SystemExit(3)", "failed on 0: SystemExit"),
        (3, "def worth(name): return 1", "failed on 0: TypeError"),
    ],
)
def test_functions_that_cannot_be_used(
    refuses: Command, inputs: np.ndarray, tmp_path: Path, code: int, text: str, message: str
) -> None:
    (tmp_path / "own.py").write_text(text)
    assert message in refuses(code, *ARGUMENTS, "--metric", "own.py:worth")


def test_a_function_may_be_given_a_single_number() -> None:
    measured = Function("own.py:loss", lambda name, outputs: float(outputs["loss"]), ["a"], ["loss"])
    assert measured.predict([np.array(0.25, dtype=np.float32)], Span(0, (2, 3))) == [0.25]


def test_labels_beside_a_function_are_refused(refuses: Command, inputs: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MEASURE)
    arguments = (*ARGUMENTS, "--metric", "own.py:worth", "--labels", "labels.csv")
    (tmp_path / "labels.csv").write_text("0,1\n")
    assert "read them in the function, and leave --labels out" in refuses(2, *arguments)
