"""Multiply-adds of all counted operators, at sizes that a file hides, and in bodies by how often they run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import build, save
from networks import input_shapes

from trp_export.graph.cost import count_macs, name_uncounted
from trp_export.graph.prepare import prepare
from trp_export.graph.shapes import Shape, infer_shapes
from trp_export.graph.sites import find_sites
from trp_export.runtime.measured_shapes import measure_shapes
from trp_export.runtime.sessions import CannotRunError

IMAGE = "float[N, 4, 12, 12] x"
CONV = 8 * 4 * 9  # Multiply-adds per output pixel of a conv of 3 x 3 pixels from 4 to 8 channels.


def text(body: str, weights: str, header: str = IMAGE, out: str = "float[N, M, H, W] y") -> str:
    return f'<ir_version: 8, opset_import: ["" : 17]>\nnet ({header}) => ({out}) <{weights}> {{ {body} }}'


def prepared(source: str, folder: Path) -> tuple[ir.Model, Path]:
    model = prepare(ir.serde.deserialize_model(build(source)))
    return model, save(ir.serde.serialize_model(model), folder / "prepared.onnx")


def macs(source: str, folder: Path, shapes: dict[str, Shape] | None = None, **feeds: np.ndarray) -> int | None:
    model, file = prepared(source, folder)
    return count_macs(model, measure_shapes(file, shapes or input_shapes(model), feeds))


OPERATORS = {
    "conv": (text("y = Conv <pads = [1, 1, 1, 1]> (x, w)", "float[8, 4, 3, 3] w"), CONV * 144),
    "strided conv": (text("y = Conv <strides = [2, 2]> (x, w)", "float[8, 4, 3, 3] w"), CONV * 25),
    "grouped conv": (text("y = Conv <group = 2> (x, w)", "float[8, 2, 3, 3] w"), CONV // 2 * 100),
    "transposed conv": (text("y = ConvTranspose <strides = [2, 2]> (x, w)", "float[4, 8, 3, 3] w"), CONV * 144),
    "gemm": (text("y = Gemm <transB = 1> (x, w)", "float[6, 4] w", "float[N, 4] x", "float[N, M] y"), 24),
    "batched matmul": (text("y = MatMul (x, w)", "float[4, 6] w", "float[3, 5, 4] x", "float[3, 5, 6] y"), 15 * 24),
    "matmul of two values": (
        text("t = Transpose <perm = [0, 2, 1]> (x)  y = MatMul (x, t)", "", "float[3, 5, 4] x", "float[3, 5, 5] y"),
        3 * 5 * 5 * 4,
    ),
    "einsum": (
        text('y = Einsum <equation = "bij,jk->bik"> (x, w)', "float[4, 6] w", "float[3, 5, 4] x", "float[3, 5, 6] y"),
        3 * 5 * 4 * 6,
    ),
    "lstm": (
        text(
            "y = LSTM <hidden_size = 3> (x, w, r)", "float[1, 12, 4] w, float[1, 12, 3] r",
            "float[7, 2, 4] x", "float[T, D, B, H] y",
        ),
        7 * 2 * 12 * (4 + 3),
    ),
    "gru in two directions": (
        text(
            'y = GRU <hidden_size = 3, direction = "bidirectional"> (x, w, r)',
            "float[2, 9, 4] w, float[2, 9, 3] r", "float[7, 2, 4] x", "float[T, D, B, H] y",
        ),
        7 * 2 * 2 * 9 * (4 + 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "expected"), OPERATORS.values(), ids=OPERATORS)
def test_count_macs_of_every_counted_operator(source: str, expected: int, tmp_path: Path) -> None:
    assert macs(source, tmp_path) == expected
    model, file = prepared(source, tmp_path)
    places = find_sites(model, measure_shapes(file, input_shapes(model)))
    assert sum(place.site.macs for place in places) == expected
    assert all(place.site.is_known for place in places)


def test_sizes_behind_a_squeeze_that_inference_cannot_follow(tmp_path: Path) -> None:
    body = """s = Shape (m)  e = Gather <axis = 0> (s, zero)  q = Equal (e, zero)
        x = If (q) <
            then_branch = a () => (x1) { x1 = Identity (m) },
            else_branch = b () => (x2) { x2 = Squeeze (m, zero) }>
        y = Conv <pads = [1, 1, 1, 1]> (x, w)"""
    source = text(body, "float[8, 4, 3, 3] w, int64[1] zero = {0}", "float[1, 1, 4, 12, 12] m")
    assert macs(source, tmp_path) == CONV * 144


@pytest.mark.parametrize("taken", [True, False])
def test_branches_count_where_they_ran(taken: bool, tmp_path: Path) -> None:
    body = """y = If (which) <
        then_branch = yes () => (a) { a = Conv <pads = [1, 1, 1, 1]> (x, w) },
        else_branch = no () => (a) { c = Conv <pads = [1, 1, 1, 1]> (x, w)  a = Conv <pads = [1, 1, 1, 1]> (c, v) }>"""
    source = text(body, "float[4, 4, 3, 3] w, float[4, 4, 3, 3] v", f"{IMAGE}, bool which")
    one = 4 * 4 * 9 * 144
    assert macs(source, tmp_path, which=np.array(taken)) == (one if taken else 2 * one)


LOOP = """y = Loop (times, go, x) <body = step (int64 i, bool on, float[N, 4, 12, 12] s) => (still, t) {
    still = Identity (on)  a = Conv <pads = [1, 1, 1, 1]> (s, w)  t = Tanh (a) }>"""


@pytest.mark.parametrize("times", [0, 1, 3])
def test_loops_count_every_iteration(times: int, tmp_path: Path) -> None:
    source = text(LOOP, f"float[4, 4, 3, 3] w, int64 times = {{{times}}}, bool go = {{1}}")
    assert macs(source, tmp_path) == times * 4 * 4 * 9 * 144


def test_a_branch_inside_a_loop_counts_the_iterations_that_take_it(tmp_path: Path) -> None:
    body = """y = Loop (times, go, x) <body = step (int64 i, bool on, float[N, 4, 12, 12] s) => (still, t) {
        still = Identity (on)  first = Equal (i, zero)
        t = If (first) <
            then_branch = yes () => (p) { p = Conv <pads = [1, 1, 1, 1]> (s, w) },
            else_branch = no () => (q) { q = Identity (s) }> }>"""
    weights = "float[4, 4, 3, 3] w, int64 times = {5}, int64 zero = {0}, bool go = {1}"
    assert macs(text(body, weights), tmp_path) == 4 * 4 * 9 * 144


def test_scans_count_every_step(tmp_path: Path) -> None:
    body = """last, y = Scan <num_scan_inputs = 1, body = step (float[2, 4] s, float[2, 4] x_t) => (t, o) {
        m = MatMul (s, w)  t = Add (m, x_t)  o = Identity (t) }> (start, x)"""
    source = text(body, "float[4, 4] w, float[2, 4] start", "float[6, 2, 4] x", "float[T, B, C] y")
    assert macs(source, tmp_path) == 6 * 2 * 16


def test_a_model_that_cannot_run_and_hides_its_sizes_has_unknown_macs(tmp_path: Path) -> None:
    source = """<ir_version: 8, opset_import: ["" : 17, "far" : 1]>
        net (float[N, 4, 12, 12] x) => (float[N, 8, H, W] y) <float[8, 4, 3, 3] w>
        { a = far.Warp (x)  y = Conv (a, w) }"""
    model, file = prepared(source, tmp_path)
    with pytest.raises(CannotRunError):
        measure_shapes(file, input_shapes(model))
    runs = infer_shapes(model, input_shapes(model))
    assert count_macs(model, runs) is None
    assert not find_sites(model, runs)[0].site.is_known
    assert name_uncounted(model) == "1 far.Warp"


def test_no_probe_and_no_file_is_left(tmp_path: Path) -> None:
    model, file = prepared(OPERATORS["conv"][0], tmp_path)
    measure_shapes(file, input_shapes(model))
    assert [path.name for path in tmp_path.iterdir()] == ["prepared.onnx"]
    assert [value.name for value in onnx.load(file).graph.output] == ["y"]
