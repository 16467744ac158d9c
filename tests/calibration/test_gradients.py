"""What the answers owe to output channels, against what the weights behind a layer say."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import in_batches, input_shapes

from trp_export.calibration import gradients
from trp_export.calibration.divergence import yardsticks
from trp_export.calibration.gradients import measure_owed
from trp_export.errors import UnsupportedError
from trp_export.graph.prepare import prepare
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.sites import find_sites
from trp_export.lowrank.factor import Float64
from trp_export.recover.torch_graph import require_sound, workers
from trp_export.recover.torch_ops import RULES

HEAD = '<ir_version: 8, opset_import: ["": 17]>\nnet (float[N, 3, 8, 8] x) => ({outputs})\n'
WEIGHTS = {"w": (6, 3, 3, 3), "v": (4, 6, 1, 1), "u": (5, 6, 1, 1), "m": (6, 5), "t": (5, 192)}


def owed_of(body: str, outputs: str, images: int = 64) -> tuple[dict[str, Float64], dict[str, Float64]]:
    """What is measured for each layer by the name of its weight, and the weights."""
    proto = onnx.parser.parse_model(HEAD.replace("{outputs}", outputs) + "{\n" + body + "}")
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape) for name, shape in WEIGHTS.items()}
    weights["ones"] = np.ones(6)
    for name, array in weights.items():
        if any(name in node.input for node in proto.graph.node):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    model = prepare(ir.serde.deserialize_model(proto))
    located = find_sites(model, infer_shapes(model, input_shapes(model)))
    samples = rng.standard_normal((images, 3, 8, 8)).astype(np.float32)
    owed = measure_owed(model, located, in_batches(*np.array_split(samples, 4)))
    names = {place.site.name: place.nodes[0].inputs[1].name for place in located}
    return {names[site] or "": value for site, value in owed.items()}, weights


def test_owed_is_what_the_next_layer_reads() -> None:
    """With answers z = V y, in units of each z's variance, the mean outer product is V^T diag(1 / variance) V."""
    owed, weights = owed_of("y = Conv <pads = [1, 1, 1, 1]> (x, w)\nz = Conv (y, v)\n", "float[N, 4, 8, 8] z")
    behind = weights["v"].reshape(4, 6)
    flat = weights["w"].reshape(6, -1)
    variance = np.einsum("ad,ad->a", behind @ flat, behind @ flat)  # Of inputs without correlation, away from the edge.
    expected = behind.T @ np.diag(1 / variance) @ behind
    measured = owed["w"][0]
    cosine = float((measured * expected).sum() / np.linalg.norm(measured) / np.linalg.norm(expected))
    assert cosine > 0.99
    assert np.linalg.matrix_rank(measured, tol=1e-3 * np.trace(measured)) == 4


@pytest.mark.parametrize(("room", "cores"), [(2**40, 3), (1, 1)])
def test_as_many_batches_are_worked_on_together_as_memory_holds(
    monkeypatch: pytest.MonkeyPatch, room: int, cores: int
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(gradients, "workers", lambda count: seen.append(count) or workers(count))
    monkeypatch.setattr("trp_export.calibration.memory._HELD_BYTES", room)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    owed_of("y = Conv <pads = [1, 1, 1, 1]> (x, w)\nz = Conv (y, v)\n", "float[N, 4, 8, 8] z", images=8)
    assert seen == [cores]


def test_the_number_of_cores_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for cores in (1, 3):
        monkeypatch.setattr("torch.get_num_threads", lambda cores=cores: cores)
        made.append(owed_of("y = Conv <pads = [1, 1, 1, 1]> (x, w)\nz = Conv (y, v)\n", "float[N, 4, 8, 8] z")[0])
    for name, own in made[0].items():
        np.testing.assert_array_equal(own, made[1][name])


def test_channels_that_nothing_reads_are_owed_nothing() -> None:
    body = (
        "y = Conv <pads = [1, 1, 1, 1]> (x, w)\na, b = Split <axis = 1> (y)\nr = Relu (a)\n"
        "g = GlobalAveragePool (r)\nz = Flatten (g)\n"
    )
    owed, _ = owed_of(body, "float[N, 3] z")
    assert (np.diag(owed["w"][0])[:3] > 0).all()
    assert not owed["w"][0][3:].any()


def test_parts_of_one_conv_are_owed_what_two_convs_are() -> None:
    """Boxes and scores of one conv of five channels, and the same of two convs of two and three."""
    trunk, parts = "y = Conv <pads = [1, 1, 1, 1]> (x, w)\n", "parts = Constant <value_ints = [2, 3]> ()\n"
    end = "s = Sigmoid (cls)\nz = Concat <axis = 1> (box, s)\n"
    one = "c = Conv (y, u)\n" + parts + "box, cls = Split <axis = 1> (c, parts)\n"
    two = parts + "ub, uc = Split <axis = 0> (u, parts)\nbox = Conv (y, ub)\ncls = Conv (y, uc)\n"
    owed = [owed_of(trunk + head + end, "float[N, 5, 8, 8] z")[0]["w"] for head in (one, two)]
    np.testing.assert_allclose(owed[0], owed[1], rtol=1e-4)


def test_what_all_classes_share_is_owed_nothing() -> None:
    body = "y = Conv (x, w)\ng = GlobalAveragePool (y)\nf = Flatten (g)\nl = MatMul (f, m)\nz = Softmax (l)\n"
    owed, _ = owed_of(body, "float[N, 5] z")
    assert np.abs(owed["m"][0].sum(axis=0)).max() < 1e-5 * np.trace(owed["m"][0])


def test_background_scores_are_owed_little() -> None:
    """Scores whose bias holds them near zero count less than others, by their slope."""
    body = "y = Conv <pads = [1, 1, 1, 1]> (x, w)\nc = Conv (y, u, b)\nz = Sigmoid (c)\n"
    head = HEAD.replace("{outputs}", "float[N, 5, 8, 8] z") + "<float[5] b = {0, 0, -20, 0, 0}> {\n" + body + "}"
    proto = onnx.parser.parse_model(head)
    rng = np.random.default_rng(0)
    for name in ("w", "u"):
        array = (0.2 * rng.standard_normal(WEIGHTS[name])).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = prepare(ir.serde.deserialize_model(proto))
    located = find_sites(model, infer_shapes(model, input_shapes(model)))
    samples = rng.standard_normal((32, 3, 8, 8)).astype(np.float32)
    owed = measure_owed(model, located, in_batches(*np.array_split(samples, 4)))
    diagonal = np.diag(owed[located[1].site.name][0])
    assert diagonal[2] < 1e-6 * diagonal[0]


def test_operators_that_torch_lacks_are_named() -> None:
    with pytest.raises(UnsupportedError, match="Det"):
        owed_of("y = Conv <pads = [1, 1, 1, 1]> (x, w)\nz = Det (y)\n", "float[N, 6] z")


def test_nodes_that_torch_does_not_run_are_named() -> None:
    """torch takes a single value for no image."""
    body = "y = Conv (x, w)\ng = GlobalAveragePool (y)\nz = InstanceNormalization (g, ones, ones)\n"
    with pytest.raises(UnsupportedError, match="InstanceNormalization"):
        owed_of(body, "float[N, 6, 1, 1] z")


def test_a_second_output_that_torch_does_not_give_is_named() -> None:
    body = (
        "y = Conv (x, w)\nmost, places = MaxPool <kernel_shape = [2, 2]> (y)\n"
        "f = Cast <to = 1> (places)\nz = Add (most, f)\n"
    )
    with pytest.raises(UnsupportedError, match="places"):
        owed_of(body, "float[N, 6, 5, 5] z")


def test_answers_in_half_precision_are_compared() -> None:
    wanted = np.full(1000, 100, np.float16)
    with pytest.raises(UnsupportedError, match="apart from onnxruntime"):
        require_sound({"y": np.zeros(1000, np.float32)}, {"y": wanted}, 1e-2)


def test_another_answer_than_that_of_onnxruntime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "Relu", lambda node, given: given[0])
    with pytest.raises(UnsupportedError, match="apart from onnxruntime"):
        owed_of("y = Conv (x, w)\nr = Relu (y)\nz = Conv (r, v)\n", "float[N, 4, 6, 6] z")


def test_weights_behind_a_transpose_are_owed_something() -> None:
    owed, _ = owed_of("f = Flatten (x)\na = Transpose (t)\nz = MatMul (f, a)\n", "float[N, 5] z")
    assert owed["a"].shape == (1, 5, 5)


def test_a_number_for_each_image_is_owed_for_that_image() -> None:
    body = "y = Conv (x, w)\nz = ReduceMean <axes = [1, 2, 3], keepdims = {}> (y)\n"
    flat, whole = (owed_of(body.format(k), o)[0]["w"] for k, o in ((0, "float[N] z"), (1, "float[N, 1, 1, 1] z")))
    np.testing.assert_allclose(flat, whole)


def test_only_answers_that_fit_into_memory_give_their_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trp_export.calibration.memory._WALKED_BYTES", 1)
    seen: list[int] = []
    monkeypatch.setattr(
        "trp_export.calibration.gradients.yardsticks",
        lambda original, kinds: seen.append(len(original["z"])) or yardsticks(original, kinds),
    )
    owed_of("y = Conv (x, w)\nz = Conv (y, v)\n", "float[N, 4, 6, 6] z")
    assert seen == [8]
