"""onnxruntime's failures are said in one line without its decoration, and it computes what a file says."""

from __future__ import annotations

import numpy as np
import pytest
from models import build, relative_l2

from trp_export.runtime.sessions import CannotRunError, open_session, run_session

RESHAPE = """<ir_version: 8, opset_import: ["": 17]>
net (float[n, 4] x) => (float[2, 3] y) <int64[2] s = {2, 3}> { y = Reshape (x, s) }
"""


@pytest.mark.parametrize("name", ["", "head/view"])
def test_node_that_fails_is_named_with_the_reason(name: str) -> None:
    model = build(RESHAPE)
    model.graph.node[0].name = name
    session = open_session(model.SerializeToString())
    with pytest.raises(CannotRunError) as caught:
        run_session(session, {"x": np.zeros((3, 4), np.float32)})
    where = f"Reshape {name}: " if name else "Reshape: "
    assert str(caught.value).startswith(where + "input_shape_size == requested_shape_size was false")


def test_input_of_another_rank_is_named_without_the_category() -> None:
    session = open_session(build(RESHAPE).SerializeToString())
    with pytest.raises(CannotRunError, match=r"^Invalid rank for input: x"):
        run_session(session, {"x": np.zeros(4, np.float32)})


def test_activations_are_not_rounded_where_weights_are_unpacked() -> None:
    weights = "int8[64, 32] k, float s = {0.01}"
    text = "net (float[4, 64] x) => (float[4, 32] y) <%s> { w = DequantizeLinear (k, s)  y = MatMul (x, w) }"
    model = build('<ir_version: 8, opset_import: ["": 17]>' + text % weights).SerializeToString()
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)}
    wanted, got = (run_session(open_session(model, optimise=optimise), feeds)[0] for optimise in (False, True))
    assert relative_l2(wanted, got) < 1e-6
