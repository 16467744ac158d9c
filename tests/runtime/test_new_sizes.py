"""A file fixes the sizes of its inputs, and --shape gives others: only networks that follow them are changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import build, relative_l2, run, save

from trp_export import Benchmark, Options, compress
from trp_export.errors import OptionError
from trp_export.inputs.options import InputOptions, parse_shape
from trp_export.runtime.new_sizes import set_sizes

CONV = "<float[4, 3, 3, 3] w> { h = Conv <pads = [1, 1, 1, 1]> (x, w)\n y = Sigmoid (h) }"


WEIGHTS = "float[4, 3, 3, 3] w, int64[2] axes = {2, 3}"


def network(outputs: str, body: str, size: str = "10, 3, 32, 32") -> onnx.ModelProto:
    return build(f'<ir_version: 8, opset_import: ["" : 17]> net (float[{size}] x) => (float[{outputs}] y) {body}')


def at(model: onnx.ModelProto, shape: str, folder: Path) -> tuple[onnx.ModelProto, str]:
    """The model with the sizes of --shape, and what was changed."""
    changed = ir.from_proto(model)
    words = set_sizes(changed, InputOptions((parse_shape(shape),)), folder / "n.onnx")
    return ir.to_proto(changed), words


def sizes(values: list[onnx.ValueInfoProto]) -> list[list[int | str]]:
    return [[dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in values]


@pytest.mark.parametrize("shape", ["1,3,48,64", "x=2,3,32,32"])
def test_network_of_any_size_takes_the_new_one(shape: str, tmp_path: Path) -> None:
    changed, words = at(network("10, 4, 32, 32", CONV), shape, tmp_path)
    wanted = list(parse_shape(shape)[1])
    assert sizes(list(changed.graph.input)) == [wanted]
    assert sizes(list(changed.graph.output)) == [[wanted[0], 4, *wanted[2:]]]
    assert words.startswith("the file fixes input x to (10, 3, 32, 32), and the network runs at x=")


def test_open_sizes_stay_open(tmp_path: Path) -> None:
    changed, _ = at(network("N, 4, 32, 32", CONV, "N, 3, 32, 32"), "5,3,8,8", tmp_path)
    assert sizes([*changed.graph.input, *changed.graph.output]) == [["N", 3, 8, 8], ["N", 4, 8, 8]]


@pytest.mark.parametrize("shape", ["10,3,32,32", "10,1,32,32", "10,3,32", "z=1,3,8,8"])
def test_nothing_changes_where_sizes_agree_or_are_refused_elsewhere(shape: str, tmp_path: Path) -> None:
    model = network("10, 4, 32, 32", CONV)
    changed, words = at(model, shape, tmp_path)
    assert (words, sizes(list(changed.graph.input))) == ("", [[10, 3, 32, 32]])


@pytest.mark.parametrize(
    ("shape", "outputs", "body", "reason"),
    [
        ("10,3,48,48", "10, 5", "<float[3072, 5] w> { f = Flatten (x)\n y = MatMul (f, w) }", "does not run at these"),
        (
            "5,3,32,32",
            "10, 3072",
            "<int64[2] s = {10, -1}> { y = Reshape (x, s) }",
            r"\(10, 3072\) becomes \(10, 1536\)",
        ),
        (
            "10,3,48,48",
            "10, 4, 32, 32",
            "<float[4, 3, 1, 1] w, int64[4] s = {10, 4, 32, 32}> { h = Conv (x, w)\n y = Resize (h, , , s) }",
            r"holds a size inside: an output of shape \(10, 4, 32, 32\)",
        ),
        (
            "10,3,48,48",
            "10, 4, 1, 1",
            f"<{WEIGHTS}, int64[2] a = {{0, 0}}, int64[2] b = {{32, 32}}> "
            "{ h = Slice (x, a, b, axes)\n k = Conv (h, w)\n y = GlobalAveragePool (k) }",
            "holds a size inside: .* would cut 48 to 32",
        ),
    ],
)
def test_network_that_holds_a_size_is_refused(shape: str, outputs: str, body: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=reason) as caught:
        at(network(outputs, body), shape, tmp_path)
    assert "the file fixes input x to (10, 3, 32, 32)" in str(caught.value)
    assert "Leave --shape out, or export the network with open sizes." in str(caught.value)


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        (
            "<int64[2] a = {1, 1}, int64[2] b = {17, 17}> { h = Slice (x, a, b, axes)",
            "makes 16 of 48 there, as of 32 before",
        ),
        ("<int64[2] a = {1, 1}, int64[2] b = {-1, -1}> { h = Slice (x, a, b, axes)", None),
        ("<int64[2] a = {0, 0}, int64[2] b = {2, 2}> { h = Slice (x, a, b, axes)", None),
        ("<int64[4] s = {10, 3, 16, 16}> { h = Resize (x, , , s)", "makes 16 of 48 there, as of 32 before"),
        ("<float[4] s = {1, 1, 2, 2}> { h = Resize (x, , s)", None),
    ],
)
def test_what_keeps_a_size_inside_is_said(piece: str, words: str | None, tmp_path: Path) -> None:
    body = (
        piece.replace("<", f"<{WEIGHTS}, ", 1)
        + '\n k = Conv <auto_pad = "SAME_UPPER"> (h, w)\n y = GlobalAveragePool (k) }'
    )
    _, changed = at(network("10, 4, 1, 1", body), "10,3,48,48", tmp_path)
    assert changed.startswith("the file fixes")
    assert (words in changed) if words else changed.endswith("runs at x=10,3,48,48 as well")


def test_export_at_a_new_size_answers_as_the_original_at_its_own(tmp_path: Path) -> None:
    """Ten samples at a time and two: the same samples have the same answers."""
    model = network("10, 4, 32, 32", CONV)
    file, sized = save(model, tmp_path / "m.onnx"), InputOptions.of(2, 3, 32, 32)
    report = compress(file, Options(output=tmp_path / "r.onnx", inputs=sized, benchmark=Benchmark(run=False)))
    images = np.random.default_rng(0).standard_normal((10, 3, 32, 32)).astype(np.float32)
    (wanted,), (got,) = run(model, {"x": images}), run(onnx.load(tmp_path / "r.onnx"), {"x": images[:2]})
    assert relative_l2(wanted[:2], got) < 1e-6
    assert any("takes this size instead" in note for note in report.notes)
