"""onnxruntime's failures are said in one line without its decoration."""

from __future__ import annotations

import numpy as np
import pytest
from models import build

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
