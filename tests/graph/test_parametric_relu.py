"""A parametric ReLU in other operators gives the same numbers, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from trp_export.graph.exact import has_parametric_relus, write_leaky_relus, write_parametric_relus

SPECIAL = np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1.0, -1.0], np.float32)


def network(slopes: np.ndarray, shape: tuple[object, ...], kind: type = np.float32) -> onnx.ModelProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        [helper.make_node("PRelu", ["x", "a"], ["y"], name="act")],
        "g",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("y", element, shape)],
        [numpy_helper.from_array(slopes.astype(kind), "a")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=6),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_slopes_of_channels_in_convs_change_no_bit(slopes: list[float], with_batch: bool, seed: int) -> None:
    a = np.array(slopes, np.float32).reshape((1,) * with_batch + (-1, 1, 1))
    x = np.random.default_rng(seed).standard_normal((2, len(slopes), 3, 4)).astype(np.float32)
    x.reshape(-1)[: SPECIAL.size] = SPECIAL
    proto = network(a, ("n", len(slopes), "h", "w"))
    model = ir.serde.deserialize_model(proto)
    assert has_parametric_relus(model)
    assert write_parametric_relus(model) == 1
    assert operators(model) == ["Relu", "Conv", "Relu", "Conv", "Add"]
    assert not has_parametric_relus(model)
    np.testing.assert_array_equal(run(ir.serde.serialize_model(model), x), run(proto, x))


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1), ()])
def test_one_slope_is_that_of_a_leaky_relu(shape: tuple[int, ...]) -> None:
    proto = network(np.full(shape, 0.3), ("n", 4, 3, 3))
    model = ir.serde.deserialize_model(proto)
    assert write_leaky_relus(model) == 1
    assert operators(model) == ["LeakyRelu"]
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(run(ir.serde.serialize_model(model), x), run(proto, x))


@pytest.mark.parametrize(
    ("slopes", "shape", "kind"),
    [
        (np.ones((4, 3, 3)), ("n", 4, 3, 3), np.float32),  # a slope for each entry
        (np.ones(3), ("n", 4, 3, 3), np.float32),  # a slope for each column
        (np.ones((4, 1, 1)), ("n", 4, 3, 3), np.float16),
        (np.ones((4, 1)), ("n", 4, 3), np.float32),
    ],
)
def test_others_stay(slopes: np.ndarray, shape: tuple[object, ...], kind: type) -> None:
    model = ir.serde.deserialize_model(network(slopes, shape, kind))
    assert not has_parametric_relus(model)
    assert write_parametric_relus(model) == write_leaky_relus(model) == 0


def test_slopes_that_are_computed_stay() -> None:
    proto = network(np.ones((4, 1, 1)), ("n", 4, 3, 3))
    del proto.graph.initializer[:]
    proto.graph.input.append(helper.make_tensor_value_info("a", 1, (4, 1, 1)))
    assert not has_parametric_relus(ir.serde.deserialize_model(proto))
