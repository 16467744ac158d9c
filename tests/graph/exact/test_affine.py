"""What scales and shifts is folded into the layer before it, held against onnxruntime; or stays where it must."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from models import build, noise, relative_l2, run

from trp_export.graph.exact.affine import fold_affine
from trp_export.graph.prepare import prepare, remove_unused

NORM = "float[8] g, float[8] s, float[8] m, float[8] v"


def text(body: str, weights: str, out: str = "float[N, M, H, W] y", data: str = "float[N, 4, 12, 12] x") -> str:
    return f'<ir_version: 8, opset_import: ["" : 17]>\nnet ({data}) => ({out}) <{weights}, {NORM}> {{ {body} }}'


def fold(proto: onnx.ModelProto) -> tuple[int, onnx.ModelProto]:
    model = prepare(ir.serde.deserialize_model(proto))
    folded = fold_affine(model)
    remove_unused(model)
    return folded, ir.serde.serialize_model(model)


CONV = "Conv <pads = [1, 1, 1, 1]>"
FOLDS = {
    "conv": text(f"a = {CONV} (x, w)  y = BatchNormalization <epsilon = 0.01> (a, g, s, m, v)", "float[8, 4, 3, 3] w"),
    "conv with bias": text(
        f"a = {CONV} (x, w, b)  y = BatchNormalization (a, g, s, m, v)", "float[8, 4, 3, 3] w, float[8] b"
    ),
    "sum of convs": text(
        f"a = {CONV} (x, w, b)  c = {CONV} (x, u)  d = {CONV} (x, t)  e = Add (a, c)  f = Add (e, d)"
        "  y = BatchNormalization (f, g, s, m, v)",
        "float[8, 4, 3, 3] w, float[8] b, float[8, 4, 3, 3] u, float[8, 4, 3, 3] t",
    ),
    "transposed conv": text(
        "a = ConvTranspose <strides = [2, 2]> (x, w)  y = BatchNormalization (a, g, s, m, v)", "float[4, 8, 3, 3] w"
    ),
    "grouped transposed conv": text(
        "a = ConvTranspose <group = 2> (x, w, b)  y = BatchNormalization (a, g, s, m, v)",
        "float[4, 4, 3, 3] w, float[8] b",
    ),
    "gemm": text(
        "a = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)  y = BatchNormalization (a, g, s, m, v)",
        "float[4, 8] w, float[8] b", "float[N, 8] y", "float[N, 4] x",
    ),
    "gemm, one bias for all": text(
        "a = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)  y = BatchNormalization (a, g, s, m, v)",
        "float[8, 4] w, float[1] b", "float[N, 8] y", "float[N, 4] x",
    ),
    "gemm without bias": text(
        "a = Gemm <transB = 1, alpha = 0.5> (x, w)  y = BatchNormalization (a, g, s, m, v)",
        "float[8, 4] w", "float[N, 8] y", "float[N, 4] x",
    ),
    "weight behind a transpose": text(
        f"t = Transpose <perm = [3, 2, 0, 1]> (w)  a = {CONV} (x, t)  y = BatchNormalization (a, g, s, m, v)",
        "float[3, 3, 4, 8] w",
    ),
    "bias shared with another layer": text(
        f"a = {CONV} (x, w, b)  c = BatchNormalization (a, g, s, m, v)  d = {CONV} (x, u, b)  y = Add (c, d)",
        "float[8, 4, 3, 3] w, float[8, 4, 3, 3] u, float[8] b",
    ),
}  # fmt: skip

K = "float[8, 4, 3, 3] w, float[8] b"
CONSTANTS = {
    "one number is added": (f"a = {CONV} (x, w)  y = Add (a, c)", f"{K}, float c"),
    "one number of a batch is added": (f"a = {CONV} (x, w, b)  y = Add (c, a)", f"{K}, float[1, 1, 1, 1] c"),
    "a number for each channel is added": (f"a = {CONV} (x, w, b)  y = Add (a, c)", f"{K}, float[8, 1, 1] c"),
    "channels are subtracted": (f"a = {CONV} (x, w, b)  y = Sub (a, c)", f"{K}, float[1, 8, 1, 1] c"),
    "it is subtracted from channels": (f"a = {CONV} (x, w, b)  y = Sub (c, a)", f"{K}, float[8, 1, 1] c"),
    "channels are scaled": (f"a = {CONV} (x, w, b)  y = Mul (c, a)", f"{K}, float[8, 1, 1] c"),
    "it is divided by channels": (f"a = {CONV} (x, w, b)  y = Div (a, c)", f"{K}, float[8, 1, 1] c"),
    "one after the other": (
        f"a = {CONV} (x, w, b)  e = Mul (a, c)  f = Add (e, d)  y = BatchNormalization (f, g, s, m, v)",
        f"{K}, float[1] c, float[1] d",
    ),
    "a sum of convs is scaled": (
        f"a = {CONV} (x, w, b)  e = {CONV} (x, u)  f = Add (a, e)  h = Mul (f, c)  y = Add (h, d)",
        f"{K}, float[8, 4, 3, 3] u, float[8, 1, 1] c, float[1] d",
    ),
    "a transposed conv": (
        "a = ConvTranspose <group = 2> (x, w, b)  e = Mul (a, c)  y = Add (e, d)",
        "float[4, 4, 3, 3] w, float[8] b, float[8, 1, 1] c, float[1] d",
    ),
}  # fmt: skip
LEFT = {
    "it is divided by the layer": (f"a = {CONV} (x, w, b)  y = Div (c, a)", f"{K}, float[8, 1, 1] c"),
    "each column has a number": (f"a = {CONV} (x, w, b)  y = Add (a, c)", f"{K}, float[12] c"),
    "the channels become more": ("a = Conv (x, w)  y = Mul (a, c)", "float[1, 4, 1, 1] w, float[8, 1, 1] c"),
    "the axes become more": (f"a = {CONV} (x, w, b)  e = Mul (a, c)  y = Squeeze (e)", f"{K}, float[1, 1, 1, 1, 1] c"),
    "both are computed": (f"a = {CONV} (x, w, b)  e = Relu (a)  y = Mul (a, e)", K),
    "matrices and maps are added": (
        "a = Conv (x, w)  p = GlobalAveragePool (x)  f = Flatten (p)  e = Gemm <transB = 1> (f, u)"
        "  h = Add (e, a)  y = Mul (h, c)",
        "float[8, 4, 1, 1] w, float[12, 4] u, float[12] c",
    ),
}  # fmt: skip

STAYS = {
    "something else reads the conv": text(
        f"a = {CONV} (x, w)  c = BatchNormalization (a, g, s, m, v)  y = Add (a, c)", "float[8, 4, 3, 3] w"
    ),
    "the conv is an output": text(
        f"a = {CONV} (x, w)  y = BatchNormalization (a, g, s, m, v)", "float[8, 4, 3, 3] w",
        "float[N, M, H, W] y, float[N, M, H, W] a",
    ),
    "the weight serves two convs, one without batch norm": text(
        f"a = {CONV} (x, w)  c = BatchNormalization (a, g, s, m, v)  d = {CONV} (x, w)  y = Add (c, d)",
        "float[8, 4, 3, 3] w",
    ),
    "the weight serves two convs with unlike batch norms": text(
        f"a = {CONV} (x, w)  c = BatchNormalization (a, g, s, m, v)  d = {CONV} (x, w)"
        "  e = BatchNormalization (d, g, s, s, v)  y = Add (c, e)",
        "float[8, 4, 3, 3] w",
    ),
    "the weight serves two convs, one of them transposed": text(
        "t = Transpose <perm = [1, 0, 2, 3]> (w)  a = Conv (x, w)  c = BatchNormalization (a, g, s, m, v)"
        "  d = Conv (x, t)  e = BatchNormalization (d, g, s, m, v)  y = Add (c, e)",
        "float[8, 8, 3, 3] w", data="float[N, 8, 12, 12] x",
    ),
    "one conv twice in the sum": text(
        f"a = {CONV} (x, w)  c = Add (a, a)  y = BatchNormalization (c, g, s, m, v)", "float[8, 4, 3, 3] w"
    ),
    "an activation lies between": text(
        f"a = {CONV} (x, w)  r = Relu (a)  y = BatchNormalization (r, g, s, m, v)", "float[8, 4, 3, 3] w"
    ),
    "the sum takes in something else": text(
        f"a = {CONV} (x, w)  c = Add (a, other)  y = BatchNormalization (c, g, s, m, v)",
        "float[8, 4, 3, 3] w", data="float[N, 4, 12, 12] x, float[N, 8, 12, 12] other",
    ),
    "a smaller term is spread over the sum": text(
        f"a = {CONV} (x, w)  z = Conv (k, u)  c = Add (a, z)  y = BatchNormalization (c, g, s, m, v)",
        "float[8, 4, 3, 3] w, float[1, 4, 1, 1] u", data="float[N, 4, 12, 12] x, float[N, 4, 12, 12] k",
    ),
    "the bias is a matrix": text(
        "a = Gemm (x, w, b)  y = BatchNormalization (a, g, s, m, v)",
        "float[4, 8] w, float[2, 8] b", "float[N, 8] y", "float[N, 4] x",
    ),
    "the bias goes over the rows": text(
        "a = Gemm (x, w, b)  y = BatchNormalization (a, g, s, m, v)",
        "float[4, 8] w, float[8, 1] b", "float[8, 8] y", "float[8, 4] x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", FOLDS.values(), ids=FOLDS)
def test_folding_keeps_the_outputs(model: str) -> None:
    proto = build(model)
    folded, made = fold(proto)
    assert folded == 1
    assert "BatchNormalization" not in {node.op_type for node in made.graph.node}
    onnx.checker.check_model(made, full_check=True)
    assert relative_l2(*(run(each, noise(proto))[0] for each in (proto, made))) < 1e-5


@pytest.mark.parametrize(("body", "weights"), CONSTANTS.values(), ids=CONSTANTS)
def test_constants_are_folded(body: str, weights: str) -> None:
    proto = build(text(body, weights))
    folded, made = fold(proto)
    operators = [node.op_type for node in made.graph.node]
    assert folded > 0
    assert not {"Mul", "Div", "Sub", "BatchNormalization"} & {*operators}
    assert operators.count("Add") == operators.count("Conv") - 1 if "Conv" in operators else "Add" not in operators
    assert relative_l2(*(run(each, noise(proto))[0] for each in (proto, made))) < 1e-5


@pytest.mark.parametrize(("body", "weights"), LEFT.values(), ids=LEFT)
def test_constants_that_do_not_fit_a_layer_stay(body: str, weights: str) -> None:
    out = "float[M, K, H, W] y"
    data = "float[12, 4, 12, 12] x" if "Gemm" in body else "float[N, 4, 12, 12] x"
    proto = build(text(body, weights, out, data))
    folded, made = fold(proto)
    assert folded == 0
    assert relative_l2(*(run(each, noise(proto))[0] for each in (proto, made))) < 1e-6


@pytest.mark.parametrize("model", STAYS.values(), ids=STAYS)
def test_a_batch_norm_that_cannot_be_folded_stays(model: str) -> None:
    proto = build(model)
    folded, made = fold(proto)
    assert folded == 0
    for wanted, got in zip(run(proto, noise(proto)), run(made, noise(proto)), strict=True):
        assert relative_l2(wanted, got) < 1e-6


SHARED = {
    "two sizes": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w, b)  c = BatchNormalization (a, g, s, m, v)"
        "  d = Conv <strides = [2, 2]> (x, w, b)  e = BatchNormalization (d, g, s, m, v)"
        "  p = GlobalAveragePool (c)  q = GlobalAveragePool (e)  y = Add (p, q)"
    ),
    "unlike biases": (
        f"a = {CONV} (x, w, b)  c = BatchNormalization (a, g, s, m, v)"
        f"  d = {CONV} (x, w, k)  e = BatchNormalization (d, g, s, m, v)  y = Add (c, e)"
    ),
    "sums of shared convs": (
        f"a = {CONV} (x, w, b)  a2 = {CONV} (x, u)  a3 = Add (a, a2)  c = BatchNormalization (a3, g, s, m, v)"
        f"  z = Neg (x)  d = {CONV} (z, w, b)  d2 = {CONV} (z, u)  d3 = Add (d, d2)"
        "  e = BatchNormalization (d3, g, s, m, v)  r = Relu (c)  y = Add (r, e)"
    ),
    "one use in a branch": (
        f"a = {CONV} (x, w, b)  c = BatchNormalization (a, g, s, m, v)  t = ReduceMax <keepdims = 0> (x)"
        f"  z = CastLike (t, n)  e = If (z) <then_branch = yes () => (h) {{ d = {CONV} (x, w, b)"
        "  h = BatchNormalization (d, g, s, m, v) }, else_branch = no () => (l) { l = Neg (c) }>  y = Add (c, e)"
    ),
}


@pytest.mark.parametrize("body", SHARED.values(), ids=SHARED)
def test_a_shared_weight_is_scaled_once(body: str) -> None:
    extra = "float[8] k, float[8, 4, 3, 3] u, bool n"
    proto = build(text(body, f"float[8, 4, 3, 3] w, float[8] b, {extra}"))
    folded, made = fold(proto)
    assert folded == 2
    kernels = [name for name in (tensor.name for tensor in made.graph.initializer) if name in ("w", "u")]
    assert sorted(kernels) == sorted(name for name in ("w", "u") if f", {name}" in body)
    assert len(made.graph.initializer) <= len(kernels) + 1 + ("k" in body.split("d =")[1]) + ("If" in body)
    assert relative_l2(*(run(each, noise(proto))[0] for each in (proto, made))) < 1e-5


def test_a_chain_of_batch_norms_is_folded_completely() -> None:
    proto = build(text(
        f"a = {CONV} (x, w)  c = BatchNormalization (a, g, s, m, v)  y = BatchNormalization (c, g, s, m, v)",
        "float[8, 4, 3, 3] w",
    ))  # fmt: skip
    folded, made = fold(proto)
    assert folded == 2
    assert relative_l2(*(run(each, noise(proto))[0] for each in (proto, made))) < 1e-5
