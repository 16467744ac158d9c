"""Where last operators enlarge rounding, what they read is compared; a wrong device is found all the same."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from trp_export.bench import Comparison, compare, session
from trp_export.bench.models import BenchModel
from trp_export.bench.outputs import Reference, reference_outputs
from trp_export.errors import VerifyError

# Scores near 1e-7, and the order of close ones.
SCORES = """<ir_version: 8, opset_import: ["": 17]> g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
<float[4, 3, 1, 1] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2}, float[4] b = {-16, -16, -16, -16}>
{ a = Conv (x, w, b)  y = Sigmoid (a) }"""
BEST = """<ir_version: 8, opset_import: ["": 17]> g (float[1, 3, 8, 8] x) => (float[1, 5] y, int64[1, 5] i)
<float[4, 3, 1, 1] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2},
 int64[2] s = {1, -1}, int64[1] k = {5}>
{ a = Conv (x, w)  r = Reshape (a, s)  y, i = TopK (r, k) }"""
PLAIN = """<ir_version: 8, opset_import: ["": 17]> g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
<float[4, 3, 1, 1] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2}> { y = Conv (x, w) }"""


def compare_moved(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Comparison:
    """A comparison on a device whose outputs of the whole model are not those of this computer."""
    onnx.save(onnx.parser.parse_model(text), folder / "net.onnx")

    def moved(cases: list[BenchModel], timeout_s: float) -> list[Reference]:
        (reference,) = reference_outputs(cases, timeout_s)
        return [Reference([a + a.dtype.type(1) for a in reference.outputs if a is not None])]

    monkeypatch.setattr(session, "reference_outputs", moved)
    return compare([folder / "net.onnx"], budget_s=0.1, processes=2)


@pytest.mark.parametrize("text", [SCORES, BEST])
def test_what_the_last_operators_read_is_compared(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_process_left: None
) -> None:
    found = compare_moved(text, tmp_path, monkeypatch)
    assert found.measurements[0].deviation is not None
    assert found.measurements[0].deviation.relative_l2 == 0
    assert sum("what they read was compared instead" in note for note in found.noise) == 1


def test_where_nothing_follows_the_answers_other_outputs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_process_left: None
) -> None:
    with pytest.raises(VerifyError, match="computes something else"):
        compare_moved(PLAIN, tmp_path, monkeypatch)


def test_other_answers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_process_left: None) -> None:
    """The reference of the answers is wrong as well: what the device computes is not what it should."""
    from trp_export.bench import answers

    def wrong(cases: list[BenchModel], timeout_s: float) -> list[Reference]:
        (reference,) = reference_outputs(cases, timeout_s)
        return [Reference([1.01 * a for a in reference.outputs if a is not None])]

    monkeypatch.setattr(answers, "reference_outputs", wrong)
    with pytest.raises(VerifyError, match=r"net\.onnx: output 0 on local differs"):
        compare_moved(SCORES, tmp_path, monkeypatch)


@pytest.mark.parametrize("declared", ["-1", "n"])
def test_sizes_declared_as_minus_one_are_open(declared: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(PLAIN)
    size = model.graph.input[0].type.tensor_type.shape.dim[0]
    if declared == "n":
        size.dim_param = "n"
    else:
        size.dim_value = -1
    onnx.save(model, tmp_path / "net.onnx")
    found = compare([tmp_path / "net.onnx"], budget_s=0.1, processes=1, shapes={"x": (2, 3, 8, 8)})
    assert found.environment.inputs == "float32[2,3,8,8]"
