"""Parts of networks run as they do inside the whole."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from ends import branches
from networks import make_images, make_network

from trp_export.graph.prepare import prepare
from trp_export.runtime.incremental import Walk
from trp_export.runtime.partial import Tap, cut_out, extract, serialise
from trp_export.runtime.sessions import open_session, run_session


def test_a_part_between_inner_values_gives_what_the_whole_gives() -> None:
    model, _ = make_network()
    images = make_images(4).inputs
    whole = Tap(model, ["x"], ["r0", "c2", "y"])({"x": images})
    part = Tap(model, ["r0"], ["c2"], types={"r0": np.dtype(np.float32)})
    np.testing.assert_allclose(part({"r0": whole["r0"]})["c2"], whole["c2"], atol=1e-5)


def test_a_part_leaves_out_inputs_that_it_does_not_need() -> None:
    model, _ = make_network()
    part = extract(model, ["x", "r1"], ["c2"], {"r1": np.dtype(np.float32)})
    assert [value.name for value in part.graph.inputs] == ["r1"]
    assert [node.op_type for node in part.graph] == ["Conv"]
    assert len(model.graph.inputs) == 1


def test_the_body_of_an_if_is_cut_out_with_what_it_reads_from_outside() -> None:
    model = prepare(ir.serde.deserialize_model(branches()))
    conv = next(node for node in model.graph.all_nodes() if node.outputs[0].name == "y1")
    value = conv.inputs[0]
    assert value is not None
    part = cut_out(model, {value}, [conv.outputs[0]], {"e": np.dtype(np.float32)})
    assert [start.name for start in part.graph.inputs] == ["e"]
    data = np.ones((1, 16, 12, 24), np.float32)
    (answer,) = run_session(open_session(serialise(part)), {"e": data})
    assert answer.shape == data.shape


def test_a_walk_keeps_a_value_until_its_last_stop() -> None:
    model, _ = make_network()
    images = make_images(4).inputs
    with pytest.raises(ValueError, match="c1 lies behind"):
        _stop_at(Walk(model, [{"x": images}]), ["r2"], ["c1"])
    walk = Walk(model, [{"x": images}], stops=[["r2"], ["c1", "r2"]])
    assert walk.to(["r2"]) is None
    assert {"c1", "r2"} <= walk.values.keys()


def _stop_at(walk: Walk, *stops: list[str]) -> None:
    for names in stops:
        walk.to(names)
