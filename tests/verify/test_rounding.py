"""The bound on rounding holds for every entry, and is not much wider than it has to be."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from trp_export.verify.rounding import run_with_bounds


def matrix_product(weights: list[np.ndarray], bias: np.ndarray) -> ir.Model:
    """The model of x @ weights[0] @ ... + bias."""
    nodes, value = [], "x"
    for index in range(len(weights)):
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"v{index}"]))
        value = f"v{index}"
    nodes.append(helper.make_node("Add", [value, "b"], ["y"]))
    kind = helper.np_dtype_to_tensor_dtype(weights[0].dtype)
    constants = [numpy_helper.from_array(array, f"w{index}") for index, array in enumerate(weights)]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", kind, None)],
        [helper.make_tensor_value_info("y", kind, None)],
        [*constants, numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.serde.deserialize_model(model)


@given(
    seed=st.integers(0, 2**16),
    terms=st.sampled_from([1, 7, 64, 1000]),
    rank=st.sampled_from([1, 5, 60]),
    mean=st.sampled_from([0.0, 1.0, 100.0]),
    size=st.sampled_from([1e-23, 1e-12, 1.0, 1e6, 1e22]),
    dtype=st.sampled_from([np.float32, np.float16]),
)
def test_the_product_of_two_factors_lies_within_the_bound_of_the_exact_one(
    seed: int, terms: int, rank: int, mean: float, size: float, dtype: type
) -> None:
    if dtype is np.float16:
        size = 1.0
    rng = np.random.default_rng(seed)
    x = (size * (mean + rng.standard_normal((20, terms)))).astype(np.float32).astype(dtype)
    exact = [rng.standard_normal((terms, rank)), rng.standard_normal((rank, 30)) / rank]
    bias = (size * rng.standard_normal(30)).astype(dtype)
    stored = [array.astype(dtype) for array in exact]
    pair = run_with_bounds(matrix_product(stored, bias), {"x": x})
    dense = run_with_bounds(matrix_product([(exact[0] @ exact[1]).astype(dtype)], bias), {"x": x})
    truth = x.astype(np.float64) @ exact[0] @ exact[1] + bias
    for rounded in (pair, dense):
        assert (np.abs(rounded.output - truth) <= rounded.allowed).all()
    relative = np.linalg.norm(pair.allowed) / np.linalg.norm(truth)
    if size > 1e-19:  # The squares of smaller values underflow.
        assert relative < (1e-3 if dtype is np.float32 else 1.0)


def test_a_conv_in_float64_is_run_in_float32() -> None:
    """onnxruntime has no kernel for it."""
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((5, 4, 1, 1)), rng.standard_normal((2, 4, 3, 3))
    infos = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in "xy"]
    nodes, weights = [helper.make_node("Conv", ["x", "w"], ["y"])], [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph(nodes, "conv", infos[:1], infos[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rounded = run_with_bounds(ir.serde.deserialize_model(model), {"x": x})
    truth = np.einsum("oi,nihw->nohw", weight[..., 0, 0], x)
    assert (np.abs(rounded.output - truth) <= rounded.allowed).all()
    assert np.linalg.norm(rounded.allowed) / np.linalg.norm(truth) < 1e-5


def test_a_difference_of_a_thousandth_is_outside_the_bound_of_the_largest_layers() -> None:
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((4608, 256)).astype(np.float32), rng.standard_normal((256, 8)).astype(np.float32)]
    x = np.abs(rng.standard_normal((50, 4608))).astype(np.float32)
    rounded = run_with_bounds(matrix_product(weights, np.zeros(8, np.float32)), {"x": x})
    assert np.max(1e-3 * np.abs(rounded.output) / rounded.allowed) > 10


def test_integers_must_be_equal() -> None:
    shape = helper.make_graph(
        [helper.make_node("Shape", ["x"], ["y"])],
        "shape",
        [helper.make_tensor_value_info("x", 1, None)],
        [helper.make_tensor_value_info("y", 7, None)],
    )
    model = helper.make_model(shape, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rounded = run_with_bounds(ir.serde.deserialize_model(model), {"x": np.zeros((2, 3), np.float32)})
    assert rounded.output.tolist() == [2, 3]
    assert not rounded.allowed.any()


def test_a_part_that_is_not_linear_is_measured_by_moving_its_inputs() -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Sigmoid", ["a"], ["y"])],
        "gate",
        [helper.make_tensor_value_info("x", 1, None)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.ones((8, 4), np.float32), "w")],
    )
    model = ir.serde.deserialize_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    rounded = run_with_bounds(model, {"x": x})
    assert (rounded.allowed > 0).all()
    assert (rounded.allowed < 1e-5).all()
    assert rounded.output == pytest.approx(
        1 / (1 + np.exp(-x.astype(np.float64).sum(1, keepdims=True).repeat(4, 1))), abs=1e-6
    )
