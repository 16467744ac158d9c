"""Where answers are compared, and what the divergence of answers sees."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import as_samples, in_batches, input_shapes, make_images

from trp_export.calibration.answers import Answer, decoding_nodes, find_answers, reference_to, run_answers
from trp_export.calibration.divergence import Kind, Reference, divergence, for_images, share_in_common, yardsticks
from trp_export.calibration.moments import gather_moments
from trp_export.calibration.output_curves import calibrated_layers
from trp_export.calibration.sensitivities import measure_sensitivities
from trp_export.graph.prepare import prepare
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.sites import find_sites
from trp_export.planning.curves import Layer, make_curve, schemes_for
from trp_export.planning.sensitivity import Sensitivity
from trp_export.runtime import blocks

Answers = Mapping[str, np.ndarray]

HEAD = '<ir_version: 8, opset_import: ["": 17]>\nnet (float[N, 3, 12, 12] x) => ({outputs})\n'
WEIGHTS = {
    "w": (6, 3, 3, 3),
    "v": (4, 6, 1, 1),
    "u": (5, 6, 1, 1),
    "anchored": (15, 6, 1, 1),
    "bin": (1, 2, 1, 1),
    "m": (6, 5),
}
TRUNK = "t = Conv <pads = [1, 1, 1, 1]> (x, w)\n r = Relu (t)\n"
POOLED = TRUNK + "g = GlobalAveragePool (r)\n f = Flatten (g)\n l = MatMul (f, m)\n"


def make_model(body: str, outputs: str, seed: int = 0) -> ir.Model:
    proto = onnx.parser.parse_model(HEAD.replace("{outputs}", outputs) + "{\n" + body + "}")
    rng = np.random.default_rng(seed)
    for name, shape in WEIGHTS.items():
        if any(name in node.input for node in proto.graph.node):
            array = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return prepare(ir.serde.deserialize_model(proto))


@pytest.mark.parametrize(
    ("body", "outputs", "names"),
    [
        (POOLED + "y = Identity (l)\n", "float[N, 5] y", {"l"}),
        (POOLED + "y = Softmax (l)\n", "float[N, 5] y", {"l"}),
        (POOLED + "s = Softmax (l)\n y = ArgMax <axis = 1> (s)\n", "int64[N, 1] y", {"l"}),
        (TRUNK + "d = Conv (r, v)\n y = DepthToSpace <blocksize = 2> (d)\n", "float[N, 1, 24, 24] y", {"d"}),
        (TRUNK + "d = Conv (r, v)\n y = Add (d, d)\n", "float[N, 4, 12, 12] y", {"y"}),
        (
            TRUNK + "b = Conv (r, v)\n c = Conv (r, u)\n s = Sigmoid (c)\n y = Concat <axis = 1> (b, s)\n",
            "float[N, 9, 12, 12] y",
            {"b", "c"},
        ),
        (
            TRUNK + "s = Constant <value_float = 0.1> ()\n y = QuantizeLinear (r, s)\n",
            "uint8[N, 6, 12, 12] y",
            {"r"},
        ),
        (TRUNK + "s = Sigmoid (r)\n y = Mul (r, s)\n", "float[N, 6, 12, 12] y", {"r"}),
        (
            POOLED + "n = ReduceL2 <axes = [1]> (l)\n s = Constant <value_float = 1.0> ()\n c = Clip (n, s)\n"
            "q = Shape (l)\n e = Expand (c, q)\n y = Div (l, e)\n",
            "float[N, 5] y",
            {"y"},
        ),
        (
            POOLED + "k = Constant <value_ints = [1]> ()\n p = Mul (l, l)\n n = ReduceSum (p, k)\n c = Sqrt (n)\n"
            "q = Shape (l)\n e = Expand (c, q)\n y = Div (l, e)\n",
            "float[N, 5] y",
            {"y"},
        ),
        (
            POOLED + "n = ReduceL2 <axes = [1]> (f)\n q = Shape (l)\n e = Expand (n, q)\n y = Div (l, e)\n",
            "float[N, 5] y",
            {"l", "n"},
        ),
        (TRUNK + "y = Concat <axis = 1> (r, x)\n", "float[N, 9, 12, 12] y", {"r"}),
        (TRUNK + "s = SequenceConstruct (t, r)\n y = Identity (s)\n", "seq(float[N, 6, 12, 12]) y", {"t", "r"}),
        (POOLED + "y = Multinomial (l)\n", "int32[N, 1] y", {"l"}),
        (TRUNK + "n = RandomNormalLike (r)\n y = Mul (r, n)\n", "float[N, 6, 12, 12] y", {"r"}),
        (
            TRUNK + "b = Conv (r, v)\n c = Conv (r, u)\n s = Sigmoid (c)\n most = ReduceMax <axes = [1, 2]> (s)\n"
            "k = Constant <value_ints = [1]> ()\n top, i = TopK (most, k)\n y = GatherND <batch_dims = 1> (b, i)\n",
            "float[N, M, 12, 12] y",
            {"b", "c"},
        ),
        (
            TRUNK + "q = Shape (r)\n i = ReduceMax <keepdims = 0> (q)\n y = Gather <axis = 0> (r, i)\n",
            "float[N, M, 12] y",
            {"r"},
        ),
        (
            TRUNK + "a, b = Split <axis = 1> (r)\n n = RandomNormalLike (b)\n s = Mul (b, n)\n y = Add (a, s)\n",
            "float[N, 3, 12, 12] y",
            {"r"},
        ),
    ],
)
def test_find_answers_stops_before_values_are_hidden(body: str, outputs: str, names: set[str]) -> None:
    assert {answer.name for answer in find_answers(make_model(body, outputs))} == names


def test_find_answers_knows_classes_and_channels() -> None:
    (vector,) = find_answers(make_model(POOLED + "y = Softmax (l)\n", "float[N, 5] y"))
    assert vector.kind is Kind.CLASSES
    assert vector.axis == -1
    (pixels,) = find_answers(
        make_model(TRUNK + "c = Conv (r, u)\n y = ArgMax <axis = 1> (c)\n", "int64[N, 1, 12, 12] y")
    )
    assert pixels.kind is Kind.CLASSES
    assert pixels.axis == 1


def test_find_answers_knows_scores_behind_a_sigmoid() -> None:
    kinds = {answer.name: answer.kind for answer in find_answers(make_model(DETECTOR, "float[N, 9, 12, 12] y"))}
    assert kinds == {"p": Kind.VALUES, "c": Kind.PROBABILITIES}
    (swish,) = find_answers(make_model(TRUNK + "s = Sigmoid (r)\n y = Mul (r, s)\n", "float[N, 6, 12, 12] y"))
    assert swish.kind is Kind.VALUES


def test_find_answers_follows_the_parts_of_a_concatenation() -> None:
    """Boxes and scores of two levels lie in one value until they are split: only the scores become probabilities."""
    head = """
    b1 = Conv (r, v)
    c1 = Conv (r, u)
    l1 = Concat <axis = 1> (b1, c1)
    shape = Constant <value_ints = [0, 9, -1]> ()
    f1 = Reshape (l1, shape)
    z = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    b2 = Conv (z, v)
    c2 = Conv (z, u)
    l2 = Concat <axis = 1> (b2, c2)
    f2 = Reshape (l2, shape)
    all = Concat <axis = 2> (f1, f2)
    """
    split = "four = Constant <value_ints = [4, 5]> ()\n box, cls = Split <axis = 1> (all, four)\n"
    slices = (
        "zero = Constant <value_ints = [0]> ()\n four = Constant <value_ints = [4]> ()\n one = Constant "
        "<value_ints = [1]> ()\n far = Constant <value_ints = [9999]> ()\n box = Slice (all, zero, four, one)\n "
        "cls = Slice (all, four, far, one)\n"
    )
    for cut in (split, slices):
        end = "s = Sigmoid (cls)\n y = Concat <axis = 1> (box, s)\n"
        kinds = {a.name: a.kind for a in find_answers(make_model(TRUNK + head + cut + end, "float[N, 9, 180] y"))}
        assert kinds == {
            "b1": Kind.VALUES,
            "b2": Kind.VALUES,
            "c1": Kind.PROBABILITIES,
            "c2": Kind.PROBABILITIES,
        }


@pytest.mark.parametrize(
    ("end", "outputs", "kind"),
    [
        ("y = Softmax <axis = 2> (f)\n", "float[N, 5, 144] y", Kind.VALUES),
        ("y = Softmax <axis = 1> (f)\n", "float[N, 5, 144] y", Kind.CLASSES),
        ("y = ArgMax <axis = 2> (f)\n", "int64[N, 5, 1] y", Kind.VALUES),
        ("o = Transpose <perm = [0, 2, 1]> (f)\n y = Softmax (o)\n", "float[N, 144, 5] y", Kind.CLASSES),
        ("g = Flatten (c)\n y = Softmax <axis = 1> (g)\n", "float[N, 720] y", Kind.VALUES),
        (
            "p = GlobalAveragePool (c)\n size = Shape (p)\n zero = Constant <value_int = 0> ()\n"
            "n = Gather (size, zero)\n"
            "axis = Constant <value_ints = [0]> ()\n count = Unsqueeze (n, axis)\n"
            "rest = Constant <value_ints = [-1]> ()\n"
            "to = Concat <axis = 0> (count, rest)\n g = Reshape (p, to)\n y = Softmax <axis = 1> (g)\n",
            "float[N, K] y",
            Kind.CLASSES,
        ),
        (
            "p = GlobalAveragePool (c)\n axes = Constant <value_ints = [0, 2, 3]> ()\n g = Squeeze (p, axes)\n"
            "y = Softmax <axis = 0> (g)\n",
            "float[5] y",
            Kind.CLASSES,
        ),
    ],
)
def test_classes_are_what_a_softmax_over_the_channels_reads(end: str, outputs: str, kind: Kind) -> None:
    """Key points by a softmax over positions: each channel is a joint, and no class."""
    shape = "shape = Constant <value_ints = [0, 5, -1]> ()\n f = Reshape (c, shape)\n"
    (answer,) = find_answers(make_model(TRUNK + "c = Conv (r, u)\n" + shape + end, outputs))
    assert (answer.name in ("c", "p"), answer.kind) == (True, kind)


HEADS = {
    "split": """
        c = Conv (r, u)
        box, cls = Split <axis = 1> (c, parts)
        s = Sigmoid (cls)
        y = Concat <axis = 1> (box, s)
        """,
    "slices behind a reshape": """
        c = Conv (r, u)
        shape = Constant <value_ints = [0, 5, -1]> ()
        f = Reshape (c, shape)
        rows = Transpose <perm = [0, 2, 1]> (f)
        box = Slice (rows, zero, two, last)
        cls = Slice (rows, two, far, last)
        s = Sigmoid (cls)
        y = Concat <axis = 2> (box, s)
        """,
    "a grid is added to places": """
        c = Conv (r, u)
        s = Sigmoid (c)
        box, cls = Split <axis = 1> (s, parts)
        places = Add (box, grid)
        y = Concat <axis = 1> (places, cls)
        """,
    "anchors": """
        d = Conv (r, anchored)
        shape = Constant <value_ints = [0, 3, 5, 12, 12]> ()
        f = Reshape (d, shape)
        cells = Transpose <perm = [0, 1, 3, 4, 2]> (f)
        s = Sigmoid (cells)
        box, cls = Split <axis = -1> (s, parts)
        q = Transpose <perm = [0, 1, 4, 2, 3]> (box)
        places = Add (q, grid)
        back = Transpose <perm = [0, 1, 3, 4, 2]> (places)
        y = Concat <axis = -1> (back, cls)
        """,
}
NUMBERS = (
    "zero = Constant <value_ints = [0]> ()\n two = Constant <value_ints = [2]> ()\n far = Constant "
    "<value_ints = [99]> ()\n last = Constant <value_ints = [-1]> ()\n parts = Constant <value_ints = [2, 3]> ()\n"
    "grid = Constant <value = float[2, 1, 1] {1, 2}> ()\n one_ = Constant <value_ints = [1]> ()\n"
)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_boxes_and_scores_of_one_conv_are_two_answers(head: str) -> None:
    """A network does different things with parts of a conv's channels."""
    answers = find_answers(make_model(TRUNK + NUMBERS + head, "float[N, P, Q] y"))
    assert [(a.channels, a.kind) for a in answers] == [((0, 1), Kind.VALUES), ((2, 3, 4), Kind.PROBABILITIES)]


def test_a_grid_that_the_network_makes_is_no_answer() -> None:
    """It is the same in every result, so it would make any damage look smaller."""
    body = """
    c = Conv (r, u)
    s = Sigmoid (c)
    box, cls = Split <axis = 1> (s, parts)
    size = Shape (c)
    three = Constant <value_int = 3> ()
    width = Gather (size, three)
    nought = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    numbers = Range (nought, width, step)
    columns = Cast <to = 1> (numbers)
    places = Add (box, columns)
    y = Concat <axis = 1> (places, cls)
    """
    answers = find_answers(make_model(TRUNK + NUMBERS + body, "float[N, 5, 12, 12] y"))
    assert [(a.channels, a.kind) for a in answers] == [((0, 1), Kind.VALUES), ((2, 3, 4), Kind.PROBABILITIES)]


def test_a_part_that_nothing_reads_is_no_answer() -> None:
    """Boxes as bins, which the network decodes to another answer, beside scores of the same conv."""
    body = "c = Conv (r, u)\n bins, cls = Split <axis = 1> (c, parts)\n z = Conv (bins, bin)\n p = Sigmoid (cls)\n"
    answers = find_answers(
        make_model(TRUNK + NUMBERS + body + "y = Concat <axis = 1> (z, p)\n", "float[N, P, 12, 12] y")
    )
    assert [(a.value, a.channels, a.kind) for a in answers] == [
        ("z", None, Kind.VALUES),
        ("c", (2, 3, 4), Kind.PROBABILITIES),
    ]


WHOLE = {
    "a score read by its number": (
        "s = Sigmoid (c)\n a, b = Split <axis = 1> (s, parts)\n q = Add (a, grid)\n"
        "number = Constant <value_int = 3> ()\n p = Gather <axis = 1> (s, number)\n o = Unsqueeze (p, one_)\n"
        "both = Mul (b, o)\n y = Concat <axis = 1> (q, both)\n",
        Kind.PROBABILITIES,
    ),
    "channels in another order": (
        "order = Constant <value_ints = [4, 3, 2, 1, 0]> ()\n o = Gather <axis = 1> (c, order)\n"
        "a, b = Split <axis = 1> (o, parts)\n p = Sigmoid (b)\n y = Concat <axis = 1> (a, p)\n",
        Kind.VALUES,
    ),
    "rows of all images": (
        "t_ = Transpose <perm = [0, 2, 3, 1]> (c)\n shape = Constant <value_ints = [-1, 1, 5]> ()\n"
        "f = Reshape (t_, shape)\n a = Slice (f, zero, two, last)\n y = Identity (a)\n",
        Kind.VALUES,
    ),
    "parts of one kind": (
        "a, b = Split <axis = 1> (c, parts)\n p = Sigmoid (a)\n q = Sigmoid (b)\n y = Concat <axis = 1> (p, q)\n",
        Kind.PROBABILITIES,
    ),
    "some rows of a map": ("a = Slice (c, zero, ten, two)\n y = Sigmoid (a)\n", Kind.PROBABILITIES),
    "some positions": (
        "shape = Constant <value_ints = [0, 5, -1]> ()\n f = Reshape (c, shape)\n a = Slice (f, zero, ten, two)\n"
        "y = Sigmoid (a)\n",
        Kind.PROBABILITIES,
    ),
    "a part and the whole": (
        "a, b = Split <axis = 1> (c, parts)\n p = Sigmoid (b)\n y = Concat <axis = 1> (c, p)\n",
        Kind.VALUES,
    ),
    "a part of what a softmax gives": (
        "s = Softmax <axis = 1> (c)\n a, b = Split <axis = 1> (s, parts)\n y = Add (a, grid)\n",
        Kind.CLASSES,
    ),
}


@pytest.mark.parametrize(("end", "kind"), WHOLE.values(), ids=WHOLE)
def test_other_parts_of_a_conv_are_one_answer(end: str, kind: Kind) -> None:
    ten = "ten = Constant <value_ints = [10]> ()\n"
    (answer,) = find_answers(make_model(TRUNK + NUMBERS + ten + "c = Conv (r, u)\n" + end, "float[N, P, Q] y"))
    assert answer == Answer("c", 1, kind)


def test_parts_of_a_value_are_read_as_answers() -> None:
    model = make_model(TRUNK + NUMBERS + HEADS["anchors"], "float[N, P, Q] y")
    images = make_images(4).inputs
    whole = run_answers(model, [Answer("f", 2)], in_batches(images))["f"]
    for answer in find_answers(model):
        read = run_answers(model, [answer], in_batches(images))[answer.name]
        own = whole[:, answer.channels]
        np.testing.assert_array_equal(read.reshape(4, -1, 3, 12, 12), own)


def test_a_slice_that_is_not_understood_is_followed_as_a_whole() -> None:
    body = """
    b = Conv (r, v)
    c = Conv (r, u)
    both = Concat <axis = 1> (b, c)
    start = Constant <value_ints = [4]> ()
    end = Constant <value_ints = [9]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    zero = Constant <value_ints = [0]> ()
    some = Slice (both, start, end, one, two)
    few = Slice (some, zero, two, one)
    y = Sigmoid (few)
    """
    names = {answer.name for answer in find_answers(make_model(TRUNK + body, "float[N, 2, 12, 12] y"))}
    assert names == {"b", "c"}


def test_long_chains_of_operators_are_followed() -> None:
    chain = "".join(f"h{index + 1} = Neg (h{index})\n" for index in range(3000))
    model = make_model(TRUNK + "h0 = Sigmoid (r)\n" + chain + "y = Round (h3000)\n", "float[N, 6, 12, 12] y")
    assert [answer.name for answer in find_answers(model)] == ["r"]


@pytest.mark.parametrize("count", [10, 136])
def test_coordinates_are_no_classes(count: int) -> None:
    """Landmarks move together, about places that differ by more: a shift of all is an error."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0.1, 0.9, count)
    together = np.tile(rng.standard_normal((64, 2)), count // 2)
    landmarks = places + 0.03 * together + 0.01 * rng.standard_normal((64, count))
    assert 0.3 < share_in_common(landmarks) < 0.6
    for of_frame in (landmarks, landmarks + 10 * together):
        mean = np.broadcast_to(of_frame.mean(axis=0), of_frame.shape)
        assert divergence({"y": of_frame}, {"y": mean}) == pytest.approx(1)
        assert divergence({"y": of_frame}, {"y": of_frame + of_frame.std(axis=0)}) == pytest.approx(1)
    pose = rng.standard_normal((64, 3)) * [30, 15, 10]
    assert divergence({"y": pose}, {"y": pose + 20}) > 1


def test_maps_of_one_kind_do_not_weigh_one_another() -> None:
    """Seven maps of one foreground: a false blob in the background is as bad as a missing one in the foreground."""
    rng = np.random.default_rng(0)
    seen = np.zeros((4, 1, 16, 16), dtype=bool)
    seen[..., 4:12, 4:12] = True
    maps = {str(index): np.where(seen, 6.0, -6.0) + 0.1 * rng.standard_normal(seen.shape) for index in range(7)}

    def with_blob(rows: slice, value: float) -> float:
        other = {name: array.copy() for name, array in maps.items()}
        for array in other.values():
            array[..., rows, rows] = value
        return divergence(maps, other, dict.fromkeys(maps, Kind.PROBABILITIES))

    assert with_blob(slice(0, 3), 4.0) == pytest.approx(with_blob(slice(6, 9), -4.0), rel=0.05)


def test_boxes_of_all_levels_in_one_row_count_where_a_level_sees_something() -> None:
    rng = np.random.default_rng(0)
    levels = {f"c{side}": np.full((4, 5, side, side), -9.0) for side in (4, 2)}
    levels["c2"][:, 3, 1, 0] = 2.0
    answers = {"box": rng.standard_normal((4, 1, 4, 20)), **levels}
    kinds = {"box": Kind.VALUES, **dict.fromkeys(levels, Kind.PROBABILITIES)}

    def moved(place: int) -> float:
        box = answers["box"].copy()
        box[..., place] += 1.0
        return divergence(answers, {**answers, "box": box}, kinds)

    assert moved(16 + 2) > 50 * moved(16 + 1)
    assert moved(16 + 2) > 50 * moved(2)


def test_divergence_of_a_detector_counts_what_it_sees() -> None:
    """Boxes and scores may move where the detector sees nothing, and not where it sees something."""
    rng = np.random.default_rng(0)
    scores = np.full((4, 3, 8, 8), -9.0) + rng.standard_normal((4, 3, 8, 8))
    scores[:, 1, 2, 3] = 1.0
    answers = {"box": rng.standard_normal((4, 4, 8, 8)), "score": scores}
    kinds = {"box": Kind.VALUES, "score": Kind.PROBABILITIES}

    def moved(name: str, row: int) -> float:
        other = {key: value.copy() for key, value in answers.items()}
        other[name][:, :, row, 3] += 1.0
        return divergence(answers, other, kinds)

    for name in answers:
        assert moved(name, 2) > 50 * moved(name, 5), name
    assert divergence(answers, answers, kinds) == 0


def test_divergence_of_scores_is_the_mean_answer_at_one() -> None:
    """A network that gives the mean logit of each channel everywhere has a divergence of one."""
    scores = np.random.default_rng(0).standard_normal((16, 3, 8, 8)) * 2
    mean = np.broadcast_to(scores.mean(axis=(0, 2, 3), keepdims=True), scores.shape)
    assert divergence({"y": scores}, {"y": mean}, {"y": Kind.PROBABILITIES}) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", Kind)
def test_curvature_is_that_of_the_divergence(kind: Kind) -> None:
    rng = np.random.default_rng(1)
    answers = {"y": rng.standard_normal((8, 5, 3, 3)), "z": rng.standard_normal((8, 2, 3, 3))}
    step = 1e-3 * rng.standard_normal(answers["y"].shape)
    stick = yardsticks(answers, {"y": kind})["y"]
    seen = step - step.mean(axis=1, keepdims=True) if stick.centred else step
    expected = float((stick.curvature(answers["y"]) * seen**2).sum()) / 8
    assert stick.shares(answers["y"], answers["y"] + step).mean() == pytest.approx(expected, rel=2e-3)


def test_decoding_nodes_lie_behind_the_answers() -> None:
    model = make_model(DETECTOR, "float[N, 9, 12, 12] y")
    decoding = decoding_nodes(model, find_answers(model))
    assert {node.op_type for node in decoding} == {"Sigmoid", "Concat"}


def test_divergence_sees_a_channel_of_a_thousandth_of_the_scale() -> None:
    rng = np.random.default_rng(0)
    answers = rng.standard_normal((16, 2, 8, 8)) * np.array([1000.0, 1.0]).reshape(1, 2, 1, 1)
    without_small = answers * np.array([1.0, 0.0]).reshape(1, 2, 1, 1)
    assert divergence({"y": answers}, {"y": without_small}) == pytest.approx(0.5, rel=0.05)
    vectors = answers[:, :, 0, 0]
    assert divergence({"y": vectors}, {"y": vectors * np.array([1.0, 0.0])}) == pytest.approx(0.5, rel=0.3)


def test_divergence_of_a_channel_that_does_not_vary_counts_in_the_unit_of_the_others() -> None:
    answers = np.random.default_rng(0).standard_normal((16, 2, 8, 8))
    answers[:, 1] = 3.0
    moved = answers.copy()
    moved[:, 1] += 1e-3
    assert divergence({"y": answers}, {"y": moved}) < 1e-5


def test_divergence_of_values_that_are_not_finite_is_infinite() -> None:
    answers = np.ones((4, 2, 3, 3)) * np.arange(3)
    broken = answers.copy()
    broken[0, 0, 0, 0] = np.nan
    assert divergence({"y": answers}, {"y": broken}) == float("inf")


def test_a_softmax_at_the_end_does_not_hide_damage() -> None:
    """Of logits so large that the classes are certain, probabilities stay the same while the logits move."""
    model = make_model(
        POOLED + "k = Constant <value_float = 1000.0> ()\n z = Mul (l, k)\n y = Softmax (z)\n", "float[N, 5] y"
    )
    images = make_images(16).inputs
    answers = find_answers(model)
    before = run_answers(model, answers, in_batches(images))
    weight = model.graph.initializers["m"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.3))
    after = run_answers(model, answers, in_batches(images))
    assert reference_to(answers, before).divergence(after) == pytest.approx(0.09, rel=0.01)


def measure(model: ir.Model) -> dict[str, Sensitivity]:
    """Sensitivities of all layers."""
    located = find_sites(model, infer_shapes(model, input_shapes(model)))
    images = make_images(24)
    plain = [
        Layer(place.site, tuple(make_curve(place.site, s, place.kernel()) for s in schemes_for(place.site, "auto")))
        for place in located
    ]
    moments = gather_moments(model, located, as_samples(images))
    return measure_sensitivities(model, calibrated_layers(plain, located, moments), moments, in_batches(images.inputs))


DETECTOR = TRUNK + (
    "b = Conv (r, v)\n k = Constant <value_float = 300.0> ()\n p = Mul (b, k)\n"
    "c = Conv (r, u)\n s = Sigmoid (c)\n y = Concat <axis = 1> (p, s)\n"
)


def test_sensitivities_see_scores_beside_boxes_of_another_unit() -> None:
    """In the spread of the whole output, scores are one part in ten thousand; still their layer is as sensitive."""
    model = make_model(DETECTOR, "float[N, 9, 12, 12] y")
    measured = measure(model)
    located = find_sites(model, infer_shapes(model, input_shapes(model)))
    names = {place.nodes[0].outputs[0].name: place.site.name for place in located}
    boxes, scores = (float(measured[names[output]].at(np.array([0.1]))[0]) for output in ("b", "c"))
    assert 0.1 < scores / boxes < 10


def test_sensitivities_of_layers_behind_an_answer_are_measured() -> None:
    """The first head lies before the layers of the second: its answer is passed and stays the same."""
    body = TRUNK + "b = Conv (r, v)\n y = Sigmoid (b)\n c = Conv (r, u)\n z = Sigmoid (c)\n"
    model = make_model(body, "float[N, 4, 12, 12] y, float[N, 5, 12, 12] z")
    measured = measure(model)
    assert len(measured) == 3
    assert all(sensitivity.damage[-1] > 1e-3 for sensitivity in measured.values())


def test_sensitivities_of_a_network_whose_output_is_one_number_are_measured() -> None:
    measured = measure(make_model(TRUNK + "y = ReduceMean <keepdims = 0> (r)\n", "float y"))
    assert all(sensitivity.damage[-1] > 1e-3 for sensitivity in measured.values())


@pytest.mark.parametrize("end", ["y = Log (r)\n", "z = Sub (r, r)\n n = Div (z, z)\n y = Add (r, n)\n"])
def test_an_original_that_is_not_finite_says_nothing_of_its_layers(end: str) -> None:
    assert measure(make_model(TRUNK + end, "float[N, 6, 12, 12] y")) == {}


def test_an_answer_without_rows_is_no_difference_and_an_obstacle_to_none() -> None:
    empty, full = np.zeros((0, 4, 3), np.float32), np.random.default_rng(0).standard_normal((5, 4))
    for kind in Kind:
        reference = Reference.of({"y": empty, "z": full}, {"y": kind})
        assert reference.divergence({"y": empty, "z": 0 * full}) == pytest.approx(0.5, rel=0.5)
        assert Reference.of({"y": empty}, {"y": kind}).divergence({"y": empty}) == 0
        assert reference.divergence({"y": np.ones((2, 4, 3)), "z": full}) == float("inf")


@pytest.mark.parametrize("kind", list(Kind))
def test_parts_of_the_images_add_up_to_all(kind: Kind) -> None:
    """Two images are measured in the units of all, whose variances they do not have."""
    rng = np.random.default_rng(0)
    answers = {
        "y": 10 * rng.random((1, 5, 1)) * rng.standard_normal((24, 5, 3)),
        "score": rng.standard_normal((24, 4, 3)),
    }
    others = {name: array + 0.3 * rng.standard_normal(array.shape) for name, array in answers.items()}
    whole = yardsticks(answers, {"y": kind, "score": Kind.PROBABILITIES})
    for name, stick in whole.items():
        parts = []
        for start in range(0, 24, 2):
            part = {key: array[start : start + 2] for key, array in answers.items()}
            parts.append(for_images(whole, part)[name].shares(part[name], others[name][start : start + 2]))
        np.testing.assert_allclose(np.concatenate(parts), stick.shares(answers[name], others[name]))


def test_classes_stay_classes_on_two_images() -> None:
    """Two images vary little in some classes, and yet no class counts more than another."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40, 200))
    logits[1] = logits[0] + 1e-4 * rng.standard_normal(200)
    sticks = yardsticks({"y": logits})
    assert sticks["y"].kind is Kind.CLASSES
    assert yardsticks({"y": logits[:2]})["y"].scale.size > 1
    assert for_images(sticks, {"y": logits[:2]})["y"].scale.size == 1


@pytest.mark.parametrize("kind", list(Kind))
def test_divergence_in_parts_is_that_of_all_at_once(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against its formulas on whole arrays, far from zero, with groups of images and another answer's scores."""
    rng = np.random.default_rng(0)
    groups = np.arange(6) % 2
    size = np.where(groups, 0.01, 1)[:, None, None, None]
    values = (0 if kind is Kind.PROBABILITIES else 30) + rng.standard_normal((6, 5, 8, 7)) * np.arange(5)[:, None, None]
    answers = {"y": (size * values).astype(np.float32)}
    answers["score"] = rng.standard_normal((6, 3, 8, 7)).astype(np.float32)
    other = {name: array + rng.standard_normal(array.shape).astype(np.float32) for name, array in answers.items()}
    kinds = {"y": kind, "score": Kind.PROBABILITIES}
    wanted = np.empty(6)
    for group in (0, 1):
        rows = groups == group
        wanted[rows] = np.mean([_plainly(name, kinds, answers, other, rows) for name in answers], axis=0)
    for entries in (1, 500, 2**17):
        monkeypatch.setattr(blocks, "_ENTRIES", entries)
        reference = Reference.of(answers, kinds, groups)
        # Scores are in single precision, and so is what they say of other answers' positions.
        np.testing.assert_allclose(reference.of_images(other), wanted, rtol=1e-6)
        assert reference.divergence(other) == pytest.approx(wanted.mean())


def _plainly(name: str, kinds: Mapping[str, Kind], answers: Answers, other: Answers, rows: np.ndarray) -> np.ndarray:
    """What each of the rows adds to the divergence of one answer, in double precision all at once."""
    a, b = (some[name][rows].astype(np.float64) for some in (answers, other))
    scores = {key: answers[key][rows].astype(np.float64) for key, kind in kinds.items() if kind is Kind.PROBABILITIES}
    relevance = np.ones((len(a), 1, *a.shape[2:]))
    for key, score in scores.items():
        if key != name and kinds[name] is not Kind.CLASSES:
            relevance = relevance * np.maximum(1 / (1 + np.exp(-score.max(axis=1, keepdims=True))), 1e-3)
    middle = (relevance * a).sum(axis=(0, 2, 3), keepdims=True) / relevance.sum()
    if kinds[name] is Kind.CLASSES:
        apart, spread = (np.square(gap - gap.mean(axis=1, keepdims=True)) for gap in (a - b, a))
        unit = spread.sum() / len(a)
    elif kinds[name] is Kind.PROBABILITIES:
        score = 1 / (1 + np.exp(-a))
        apart = (score - 1 / (1 + np.exp(-b))) * (a - b)
        unit = (relevance * (score - 1 / (1 + np.exp(-middle))) * (a - middle)).sum() / len(a)
    else:
        apart = np.square(a - b)
        variance = (relevance * np.square(a - middle)).sum(axis=(0, 2, 3), keepdims=True) / relevance.sum()
        unit = (
            np.where(variance > 1e-7 * variance.max(), variance, variance.max()) * relevance.sum() * a.shape[1] / len(a)
        )
    return np.asarray((relevance * apart / unit).reshape(len(a), -1).sum(axis=1))
