"""Every decomposition through the rewriter and onnxruntime: exact at full rank, whatever the layer's attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from models import relative_l2, run
from networks import input_shapes
from onnx import TensorProto, helper, numpy_helper

from trp_export.graph.cost import count_macs, count_params
from trp_export.graph.prepare import prepare, remove_unused
from trp_export.graph.rewrite import read_factors, rewrite, set_products
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.sites import LocatedSite, find_sites
from trp_export.lowrank.branches import Pairs, factorise_branches
from trp_export.lowrank.schemes import MATRIX, SCHEMES, Branch, Scheme, scheme_named
from trp_export.lowrank.site import Site
from trp_export.lowrank.space import sliced_schemes
from trp_export.planning.plan import Decision, Plan

# Which of the schemes that a layer allows.
picks = st.integers(0, 27719)
EXTENT = 9


@st.composite
def conv_models(draw: st.DrawFn) -> onnx.ModelProto:
    """One Conv of one to three spatial axes, with any attributes that fit its input."""
    axes = draw(st.integers(1, 3))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    c, n = draw(st.integers(1, 3)), group * draw(st.integers(1, 4))
    kernel, strides, dilations = (
        draw(st.lists(st.integers(1, most), min_size=axes, max_size=axes)) for most in (4, 3, 2)
    )
    attributes: dict[str, Any] = {"group": group, "strides": strides}
    padding = draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID", "none"]))
    if padding == "pads":
        attributes["pads"] = draw(st.lists(st.integers(0, 2), min_size=2 * axes, max_size=2 * axes))
    elif padding != "none":
        attributes["auto_pad"] = padding
    if not padding.startswith("SAME"):  # onnxruntime has no dilation there.
        attributes["dilations"] = dilations
    weights = {"w": (n, c, *kernel)} | ({"b": (n,)} if draw(st.booleans()) else {})
    return one_layer("Conv", (2, c * group, *[EXTENT] * axes), weights, draw(seeds), **attributes)


seeds = st.integers(0, 2**32 - 1)


@st.composite
def conv_transpose_models(draw: st.DrawFn) -> onnx.ModelProto:
    """One ConvTranspose of one to three spatial axes, with any attributes that fit its input."""
    axes = draw(st.integers(1, 3))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    c, n = group * draw(st.integers(1, 3)), draw(st.integers(1, 4))
    kernel, strides, dilations = (
        draw(st.lists(st.integers(1, most), min_size=axes, max_size=axes)) for most in (4, 3, 2)
    )
    attributes: dict[str, Any] = {"group": group, "strides": strides, "dilations": dilations}
    padding = draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID", "none"]))
    if padding == "pads":
        attributes["pads"] = draw(st.lists(st.integers(0, 2), min_size=2 * axes, max_size=2 * axes))
    elif padding != "none":
        attributes["auto_pad"] = padding
    if draw(st.booleans()):
        attributes["output_padding"] = [draw(st.integers(0, max(stride, 1) - 1)) for stride in strides]
    weights = {"w": (c, n, *kernel)} | ({"b": (n * group,)} if draw(st.booleans()) else {})
    return one_layer("ConvTranspose", (2, c, *[4] * axes), weights, draw(seeds), **attributes)


@st.composite
def gemm_models(draw: st.DrawFn) -> onnx.ModelProto:
    c, n, rows = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    flags = {"transA": draw(st.integers(0, 1)), "transB": draw(st.integers(0, 1))}
    scales = {"alpha": draw(st.sampled_from([1.0, 0.5, -2.0])), "beta": draw(st.sampled_from([1.0, 0.0, 3.0]))}
    bias = draw(st.sampled_from([None, (), (1,), (n,), (1, n), (rows, 1), (rows, n)]))
    weights = {"w": (n, c) if flags["transB"] else (c, n)} | ({} if bias is None else {"b": bias})
    return one_layer("Gemm", (c, rows) if flags["transA"] else (rows, c), weights, draw(seeds), **flags, **scales)


@st.composite
def matmul_models(draw: st.DrawFn) -> onnx.ModelProto:
    c, n = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    leading = draw(st.lists(st.integers(1, 3), max_size=3))
    return one_layer("MatMul", (*leading, c), {"w": (c, n)}, draw(seeds))


def one_layer(
    op: str, data: tuple[int, ...], weights: dict[str, tuple[int, ...]], seed: int = 0, **attributes: Any
) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *arrays], ["y"], name="layer", **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, data)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def locate(proto: onnx.ModelProto) -> tuple[ir.Model, tuple[LocatedSite, ...]]:
    model = prepare(ir.serde.deserialize_model(proto))
    return model, find_sites(model, infer_shapes(model, input_shapes(model)))


def decompose(
    proto: onnx.ModelProto, scheme: Scheme | int, rank: int | None = None
) -> tuple[ir.Model, Plan, tuple[LocatedSite, ...], dict[str, Pairs]]:
    """The model with its one layer decomposed, at full rank unless told otherwise, and how that was done."""
    model, located = locate(proto)
    (place,) = located
    site = place.site
    chosen = picked(site, scheme) if isinstance(scheme, int) else scheme
    rank = min(rank or site.full_rank(chosen), site.full_rank(chosen))
    branches = (Branch(chosen, rank),)
    plan = Plan((Decision(site, branches, ""),), "test")
    factors = {site.name: factorise_branches(place.kernel(), branches, site.group)}
    rewrite(model, plan, located, factors)
    remove_unused(model)
    return model, plan, located, factors


def picked(site: Site, pick: int) -> Scheme:
    schemes = (MATRIX,) if site.is_matrix else (*dict.fromkeys((*SCHEMES.values(), *sliced_schemes(site))),)
    return schemes[pick % len(schemes)]


def answers(model: onnx.ModelProto) -> np.ndarray:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    (output,) = run(model, {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)})
    return output


def runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drops draws whose kernel is larger than the padded input, and such."""
    try:
        answers(model)
    except Exception:
        assume(False)
    return model


few = settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


@few
@given(st.one_of(conv_models(), conv_transpose_models(), gemm_models(), matmul_models()), picks)
def test_a_pair_of_full_rank_equals_the_layer(proto: onnx.ModelProto, pick: int) -> None:
    runnable(proto)
    model, *_ = decompose(proto, pick)
    made = ir.serde.serialize_model(model)
    onnx.shape_inference.infer_shapes(made, strict_mode=True)
    assert relative_l2(answers(proto), answers(made)) < 1e-5


@few
@given(st.one_of(conv_models(), conv_transpose_models(), gemm_models(), matmul_models()), picks, st.integers(1, 3))
def test_a_pair_equals_the_layer_with_the_product_as_kernel(proto: onnx.ModelProto, pick: int, rank: int) -> None:
    runnable(proto)
    model, plan, _, factors = decompose(proto, pick, rank)
    products, located = locate(proto)
    set_products(products, plan, located, factors)
    made, wanted = (answers(ir.serde.serialize_model(each)) for each in (model, products))
    # A product can be far smaller than its factors' rounding where beta, bias and weights nearly cancel.
    assert np.linalg.norm(made - wanted) <= 1e-5 * max(np.linalg.norm(wanted), 1.0)


@few
@given(st.one_of(conv_models(), conv_transpose_models()), picks, picks, st.data())
def test_a_sum_of_pairs_equals_the_layer_with_the_product_and_costs_what_the_plan_says(
    proto: onnx.ModelProto, first: int, second: int, data: st.DataObject
) -> None:
    """Where the second pair has full rank it takes back all that the first lost."""
    runnable(proto)
    model, located = locate(proto)
    (place,) = located
    site = place.site
    assume(not site.is_matrix)
    schemes = picked(site, first), picked(site, second)
    assume(schemes[0] != schemes[1])
    ranks = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, site.full_rank(schemes[1])]))
    branches = tuple(Branch(s, min(rank, site.full_rank(s))) for s, rank in zip(schemes, ranks, strict=True))
    plan = Plan((Decision(site, branches, ""),), "test")
    factors = {site.name: factorise_branches(place.kernel(), branches, site.group)}
    products, places = locate(proto)
    names = rewrite(model, plan, located, factors)
    remove_unused(model)
    read = read_factors(model, plan, names)[site.name]
    for own, wanted in zip(read, factors[site.name], strict=True):
        assert np.array_equal(own.reduce, wanted.reduce.astype(np.float32))
        assert np.array_equal(own.expand, wanted.expand.astype(np.float32))
    set_products(products, plan, places, factors)
    made, wanted, dense = (answers(ir.serde.serialize_model(m)) for m in (model, products, locate(proto)[0]))
    assert np.linalg.norm(made - wanted) <= 1e-5 * max(np.linalg.norm(wanted), 1.0)
    if branches[1].rank == site.full_rank(schemes[1]):
        assert np.linalg.norm(made - dense) <= 1e-5 * max(np.linalg.norm(dense), 1.0)
    assert plan.decisions[0].macs == count_macs(model, infer_shapes(model, input_shapes(model)))


@few
@given(st.one_of(conv_models(), conv_transpose_models(), gemm_models(), matmul_models()), picks, st.integers(1, 3))
def test_the_cost_of_a_site_equals_the_cost_of_its_nodes(proto: onnx.ModelProto, pick: int, rank: int) -> None:
    runnable(proto)
    untouched, _ = locate(proto)
    model, plan, (place,), _ = decompose(proto, pick, rank)
    (decision,) = plan.decisions
    inputs = input_shapes(model)
    assert place.site.macs == count_macs(untouched, infer_shapes(untouched, inputs))
    assert decision.macs == count_macs(model, infer_shapes(model, inputs))
    bias = sum(value.const_value.size for value in untouched.graph.initializers.values() if value.name == "b")
    assert decision.params + bias == count_params(model)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_break_even_is_where_the_pair_stops_saving(scheme: Scheme) -> None:
    _, (place,) = locate(one_layer("Conv", (1, 8, 12, 12), {"w": (16, 8, 3, 3)}, pads=[1] * 4, strides=[2, 2]))
    site = place.site
    rank = site.break_even(scheme)
    assert (rank - 1) * site.macs_per_rank(scheme) < site.macs <= rank * site.macs_per_rank(scheme)


def test_a_square_stride_one_conv_costs_what_the_table_says() -> None:
    _, (place,) = locate(one_layer("Conv", (1, 8, 12, 12), {"w": (16, 8, 3, 3)}, pads=[1] * 4))
    per_pixel = {name: place.site.macs_per_rank(scheme) / 144 for name, scheme in SCHEMES.items()}
    n, c, k = 16, 8, 3
    assert per_pixel == {
        "channel-wise": c * k * k + n,
        "spatial-wise": c * k + n * k,
        "spatial-wise-transposed": c * k + n * k,
        "pointwise-first": c + n * k * k,
        "network-decoupling": n * (c + k * k),
        "matrix": c * k * k + n,
    }


@pytest.mark.parametrize(("scheme", "paths"), [("input-sliced-8", 3), ("output-sliced-16", 3), ("input-sliced-4", 1)])
def test_slices_of_one_channel_run_as_paths_with_depthwise_convs(scheme: str, paths: int) -> None:
    chosen = scheme_named(scheme)
    assert chosen is not None
    model, *_ = decompose(one_layer("Conv", (1, 8, 12, 12), {"w": (16, 8, 3, 3)}, pads=[1] * 4), chosen, 3)
    nodes = list(model.graph)
    assert [node.op_type for node in nodes].count("Conv") == 2 * paths
    groups = {node.attributes.get_int("group", 1) for node in nodes if node.op_type == "Conv"}
    assert groups == {1, int(scheme.rpartition("-")[2])}
