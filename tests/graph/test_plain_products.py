"""An Einsum that is a matrix product, and weights with leading axes of 1, are layers as a MatMul is."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from models import build, changed, export, noise, relative_l2, run, save
from onnx import ModelProto

from trp_export.graph.prepare import prepare
from trp_export.graph.sites import find_sites


def network(body: str, weights: str, data: str = "float[2, 5, 12] x", out: str = "float[B, T, N] y") -> ModelProto:
    return build(f'<ir_version: 8, opset_import: ["" : 17]>\nnet ({data}) => ({out}) <{weights}> {{ {body} }}')


def einsum(equation: str, inputs: str = "x, w__weight") -> str:
    return f'y = Einsum <equation = "{equation}"> ({inputs})'


PLAIN = {
    "matrix": (einsum("bti, io -> bto"), "float[12, 10] w__weight"),
    "turned": (einsum("bti,oi->bto"), "float[10, 12] w__weight"),
    "weight first": (einsum("oi,bti->bto", "w__weight, x"), "float[10, 12] w__weight"),
    "dots": (einsum("...i,io->...o"), "float[12, 10] w__weight"),
    "one": ("y = MatMul (x, w__weight)", "float[1, 12, 10] w__weight"),
    "one, turned": ("v = Transpose <perm = [0, 2, 1]> (w__weight)  y = MatMul (x, v)", "float[1, 10, 12] w__weight"),
    "one, twice": ("a = MatMul (x, w__weight)  b = Relu (a)  y = MatMul (b, w__weight)", "float[1, 12, 12] w__weight"),
    "square, turned": (einsum("bti,oi->bto"), "float[12, 12] w__weight"),
}


@pytest.mark.parametrize(("body", "weights"), PLAIN.values(), ids=PLAIN)
def test_plain_products_are_layers(body: str, weights: str, tmp_path: Path) -> None:
    proto = network(body, weights)
    report = export(save(proto, tmp_path / "model.onnx"), output=tmp_path / "small.onnx")
    assert changed(report) == ["w"]
    assert report.after is not None
    assert (report.after.macs or 0) < (report.before.macs or 0)
    wanted, got = (run(each, noise(proto))[0] for each in (proto, tmp_path / "small.onnx"))
    assert wanted.shape == got.shape
    assert relative_l2(wanted, got) < 1e-5


EINSUM = "an Einsum is not factored"
OTHERS = {
    "data of fewer axes": ("y = MatMul (x, w)", "float[1, 12, 10] w", "float[5, 12] x", "its weight has 3 axes"),
    "another reader": (
        "a = MatMul (x, w)  s = ReduceLogSumExp (w)  y = Add (a, s)", "float[1, 12, 10] w", "float[2, 5, 12] x", "axes",
    ),
    "batched": (einsum("bti,bio->bto", "x, w"), "float[2, 12, 10] w", "float[2, 5, 12] x", EINSUM),
    "summed over two": (einsum("bti,io->bo", "x, w"), "float[12, 10] w", "float[2, 5, 12] x", EINSUM),
    "diagonal": (einsum("bii,io->bo", "x, w"), "float[12, 10] w", "float[2, 12, 12] x", EINSUM),
    "rows moved": (einsum("bti,io->tbo", "x, w"), "float[12, 10] w", "float[2, 5, 12] x", EINSUM),
    "outer": (einsum("bti,io->btio", "x, w"), "float[12, 10] w", "float[2, 5, 12] x", EINSUM),
}  # fmt: skip


@pytest.mark.parametrize(("body", "weights", "data", "why"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_plain_product_stays(body: str, weights: str, data: str, why: str) -> None:
    proto = network(body, weights, data, "y")
    model = prepare(ir.serde.deserialize_model(proto))
    (place, *_) = find_sites(model, {})
    assert why in (place.site.refusal or "")
    wanted, got = (run(each, noise(proto))[0] for each in (proto, ir.serde.serialize_model(model)))
    assert relative_l2(wanted, got) == 0
