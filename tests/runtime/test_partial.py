"""Parts of networks run as they do inside the whole."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from ends import branches
from models import build
from networks import make_images, make_network

from trp_export.graph.prepare import prepare
from trp_export.runtime.incremental import Walk
from trp_export.runtime.partial import Tap, cut_out, extract, is_tensor, serialise
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


BFLOAT16 = """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y)
<float[4, 4, 3, 3] w__weight>
{ a = Relu (x)  b = Cast <to = 16> (a)  c = Neg (x)  d = Cast <to = 1> (b)  e = Add (c, d)
  y = Conv <pads = [1, 1, 1, 1]> (e, w__weight) }"""


def test_a_walk_passes_values_of_a_type_that_numpy_lacks() -> None:
    model = prepare(ir.serde.deserialize_model(build(BFLOAT16)))
    images = np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(np.float32)
    walk = Walk(model, [{"x": images}])
    walk.to(["c"])
    (got,) = walk.run(["y"])["y"]
    np.testing.assert_allclose(got, Tap(model, ["x"], ["y"])({"x": images})["y"], atol=1e-5)


SEQUENCE = """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y)
<float[4, 2, 3, 3] w__weight, int64 one = {1}, int64 two = {2}>
{ a = Relu (x)  s = SplitToSequence <axis = 1> (a, two)  t = Identity (s)  r = Neg (a)  b = SequenceAt (t, one)
  y = Conv <pads = [1, 1, 1, 1]> (b, w__weight) }"""


def test_a_walk_passes_sequences_without_keeping_them() -> None:
    model = ir.serde.deserialize_model(build(SEQUENCE))
    batch = {"x": np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(np.float32)}
    walk = Walk(model, [batch])
    walk.to(["r"])
    assert "a" in walk.values
    assert not {"s", "t"} & walk.values.keys()
    (found,) = walk.run(["y"])["y"]
    np.testing.assert_array_equal(found, Tap(model, ["x"], ["y"])(batch)["y"])


def test_sequences_are_told_from_tensors_also_behind_branches() -> None:
    text = SEQUENCE.replace(
        "t = Identity (s)",
        """t = If (yes) <
        then_branch = p () => (seq(float) p1) { p1 = Identity (s) },
        else_branch = q () => (seq(float) q1) { q1 = SplitToSequence <axis = 1> (a, two) }>""",
    )
    text = text.replace("int64 two", "bool yes = {1}, int64 two")
    model = ir.serde.deserialize_model(build(text))
    made = {value.name: value for node in model.graph for value in node.outputs}
    for value in made.values():
        value.type = None
    assert {name for name, value in made.items() if not is_tensor(value)} == {"s", "t"}


def _stop_at(walk: Walk, *stops: list[str]) -> None:
    for names in stops:
        walk.to(names)
