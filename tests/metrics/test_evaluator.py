"""Images are evaluated together only where a network answers each as it does alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import Command
from models import build, save

from trp_export.inputs.image_set import ImageSet
from trp_export.metrics import choice, evaluator
from trp_export.metrics.choice import Metric
from trp_export.metrics.sample import Sample
from trp_export.options import Images

NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
net (float[BATCH, 3, 6, 6] image) => (OUTPUTS)
<float[8, 3, 3, 3] one__weight, float[8, 8, 1, 1] two__weight>
{
    a = Conv <pads = [1, 1, 1, 1]> (image, one__weight)
    r = Relu (a)
    c = Conv (r, two__weight)
    p = GlobalAveragePool (c)
    f = Flatten (p)
    BODY
}
"""
ARGUMENTS = ("model.onnx", "--rank", "2", "--no-bench", "--eval", "images.npy", "--json")
MEASURE = "def worth(name, outputs):\n    return 1 + float(list(outputs.values())[0].mean())\n"


@pytest.fixture
def images(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).standard_normal((10, 3, 6, 6)).astype(np.float32))
    (tmp_path / "own.py").write_text(MEASURE)


def make(folder: Path, body: str, outputs: str, batch: str = "N") -> None:
    text = NETWORK.replace("BODY", body).replace("OUTPUTS", outputs).replace("BATCH", batch)
    save(build(text), folder / "model.onnx")


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("y = ReduceMax <axes = [0]> (f)", "float[1, 8] y"),
        ("y = Identity (f)\n s = ReduceMean <keepdims = 0> (f)", "float[N, 8] y, float s"),
    ],
    ids=["one row for a batch", "a number beside"],
)
def test_every_image_has_a_score_of_its_own(trp: Command, tmp_path: Path, body: str, outputs: str) -> None:
    make(tmp_path, body, outputs)
    outcome = trp(*ARGUMENTS, "--metric", "own.py:worth")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["deviation"]["score"]["images"] == 10


@pytest.mark.usefixtures("images")
def test_outputs_that_do_not_tell_images_apart_are_refused(refuses: Command, tmp_path: Path) -> None:
    make(tmp_path, "y = ReduceMax <axes = [0]> (f)", "float[1, 8] y", batch="5")
    assert "1 answers for a batch of 5 images" in refuses(2, *ARGUMENTS, "--metric", "own.py:worth")


def test_few_vectors_are_looked_at(trp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).standard_normal((300, 3, 6, 6)).astype(np.float32))
    make(tmp_path, "y = Identity (f)", "float[N, 8] y")
    seen: list[int] = []

    def open_metric(images: Images, files: ImageSet, sample: Sample, model: Path) -> tuple[Metric, tuple[str, ...]]:
        seen.append(sample.count)
        return choice.open_metric(images, files, sample, model)

    monkeypatch.setattr(evaluator, "open_metric", open_metric)
    assert trp(*ARGUMENTS).code == 0
    assert 32 <= seen[0] <= 100


def test_a_large_fixed_batch_is_evaluated(trp: Command, tmp_path: Path) -> None:
    """One batch holds more vectors than are looked at."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).standard_normal((80, 3, 6, 6)).astype(np.float32))
    make(tmp_path, "y = Identity (f)", "float[40, 8] y", batch="40")
    outcome = trp(*ARGUMENTS)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["deviation"]["score"]["images"] == 80


@pytest.mark.usefixtures("images")
def test_images_that_fill_no_batch_are_noted(trp: Command, tmp_path: Path) -> None:
    make(tmp_path, "y = Identity (f)", "float[4, 8] y", batch="4")
    outcome = trp(*ARGUMENTS, "--metric", "own.py:worth")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["deviation"]["score"]["images"] == 8
    assert "images.npy: the last 2 of 10 images do not fill a batch" in " ".join(document["notes"])
