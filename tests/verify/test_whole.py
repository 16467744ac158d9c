"""Whole models are compared where rounding cannot turn one answer into another, and whatever their outputs are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from captured import capture
from command import Command
from ends import branches, detector, non_maximum_suppression, recurrent, saturated_classifier, top_k
from models import build, export, save
from networks import in_batches

from trp_export.errors import UnsupportedError, VerifyError
from trp_export.graph.prepare import prepare
from trp_export.verify import compare_on_calibration_images
from trp_export.verify.whole import Points, explained_by_casts, find_points
from verify.conftest import Make

BODY = """<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 3, 16, 16] x) => ({outputs})
<float[8, 3, 3, 3] w__weight{weights}>
{{ a = Conv <pads = [1, 1, 1, 1]> (x, w__weight) {nodes} }}"""


def network(outputs: str, nodes: str, weights: str = "") -> ir.Model:
    return prepare(ir.serde.deserialize_model(build(BODY.format(outputs=outputs, nodes=nodes, weights=weights))))


def points(model: ir.Model) -> Points:
    return find_points(model, {value.name or "" for node in model.graph for value in node.outputs})


@pytest.mark.parametrize(
    ("outputs", "nodes", "exact", "ends"),
    [
        ("float[1, 8, 16, 16] y", "y = Relu (a)", ["y"], ["y"]),
        ("float[1, 8, 16, 16] y", "y = Sigmoid (a)", ["a"], ["y"]),
        ("float[1, 2048] y", "b = Sigmoid (a) y = Reshape (b, flat)", ["a"], ["y"]),
        ("float[1, 16, 16, 16] y", "b = Sigmoid (a) y = Concat <axis = 1> (a, b)", ["a"], ["y"]),
        ("float[1, 8, 16, 16] y", "b = Sigmoid (a) y = Mul (a, b)", ["y"], ["y"]),
        ("float[1, 8, 16, 16] y", "y = Round (a)", ["a"], ["a"]),
        ("int64[1, 1, 16, 16] y", "b = Sigmoid (a) y = ArgMax <axis = 1> (b)", ["a"], ["b"]),
        ("float[1, 8, 16, 16] y", "b = Round (a) c = Mul (b, a) y = Relu (c)", ["a"], ["a"]),
        ("int64[4] y", "y = Shape (a)", ["y"], ["y"]),
        ("float[1, 8, 16, 16] y", "s = Shape (a) b = Reshape (a, s) r = Round (x) y = Relu (b)", ["y"], ["y"]),
    ],
)
def test_points_lie_in_front_of_steps_and_of_saturation(
    outputs: str, nodes: str, exact: list[str], ends: list[str]
) -> None:
    found = points(network(outputs, nodes, ", int64[2] flat = {1, -1}"))
    assert (list(found.exact), list(found.ends)) == (exact, ends)


def test_a_step_on_what_no_layer_changes_is_not_stepped_over() -> None:
    model = prepare(ir.serde.deserialize_model(branches()))
    assert points(model).ends == ("y",)


def test_the_output_of_a_branch_is_compared_although_its_condition_has_a_step() -> None:
    nodes = """m = ReduceMean <keepdims = 0> (a)  c = Greater (m, half)
      y = If (c) <then_branch = t () => (u) { u = Relu (a) }, else_branch = e () => (n) { n = Neg (a) }>"""
    found = points(network("float[1, 8, 16, 16] y", nodes, ", float half = {0.5}"))
    assert (found.ends, found.before) == (("y",), ())


def test_an_output_with_nothing_shared_in_front_of_it_is_named() -> None:
    model = network("float[1, 8, 16, 16] y", "y = Round (a)")
    found = find_points(model, ())
    assert (found.ends, found.unreachable, found.before) == ((), ("y",), ("Round",))


RANDOM = {
    "RandomNormalLike": "n = RandomNormalLike (a) y = Add (a, n)",
    "RandomUniform": "n = RandomUniform <shape = [1, 8, 16, 16]> () y = Add (a, n)",
    "Dropout": "y, mask = Dropout (a, half, yes)",
}


@pytest.mark.parametrize("operator", RANDOM)
def test_random_operators_are_compared_with_seeds(operator: str, tmp_path: Path) -> None:
    text = BODY.format(
        outputs="float[1, 8, 16, 16] y", nodes=RANDOM[operator], weights=", float half = {0.5}, bool yes = {1}"
    )
    deviation = export(save(build(text), tmp_path / "model.onnx")).deviation
    assert deviation is not None
    assert deviation.how == f"each layer and the whole model, with the seeds of {operator} set"
    assert deviation.whole is not None
    assert deviation.whole.distance.relative_l2 < 1e-5
    assert deviation.truncation is not None
    assert deviation.truncation.relative_l2 < 1e-5


def test_model_that_answers_otherwise_in_each_run_is_verified_layer_by_layer(
    exported: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exported(detector)
    monkeypatch.setattr("trp_export.verify.export._differs", lambda first, second: True)
    deviation = made.verify()
    assert deviation.how == "each layer alone, since the model gives other outputs in each run"
    assert deviation.whole is None
    assert deviation.not_compared == (
        "the whole model: onnxruntime gives other outputs for the same inputs in each run",
    )


def test_sequences_are_compared_element_by_element(tmp_path: Path) -> None:
    body = BODY.format(
        outputs="seq(float[n, k, h, w1]) maps", nodes="b = Relu (a) maps = SequenceConstruct (x, b)", weights=""
    )
    made = capture(build(body), tmp_path)
    whole = made.verify().whole
    assert whole is not None
    assert whole.values == ("maps",)
    broken = made.result()
    node = next(node for node in broken.graph if node.op_type == "SequenceConstruct")
    node.replace_input_with(1, node.inputs[0])
    with pytest.raises(VerifyError):
        made.verify(broken)


def test_an_output_that_is_listed_twice_is_compared_once(tmp_path: Path) -> None:
    text = BODY.format(outputs="float[1, 8, 16, 16] a, float[1, 8, 16, 16] y", nodes="y = Relu (a)", weights="")
    model = build(text)
    model.graph.output.append(model.graph.output[0])
    whole = capture(model, tmp_path).verify().whole
    assert whole is not None
    assert whole.values == ("a", "y")


def test_maps_are_named_as_unsupported(tmp_path: Path, refuses: Command) -> None:
    from onnx import helper

    model = build(BODY.format(outputs="float[1, 8] p", nodes="b = GlobalAveragePool (a) p = Flatten (b)", weights=""))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    model.graph.node.append(
        helper.make_node("ZipMap", ["p"], ["z"], domain="ai.onnx.ml", classlabels_int64s=list(range(8)))
    )
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, None)))
    del model.graph.output[:]
    model.graph.output.append(helper.make_value_info("z", kind))
    save(model, tmp_path / "model.onnx")
    assert "output z is a map" in refuses(UnsupportedError.exit_code, "model.onnx", "--rank", "2", "--no-bench")


def test_a_number_of_rows_that_varies_is_no_obstacle_on_images(exported: Make) -> None:
    files = exported(non_maximum_suppression).files
    images = np.random.default_rng(3).standard_normal((3, 1, 3, 24, 24)).astype(np.float32)
    found = compare_on_calibration_images(
        files.original, files.result, in_batches(*images, name="image"), "calibration"
    )
    assert found is not None
    assert found.distance.relative_l2 < 1e-5
    assert found.top1 is None


@pytest.mark.parametrize(
    ("model", "before"),
    [
        (detector, ("Sigmoid",)),
        (saturated_classifier, ("Softmax",)),
        (top_k, ("TopK", "Sigmoid")),
        (non_maximum_suppression, ("NonMaxSuppression", "Sigmoid")),
        (recurrent, ()),
    ],
)
def test_the_evidence_names_the_operators_in_front_of_which_it_was_taken(
    model: object, before: tuple[str, ...], exported: Make
) -> None:
    deviation = exported(model).verify()  # type: ignore[arg-type]
    assert deviation.whole is not None
    assert deviation.whole.before == before
    assert 0 < deviation.whole.bound < 1e-3
    assert deviation.truncation is not None
    assert np.isfinite(deviation.truncation.relative_l2)


def test_calibration_images_reach_layers_as_noise_does(exported: Make) -> None:
    images = np.random.default_rng(3).standard_normal((6, 3, 24, 24)).astype(np.float32)
    deviation = exported(detector).verify(images=in_batches(images[:1], images[1:2], name="image"))
    assert all(layer.inputs == ("noise", "calibration images") for layer in deviation.layers)


def test_one_entry_that_a_cast_rounds_the_other_way_is_explained() -> None:
    """Of some thousand entries one may be so close to the middle between two numbers of 16 bits, or none."""
    casts = ("b = Cast <to = 16> (a)", "b = Cast <to = 10> (a)", "b = Cast <to = 11> (a)")
    bounds = [
        explained_by_casts(network("float[1, 8, 16, 16] y", f"{cast} y = Cast <to = 1> (b)"), 27) for cast in casts
    ]
    flipped = np.sqrt(3 / 2048)  # The fourth moment over the second of the entries of a, which are normal.
    assert bounds[0] > 2.0**-7 * flipped
    assert bounds[1] > 2.0**-10 * flipped
    assert bounds[2] == 0
    assert bounds[0] < 1e-3
