"""Hard sigmoids and hard swishes in one operator, held against onnxruntime; and left alone where they are others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, noise, relative_l2, run

from trp_export.graph.exact.hard_swish import write_hard_sigmoids
from trp_export.graph.prepare import prepare, remove_unused

IN, OUT = "float[N, 4, 5, 5] x", "float[N, 4, 5, 5] y"


def text(body: str, opset: int = 17) -> str:
    constants = "float three = {3.0}, float zero = {0.0}, float six = {6.0}, float[1] sixth = {0.16666667}"
    constants += ", float[1, 1, 1, 1, 1] wide = {3.0}, float two = {2.0}"
    return f'<ir_version: 8, opset_import: ["" : {opset}]>\nnet ({IN}) => ({OUT}) <{constants}> {{ {body} }}'


HEAD = "a = Add (x, three)  b = Clip (a, zero, six)"
WRITTEN = {
    "hard sigmoid": f"{HEAD}  y = Div (b, six)",
    "hard sigmoid by a product": f"{HEAD}  y = Mul (sixth, b)",
    "hard swish": f"{HEAD}  c = Mul (x, b)  y = Div (c, six)",
    "hard swish by a product": f"{HEAD}  c = Mul (b, x)  y = Mul (c, sixth)",
    "hard swish of the sigmoid": f"{HEAD}  c = Div (b, six)  y = Mul (x, c)",
    "the constant first": "a = Add (three, x)  b = Clip (a, zero, six)  y = Div (b, six)",
    "the sum has another reader": f"{HEAD}  c = Div (b, six)  y = Add (c, a)",
}
OTHERS = {
    "another height": f"{HEAD}  y = Div (b, two)",
    "another floor": "a = Add (x, three)  b = Clip (a, two, six)  y = Div (b, six)",
    "no ceiling": "a = Add (x, three)  b = Clip (a, zero)  y = Div (b, six)",
    "the clip has another reader": f"{HEAD}  c = Div (b, six)  y = Add (c, b)",
    "divided the other way": f"{HEAD}  e = Add (b, three)  y = Div (six, e)",
    "times another value": f"{HEAD}  e = Relu (x)  c = Mul (e, b)  y = Div (c, six)",
    "more axes": "a = Add (x, wide)  b = Clip (a, zero, six)  c = Div (b, six)  y = Squeeze (c)",
}


def write(body: str, opset: int = 17) -> tuple[int, list[str], float]:
    proto = build(text(body, opset))
    model = prepare(ir.serde.deserialize_model(proto))
    count = write_hard_sigmoids(model)
    remove_unused(model)
    made = ir.serde.serialize_model(model)
    x = {"x": 4 * noise(proto)["x"]}
    return count, [node.op_type for node in made.graph.node], relative_l2(run(proto, x)[0], run(made, x)[0])


@pytest.mark.parametrize("body", WRITTEN.values(), ids=WRITTEN)
def test_it_becomes_one_operator(body: str) -> None:
    count, operators, distance = write(body)
    assert count == 1
    assert "HardSigmoid" in operators
    assert not {"Clip", "Div"} & {*operators}
    assert distance < 1e-6


def test_one_may_read_another() -> None:
    swish = (
        "{to}a = Add ({of}, three)  {to}b = Clip ({to}a, zero, six)  {to}c = Mul ({of}, {to}b)  {to} = Div ({to}c, six)"
    )
    body = "  ".join(swish.format(to=to, of=of) for of, to in (("x", "p"), ("p", "q"), ("q", "y")))
    count, operators, distance = write(body)
    assert (count, operators) == (3, ["HardSigmoid", "Mul"] * 3)
    assert distance < 1e-6


def test_a_clip_with_attributes_is_recognised() -> None:
    count, operators, distance = write(
        "a = Add (x, three)  b = Clip <min = 0.0, max = 6.0> (a)  c = Mul (x, b)  y = Div (c, six)", opset=10
    )
    assert (count, operators) == (1, ["HardSigmoid", "Mul"])
    assert distance < 1e-6


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_others_stay(body: str) -> None:
    count, operators, distance = write(body)
    assert count == 0
    assert "HardSigmoid" not in operators
    assert distance == 0


@settings(max_examples=50, deadline=None)
@given(
    shift=st.floats(-5, 5, width=32), height=st.floats(0.125, 10, width=32), x=st.floats(-20, 20, width=32)
)  # fmt: skip
def test_the_operator_computes_the_same_numbers(shift: float, height: float, x: float) -> None:
    written = np.clip((x + shift) / height, 0, 1)
    assert np.clip(x * (1 / height) + shift / height, 0, 1) == pytest.approx(written, abs=1e-12)
