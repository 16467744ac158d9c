"""The torch stand-in against onnxruntime, operator by operator, and distillation that never makes things worse."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from models import build
from networks import RESIDUAL, in_batches, make_images, make_network

from trp_export.calibration.divergence import Kind, divergence
from trp_export.calibration.output_curves import LayerFactors
from trp_export.errors import OptionError, UnsupportedError
from trp_export.graph.bias import add_to_bias
from trp_export.graph.prepare import prepare, remove_unused
from trp_export.graph.rewrite import rewrite
from trp_export.graph.sites import find_sites
from trp_export.graph.weights import apply_values
from trp_export.lowrank.schemes import CHANNEL_WISE, SPATIAL_WISE, Branch
from trp_export.planning.plan import Decision, Plan
from trp_export.recover.refit import refit
from trp_export.recover.tune import _agrees_as_well, _choose_rates, _is_gain, _train, tune

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch

from trp_export.recover.distil import (
    LEARNING_RATES,
    PATCH,
    Distiller,
    Score,
    _compared,
    _few,
    _flip_and_shift,
    _paste,
    _spread_of_changed,
    augment,
)
from trp_export.recover.torch_graph import TorchGraph
from trp_export.recover.torch_ops import RULES

HEAD = '<ir_version: 8, opset_import: ["": {opset}]>\nnet (float[N, 4, 6, 7] x) => (float[a, b, c, d] y)\n'
GRAPHS = {
    "pooling": (
        17,
        """{
        a = MaxPool <kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 1]> (x)
        b = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1> (a)
        c = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b)
        y = GlobalAveragePool (c)
        }""",
    ),
    "products with a sigmoid": (
        17,
        """{
        a = Sigmoid (x)
        b = Mul (x, a)
        c = Sigmoid (b)
        d = Mul (c, b)
        e = Sigmoid (d)
        f = Mul (e, d)
        g = Mul (e, x)
        h = Sigmoid (g)
        i = Mul (h, h)
        y = Sum (f, g, i)
        }""",
    ),
    "activations": (
        17,
        """<float low = {-0.5}, float high = {2.0}, float[1] slope = {0.3}> {
        a = LeakyRelu <alpha = 0.2> (x)
        b = Clip (a, low, high)
        c = HardSigmoid <alpha = 0.25> (b)
        d = HardSwish (x)
        e = Elu (d)
        f = Tanh (e)
        g = Erf (f)
        h = PRelu (g, slope)
        i = Sigmoid (x)
        j = Softmax <axis = 1> (h)
        k = Sqrt (i)
        l = Mul (j, k)
        m = Sub (l, c)
        y = Div (m, high)
        }""",
    ),
    "shapes": (
        17,
        """<int64[3] three = {0, -1, 7}, int64[1] two = {2}, int64[1] one = {1}, int64[1] three_ = {3},
        int64[8] pads = {0, 1, 0, 0, 0, 1, 2, 0}, int64[1] zero = {0}, int64[1] end = {100}, int64[2] parts = {4, 3},
        int64[1] minus = {-1}, int64[1] before = {-100}> {
        a = Reshape (x, three)
        b = Transpose <perm = [0, 2, 1]> (a)
        c = Unsqueeze (b, two)
        d = Squeeze (c, two)
        e0, e1 = Split <axis = 1> (d, parts)
        e = Concat <axis = 1> (e0, e1)
        s = Shape (x)
        t = Gather <axis = 0> (s, zero)
        f = Reshape (e, s)
        g = Slice (f, one, end, three_, two)
        back = Slice (g, end, before, three_, minus)
        part = Slice (back, end, one, two, minus)
        h = Pad (part, pads)
        i = Identity (h)
        first = Shape <end = 1> (i)
        others = Shape <start = 1> (i)
        sizes = Concat <axis = 0> (first, others)
        y = Reshape (i, sizes)
        }""",
    ),
    "transposed conv": (
        17,
        """<int64 zero = {0}, int64[4] shape = {4, 2, 3, 7}> {
        a = Gather <axis = 0> (x, zero)
        w = Reshape (a, shape)
        y = ConvTranspose <strides = [2, 1], pads = [1, 2, 0, 3], output_padding = [1, 0]> (x, w)
        }""",
    ),
    "enlarging": (
        17,
        """<float[0] none = {}, float[4] scales = {1, 1, 2, 1.5}, int64[4] sizes = {3, 4, 9, 14}> {
        a = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (x, none, scales)
        b = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",
            nearest_mode = "floor"> (a, none, scales)
        c = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (b, none, none, sizes)
        y = Resize <mode = "nearest", coordinate_transformation_mode = "half_pixel"> (c, none, scales)
        }""",
    ),
    "blocks": (
        17,
        """<int64[2] axes = {2, 3}> {
        a = DepthToSpace <blocksize = 2, mode = "CRD"> (x)
        b = SpaceToDepth <blocksize = 2> (a)
        c = DepthToSpace <blocksize = 2> (b)
        d = ReduceMax <axes = [1], keepdims = 1> (c)
        e = ReduceSum (c, axes)
        f = Max (d, e, c)
        g = Softplus (f)
        h = Neg (g)
        i = Exp (h)
        y = Min (i, c)
        }""",
    ),
    "grids": (
        18,
        """<int64 zero = {0}, int64 one = {1}, int64[4] twice = {1, 2, 1, 1}, float half = {0.5}> {
        s = Shape (x)
        width = Gather <axis = 0> (s, three)
        r = Range (zero, width, one)
        columns = Cast <to = 1> (r)
        empty = ConstantOfShape <value = float[1] {2.5}> (s)
        a = Sum (x, empty, columns)
        left = Less (columns, half)
        b = Where (left, a, x)
        c = Mish (b)
        d = ReduceL2 <keepdims = 1> (c, axes)
        e = Reciprocal (d)
        f = Mul (c, e)
        g = Tile (f, twice)
        h = Floor (g)
        i = Ceil (x)
        same = Greater (x, half)
        not = Not (same)
        odd = Equal (same, not)
        j = Where (odd, x, i)
        k = Concat <axis = 1> (h, j)
        l = Sin (k)
        y = Cos (l)
        }""",
    ),
    "recurrent": (
        17,
        """{
        s = Reshape (x, steps)
        t = Transpose <perm = [1, 0, 2]> (s)
        there, last, cell = LSTM <hidden_size = 5, direction = "bidirectional"> (t, w, r, b)
        back, end_, cell_ = LSTM <hidden_size = 5, direction = "bidirectional"> (t, w, r, , , last, cell)
        sum = Add (there, back)
        y = Transpose <perm = [2, 0, 1, 3]> (sum)
        }""",
    ),
    "older": (
        9,
        """{
        a = Clip <min = -1.0, max = 1.0> (x)
        b = Slice <starts = [0], ends = [4], axes = [2]> (a)
        c = ReduceMean <axes = [3], keepdims = 1> (b)
        d = Pad <pads = [0, 0, 1, 0, 0, 0, 0, 1]> (c)
        y = Dropout (d)
        }""",
    ),
    "softmax over several axes": (
        11,
        """{
        a = Softmax (x)
        b = LogSoftmax <axis = 2> (x)
        y = Add (a, b)
        }""",
    ),
    "resize, as it first was": (
        10,
        """<float[4] larger = {1, 1, 2, 3}, float[4] smaller = {1, 1, 0.6, 0.5}> {
        a = Resize <mode = "nearest"> (x, larger)
        b = Resize <mode = "linear"> (a, smaller)
        c = Resize <mode = "linear"> (b, larger)
        y = Resize <mode = "nearest"> (c, smaller)
        }""",
    ),
    "upsample, as it first was": (
        7,
        """{
        y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 3.0]> (x)
        }""",
    ),
    "scales in single precision": (
        13,
        """<int64[8] pads = {0, 0, 0, 0, 0, 0, 4, 3}, float[4] smaller = {1, 1, 0.7, 0.7}> {
        a = Pad (x, pads)
        y = Resize <mode = "linear"> (a, , smaller)
        }""",
    ),
    "sizes in whole numbers": (
        17,
        """<int64 two = {2}, int64 three = {3}> {
        s = Shape (x)
        width = Gather <axis = 0> (s, three)
        half = Div (width, two)
        count = Cast <to = 1> (half)
        y = Div (x, count)
        }""",
    ),
    "windows that would begin behind the image": (
        17,
        """{
        y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1> (x)
        }""",
    ),
    "pads": (
        19,
        """<int64[8] right = {0, 0, 0, 2, 0, 0, 0, 1}, int64[8] around = {0, 0, 1, 1, 0, 0, 1, 0}> {
        a = Pad <mode = "reflect"> (x, right)
        y = Pad <mode = "wrap"> (a, around)
        }""",
    ),
    "uneven parts": (
        18,
        """<float[7] scale = {1, 2, 3, 4, 5, 6, 7}> {
        a = LayerNormalization <axis = 2> (x, scale, scale)
        b, c, empty = Split <axis = 1, num_outputs = 3> (a)
        d = Concat <axis = 1> (c, empty, b)
        y = ReduceMean <noop_with_empty_axes = 1> (d)
        }""",
    ),
}

# Weights and sizes that the graphs above name.
_RANDOM = np.random.default_rng(1)
CONSTANTS = {
    "grids": {"three": np.array(3), "axes": np.array([1, 3])},
    "recurrent": {
        "steps": np.array([3, 8, 21]),
        **{
            key: 0.3 * _RANDOM.standard_normal(shape).astype(np.float32)
            for key, shape in {"w": (2, 20, 21), "r": (2, 20, 5), "b": (2, 40)}.items()
        },
    },
}


@pytest.mark.parametrize("name", GRAPHS)
def test_torch_gives_what_onnxruntime_gives(name: str) -> None:
    opset, body = GRAPHS[name]
    proto = onnx.parser.parse_model(HEAD.replace("{opset}", str(opset)) + body)
    for key, array in CONSTANTS.get(name, {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    x = np.random.default_rng(0).standard_normal((3, 4, 6, 7)).astype(np.float32)
    wanted = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    graph = TorchGraph(prepare(ir.serde.deserialize_model(proto)))
    with torch.no_grad():
        np.testing.assert_allclose(graph(torch.from_numpy(x))[0].numpy(), wanted, atol=1e-5)


def test_convs_and_heads_too() -> None:
    model, _ = make_network()
    images = make_images(4).inputs
    proto = ir.serde.serialize_model(model)
    wanted = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": images}
    )[0]
    graph = TorchGraph(model)
    with torch.no_grad():
        np.testing.assert_allclose(graph(torch.from_numpy(images))[0].numpy(), wanted, atol=1e-5)
    assert set(graph.names) == {*(f"{n}.weight" for n in ("stem", "one", "two", "grouped", "head")),
                                *(f"{n}.bias" for n in ("stem", "one", "grouped", "head"))}  # fmt: skip


def unknown() -> ir.Model:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>\nnet (float[2, 4] x) => (float[2, 4] y) { y = CumSum (x, x) }'
    )
    return ir.serde.deserialize_model(proto)


def test_unknown_operators_are_named() -> None:
    with pytest.raises(UnsupportedError, match="CumSum cannot be run in torch"):
        TorchGraph(unknown())


@pytest.mark.parametrize(
    "node",
    [
        "y = InstanceNormalization (x, ones, ones)",
        'y = Resize <mode = "nearest", axes = [2, 3], keep_aspect_ratio_policy = "not_larger"> (x, , , sizes)',
        "y = AveragePool <kernel_shape = [1, 1], dilations = [2, 2]> (x)",
    ],
)
def test_nodes_that_torch_does_not_run_are_named(node: str) -> None:
    text = """<ir_version: 8, opset_import: ["": 19]> net (float[N, 2, 1, 1] x) => (float[N, 2, h, w] y)
    <float[2] ones = {1, 1}, int64[2] sizes = {2, 3}> { """
    graph = TorchGraph(prepare(ir.serde.deserialize_model(onnx.parser.parse_model(text + node + " }"))))
    with pytest.raises(UnsupportedError, match=rf"{node.split()[2]}.* cannot be run in torch"):
        graph(torch.ones(3, 2, 1, 1))


def test_inputs_with_a_default_keep_it() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[2] x, float[2] gain) => (float[2] y)
    <float[2] gain = {1, 2}> { y = Mul (x, gain) }"""
    graph = TorchGraph(ir.serde.deserialize_model(onnx.parser.parse_model(text)))
    assert graph(torch.tensor([3.0, 3.0]))[0].tolist() == [3, 6]


def test_weights_behind_a_transpose_are_trained() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 4] x) => (float[N, 2] y)
    <float[3, 4] w, float[2, 3] v> { a = Transpose (w)  b = MatMul (x, a)  c = Transpose (v)  y = MatMul (b, c) }"""
    assert TorchGraph(prepare(ir.serde.deserialize_model(build(text)))).names == ["w", "v"]


def _compressed(batch: int | None = None) -> tuple[ir.Model, ir.Model, np.ndarray]:
    text = RESIDUAL.replace("float[N,", f"float[{batch},") if batch else RESIDUAL
    model, located = make_network(text)
    images = make_images(60).inputs
    ranks = {"one": (SPATIAL_WISE, 4), "two": (CHANNEL_WISE, 2)}
    plan = Plan(
        tuple(
            Decision(p.site, (Branch(*ranks[p.site.name]),) if p.site.name in ranks else (), reason="") for p in located
        ),
        "by hand",
    )
    fitted = refit(
        model,
        plan,
        in_batches(*np.split(images, len(images) // (batch or 12)), fixed=batch is not None),
        LayerFactors({}, {}),
    )
    small = model.clone()
    places = find_sites(small, {})
    add_to_bias(small, places, fitted.shifts)
    rewrite(small, plan, places, fitted.factors)
    remove_unused(small)
    return model, small, images


def test_distillation_comes_nearer_and_replays() -> None:
    original, small, images = _compressed()
    first, second = (tune(original, small, in_batches(images), steps=30, seed=1, threads=1) for _ in range(2))
    assert first.divergence_after < first.divergence_before
    assert first.agreement_after is not None
    assert first.agreement_before is not None
    assert first.agreement_after >= first.agreement_before
    assert {"one.reduce.weight", "one.expand.weight", "two.reduce.weight"} <= set(first.values)
    for name, array in first.values.items():
        np.testing.assert_array_equal(array, second.values[name])
    apply_values(small, first.values)
    np.testing.assert_array_equal(
        small.graph.initializers["one.reduce.weight"].const_value.numpy(),  # type: ignore[union-attr]
        first.values["one.reduce.weight"],
    )


def test_large_matrices_are_trained_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that take long to make orthogonal: here all, so that Muon has nothing to do."""
    monkeypatch.setattr("trp_export.recover.distil._LARGE", 0)
    monkeypatch.setattr("trp_export.recover.distil.Muon", None)
    original, small, images = _compressed()
    result = tune(original, small, in_batches(images), steps=60, seed=1)
    assert result.divergence_after < result.divergence_before
    assert {"one.reduce.weight", "one.expand.weight", "two.reduce.weight"} <= set(result.values)


def test_a_run_that_only_makes_things_worse_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trp_export.recover.distil.LEARNING_RATES", (100.0, 100.0))
    original, small, images = _compressed()
    result = tune(original, small, in_batches(images), steps=8)
    assert result.values == {}
    assert result.divergence_after == result.divergence_before


def test_a_lower_learning_rate_is_taken_where_the_highest_does_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trp_export.recover.distil.LEARNING_RATES", (100.0, 3e-3, 1e-3))
    original, small, images = _compressed()
    result = tune(original, small, in_batches(images), steps=120)
    assert result.divergence_after < result.divergence_before


class _Trials:
    """A run whose divergence after a trial is known for each learning rate."""

    def __init__(self, scores: Sequence[float]) -> None:
        self._scores = dict(zip(LEARNING_RATES, scores, strict=True))
        self.rates: list[float] = []

    def restart(self, rate: float) -> None:
        self.rates.append(rate)

    def step(self, done: float) -> None:
        pass

    def score(self) -> Score:
        return Score(self._scores[self.rates[-1]], None, np.zeros(8))


@pytest.mark.parametrize(
    ("scores", "tried", "legs"),
    [
        ((0.9, 0.5, 0.7, 0.1, 0.1), 3, (0, 1)),
        ((2.0, 3.0, 1.5, 0.8, 0.9), 5, (2, 3)),
        ((0.9, 0.9, 0.1, 0.1, 0.1), 2, (0, 1)),
        ((2.0, 2.0, 2.0, 2.0, 2.0), 5, (4, 4)),
    ],
    ids=["second", "fourth", "first", "none"],
)
def test_the_rate_above_that_of_the_best_trial_comes_first(
    scores: Sequence[float], tried: int, legs: tuple[int, int]
) -> None:
    trials: Any = _Trials(scores)
    first, second = legs
    wanted = (LEARNING_RATES[first], LEARNING_RATES[second])
    assert _choose_rates(trials, 100, 1.0, lambda share: None) == (wanted, 5 * tried)
    assert trials.rates == [*LEARNING_RATES[:tried]]


class _Legs:
    """A run in two legs of two checks each, whose divergences are given; a check's number stands for its weights."""

    start_score = Score(1.0, None, np.ones(8))

    def __init__(self, scores: Sequence[float]) -> None:
        self._scores = scores
        self.begun: list[tuple[float, dict[str, torch.Tensor]]] = []
        self.checks = 0

    def prepare_for(self, steps: int) -> None:
        pass

    def restart(self, rate: float) -> None:
        pass

    def go_on(self, rate: float, weights: dict[str, torch.Tensor]) -> None:
        self.begun.append((rate, weights))

    def step(self, done: float) -> None:
        pass

    def score(self) -> Score:
        self.checks += 1
        score = self._scores[self.checks - 1]
        return Score(score, None, np.full(8, score))

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {"w": torch.tensor(self.checks)}


@pytest.mark.parametrize(
    ("scores", "first", "last"),
    [((0.8, 0.9, 0.7, 0.6), 1, 4), ((1.2, 1.3, 0.7, 0.9), None, 3), ((0.8, 0.5, 0.7, 0.6), 2, 2)],
    ids=["both gain", "the first did harm", "the second gains nothing"],
)
def test_training_goes_on_from_the_best_weights_at_a_lower_rate(
    monkeypatch: pytest.MonkeyPatch, scores: Sequence[float], first: int | None, last: int
) -> None:
    monkeypatch.setattr("trp_export.recover.tune._CHECKS", 4)
    monkeypatch.setattr("trp_export.recover.tune._choose_rates", lambda *given: ((0.1, 0.03), 0))
    run: Any = _Legs(scores)
    result = _train(run, 8, lambda share: None)
    assert run.begun == [(0.1, {}), (0.03, {} if first is None else {"w": first})]
    assert result.values == {"w": last}
    assert result.divergence_after == min(scores)


@pytest.mark.parametrize(("steps", "tried"), [(8, 0), (20, 2 * 5), (120, 10 * 6)])
def test_trials_of_learning_rates_take_at_most_half_of_the_steps(
    monkeypatch: pytest.MonkeyPatch, steps: int, tried: int
) -> None:
    monkeypatch.setattr("trp_export.recover.distil.LEARNING_RATES", (100.0,) * 20)
    original, small, images = _compressed()
    run = Distiller(original, small, in_batches(images), (), 0)
    _, spent = _choose_rates(run, steps, run.start_score[0], lambda share: None)
    assert spent == tried <= steps / 2


def test_a_gain_of_a_few_images_alone_is_chance() -> None:
    """Of eight images one comes much nearer and the others go away a little; or all come nearer a little."""
    before = Score(1.0, None, np.ones(8))
    one, all_ = np.array([0.2, *[1.05] * 7]), np.full(8, 0.97) + 0.01 * np.arange(8) / 8
    assert one.mean() < all_.mean() < 1
    assert not _is_gain(before, Score(float(one.mean()), None, one))
    assert _is_gain(before, Score(float(all_.mean()), None, all_))


def test_agreement_may_fall_by_its_standard_error() -> None:
    """One of 64 images more or less is chance, ten are not."""
    assert _agrees_as_well(60 / 64, 61 / 64, 64)
    assert not _agrees_as_well(51 / 64, 61 / 64, 64)
    assert _agrees_as_well(None, None, 64)


def test_answers_in_half_precision_do_where_they_differ_little(monkeypatch: pytest.MonkeyPatch) -> None:
    original, small, images = _compressed()
    far = Distiller(original, small, in_batches(images), (), 0)
    assert far._half
    near = Distiller(original, original, in_batches(images), (), 0)
    monkeypatch.setattr("trp_export.recover.distil.half_precision", lambda: torch.autocast("cpu", torch.bfloat16))
    assert not near._half_precision_will_do()


def test_parts_of_a_step_add_up_to_the_divergence() -> None:
    """A part of a few images is measured in the units of all: the loss is what the score is."""
    original, small, images = _compressed()
    run = Distiller(original, small, in_batches(images), (), 0)
    wanted, got = (run._answers(network, run._samples)["y"] for network in (run._teacher, run._student))
    parts = [
        float(run._divergence([torch.from_numpy(got[at : at + 2])], [torch.from_numpy(wanted[at : at + 2])]))
        for at in range(0, len(wanted), 2)
    ]
    assert len(wanted) % 2 == 0
    assert np.mean(parts) == pytest.approx(divergence({"y": wanted}, {"y": got}), rel=1e-4)


def test_minutes_become_steps() -> None:
    original, small, images = _compressed()
    seen: list[float] = []
    result = tune(original, small, in_batches(images), minutes=0.01, progress=seen.append)
    assert result.steps >= 1
    assert seen[-1] <= 1


def test_the_time_that_scores_take_is_part_of_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    original, small, images = _compressed()
    monkeypatch.setattr(Distiller, "seconds_per_step", lambda self: 0.01)
    monkeypatch.setattr("trp_export.recover.tune._CHECKS", 10**9)
    assert tune(original, small, in_batches(images), minutes=0.1).steps == 1


def test_too_few_images_are_refused() -> None:
    original, small, images = _compressed()
    with pytest.raises(OptionError, match="at least 16 images, not 8"):
        tune(original, small, in_batches(images[:8]), steps=1)


def test_augmented_images_keep_shape_type_and_range() -> None:
    images = torch.from_numpy(make_images(12).inputs)
    made = augment(images, torch.Generator().manual_seed(0), pastes=True)
    assert made.shape == images.shape
    assert made.dtype == torch.float32
    assert images.min() <= made.min() <= made.max() <= images.max()
    assert augment(torch.ones(5, 7), torch.Generator().manual_seed(0)).shape == (5, 7)


def _small(model: ir.Model, **new: np.ndarray) -> ir.Model:
    """A copy with other weights."""
    small = model.clone()
    apply_values(small, new)
    return small


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("changed", "guides"), [("k0", ["s0", "s1", "s2", "j"]), ("k1", ["c1", "s1", "c2", "s2", "j"])], ids=["sums", "few"]
)
def test_sums_and_joins_that_the_cut_changed_guide(changed: str, guides: list[str]) -> None:
    """Not what lies before the first change, nor what no answer reads; convs only where the others are few."""
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y, float[N, 2] z)
    <float[4, 3, 3, 3] k0, float[4, 4, 3, 3] k1, float[4, 4, 3, 3] k2, float[8, 2] m, float[5, 8, 1, 1] k3> {
    c0 = Conv <pads = [1, 1, 1, 1]> (x, k0)  s0 = Add (c0, c0)
    c1 = Conv <pads = [1, 1, 1, 1]> (s0, k1)  s1 = Add (c1, s0)
    c2 = Conv <pads = [1, 1, 1, 1]> (s1, k2)  s2 = Add (c2, s1)
    j = Concat <axis = 1> (s2, s1)  p = GlobalAveragePool (j)  f = Flatten (p)
    y = Conv (j, k3)  e = Sigmoid (y)  after = Add (e, e)  z = MatMul (f, m) }"""
    model = prepare(ir.serde.deserialize_model(build(text)))
    weight = model.graph.initializers[changed].const_value.numpy()  # type: ignore[union-attr]
    run = Distiller(model, _small(model, **{changed: 0.9 * weight}), in_batches(_images(20)), (), 0)
    assert run._student.outputs == run._teacher.outputs == ["y", "z", *guides]
    run.step(0.5)


def test_guides_of_a_deep_network_are_spread_over_it() -> None:
    names = [str(place) for place in range(40)]
    few = _few(names)
    assert len(few) == 16
    assert few[-1] == "39"
    assert {int(b) - int(a) for a, b in pairwise(few)} == {2, 3}
    assert _few(names[:3]) == names[:3]
    assert _few([]) == []


POOLED = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 3, 8, 8] x) => (float[N, 5] y)
<float[4, 3, 8, 8] k, float[{wide}, 4, 1, 1] l, float[{wide}, 5] m>
{{ a = Conv (x, k)  b = Conv (a, l)  f = Flatten (b)  y = MatMul (f, m) }}"""


def test_a_map_that_lost_channels_is_no_guide() -> None:
    """The last map of a classifier may lose channels: it has no distance to the original's."""
    wide, thin = (prepare(ir.serde.deserialize_model(build(POOLED.format(wide=wide)))) for wide in (6, 4))
    run = Distiller(wide, thin, in_batches(_images(20)), (), 0)
    assert run._student.outputs == ["y"]
    run.step(0.5)


def test_a_part_of_one_image_teaches_as_much_as_any() -> None:
    """One position of one image has no variance of its own."""
    model = prepare(ir.serde.deserialize_model(build(POOLED.format(wide=6))))
    weight = model.graph.initializers["k"].const_value.numpy()  # type: ignore[union-attr]
    run = Distiller(model, _small(model, k=0.9 * weight), in_batches(_images(20)), (), 0)
    assert run._student.outputs == ["y", "a", "b"]
    run._half = False
    alone = [run._gradients({"x": image[None]}) for image in run._samples["x"]]
    for ones, all_ in zip(zip(*alone, strict=True), run._gradients(run._samples), strict=True):
        assert all_ is not None
        torch.testing.assert_close(torch.stack([one for one in ones if one is not None]).mean(0), all_)


def test_guides_vary_as_over_many_images_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first images say little: these are black."""
    monkeypatch.setattr("trp_export.recover.distil._ENTRIES", 3 * 3 * 8 * 8)
    model = prepare(ir.serde.deserialize_model(build(POOLED.format(wide=6))))
    weight = model.graph.initializers["k"].const_value.numpy()  # type: ignore[union-attr]
    images = _images(15)
    images[:3] = 0
    run = Distiller(model, _small(model, k=0.9 * weight), in_batches(images), in_batches(_images(8)), 0)
    maps = run._run(run._teacher, run._samples)[1:]
    assert run._at_once == 3
    assert run._spreads == [pytest.approx(float(one.var(dim=0, correction=0).mean()), rel=1e-4) for one in maps]


def test_guides_that_hardly_vary_count_by_their_values() -> None:
    """What varies less than rounding would outweigh everything; what is constantly nought is no guide."""
    still = torch.full((4, 2, 3, 3), 10.0)
    assert _spread_of_changed([_compared(still + 1, still)]) == pytest.approx(0.1)
    assert _spread_of_changed([_compared(still, 0 * still)]) is None
    assert _spread_of_changed([_compared(still, still)]) is None
    assert _spread_of_changed([_compared(still, still[:, :1])]) is None


def test_sizes_that_a_network_computes_are_no_guides() -> None:
    """With a fixed batch the values of chunks are joined, which numbers are not."""
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[2, 3, H, W] x) => (float[2, 4, h, w] y)
    <float[4, 3, 3, 3] k, float[4, 4, 3, 3] l, int64 two = {2}, int64 three = {3}, int64[1] axis = {0},
     int64[2] batch = {2, 4}, float[0] none = {}> {
    a = Conv <pads = [1, 1, 1, 1]> (x, k)  s = Shape (a)  h = Gather (s, two)  w = Gather (s, three)
    hh = Add (h, h)  ww = Add (w, w)  h1 = Unsqueeze (hh, axis)  w1 = Unsqueeze (ww, axis)
    sizes = Concat <axis = 0> (batch, h1, w1)  u = Resize <mode = "nearest"> (a, none, none, sizes)
    y = Conv <pads = [1, 1, 1, 1]> (u, l) }"""
    model = prepare(ir.serde.deserialize_model(build(text)))
    weight = model.graph.initializers["k"].const_value.numpy()  # type: ignore[union-attr]
    images = in_batches(*np.split(_images(20), 10), fixed=True)
    assert tune(model, _small(model, k=0.9 * weight), images, steps=2, threads=1).steps == 2


@pytest.mark.parametrize("size", ["N", "2"])
def test_answers_of_several_rows_for_each_image_are_tuned(size: str) -> None:
    """Text recognisers compute with rows of steps."""
    text = f"""<ir_version: 8, opset_import: ["": 17]> net (float[{size}, 3, 8, 8] x) => (float[rows, 6] y)
    <float[4, 3, 8, 1] k, float[4, 6] m, int64[2] rows_ = {{-1, 4}}>
    {{ a = Conv (x, k)  b = Transpose <perm = [0, 2, 3, 1]> (a)  c = Reshape (b, rows_)  y = MatMul (c, m) }}"""
    model = prepare(ir.serde.deserialize_model(build(text)))
    weight = model.graph.initializers["k"].const_value.numpy()  # type: ignore[union-attr]
    images = in_batches(*np.split(_images(25)[:24], 12), fixed=size != "N")
    result = tune(model, _small(model, k=0.9 * weight), images, steps=20, threads=1)
    assert result.divergence_after < result.divergence_before


def test_descriptors_have_no_classes_to_agree_on() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 3, 8, 8] x) => (float[N, 64] y)
    <float[64, 3, 8, 8] k> { a = Conv (x, k)  y = Flatten (a) }"""
    model = build(text)
    random = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(random, "k"))
    network = prepare(ir.serde.deserialize_model(model))
    run = Distiller(network, network.clone(), in_batches(_images(400)), (), 0)
    assert [stick.kind for stick in run._sticks.values()] == [Kind.CLASSES]
    assert run.start_score[:2] == (pytest.approx(0, abs=1e-6), None)


@pytest.mark.parametrize("outputs", [["y"], ["y", "b", "c"]], ids=["at once", "after narrowing"])
def test_values_are_let_go_when_nothing_reads_them_any_more(
    monkeypatch: pytest.MonkeyPatch, outputs: list[str]
) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def relu(node: ir.Node, given: list[torch.Tensor]) -> torch.Tensor:
        alive.append(sum(one() is not None for one in made))
        result = given[0] + 1
        made.append(weakref.ref(result))
        return result

    monkeypatch.setitem(RULES, "Relu", relu)
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 3] x) => (float[N, 3] y)
    { a = Relu (x)  b = Relu (a)  c = Relu (b)  d = Relu (c)  y = Add (d, a) }"""
    graph = TorchGraph(ir.serde.deserialize_model(build(text)), outputs)
    graph.narrow_to(["y"])
    assert graph(torch.zeros(2, 3))[0].tolist() == [[5.0] * 3] * 2
    assert alive == [0, 1, 2, 2]


def test_trials_of_learning_rates_see_the_same_images() -> None:
    original, small, images = _compressed()
    run, seen = Distiller(original, small, in_batches(images), (), 0), []
    gradients = run._gradients
    run._gradients = lambda batch: seen.append(batch["x"]) or gradients(batch)
    for rate in LEARNING_RATES[:2]:
        run.restart(rate)
        run.step(0.5)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert {len(part) for part in first} == {16}
    for one, other in zip(_by_content(first), _by_content(second), strict=True):
        torch.testing.assert_close(one, other)


def _by_content(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Workers take the parts of a step in any order."""
    return sorted(parts, key=lambda part: float(part.sum()))


def test_half_of_the_images_get_a_rectangle_of_another_one() -> None:
    numbers = torch.arange(2_000.0)[:, None, None]
    made = _paste(numbers[:, None].expand(-1, 3, 12, 20), torch.Generator().manual_seed(0))
    pasted = made[:, 0] != numbers
    assert (made == made[:, :1]).all()
    for image, inside in zip(made[:, 0], pasted, strict=True):
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns)
        assert len(image[inside].unique()) <= 1
        assert all((line.diff() != 0).sum() <= 2 for line in (rows, columns))
    assert pasted.any((1, 2)).float().mean() == pytest.approx(0.5, abs=0.05)
    assert pasted.float().mean() == pytest.approx(0.25, abs=0.02)


def test_images_are_pasted_in_long_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    original, small, images = _compressed()
    run, pasted = Distiller(original, small, in_batches(images), (), 0), []
    monkeypatch.setattr("trp_export.recover.distil._paste", lambda batch, random: pasted.append(1) or batch)
    for steps, times in ((3, 0), (100 * len(images), 1)):
        run.prepare_for(steps)
        run.step(0.5)
        assert len(pasted) == times


def test_shifted_images_are_windows_of_the_padded_ones() -> None:
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    images = torch.stack([rows, columns]).expand(6, 2, 16, 16)
    made = _flip_and_shift(images, torch.Generator().manual_seed(0), None)
    inner = made[:, :, 4:12, 4:12]
    assert (inner[:, 0].diff(dim=1) == 1).all()
    steps = inner[:, 1].diff(dim=2)
    assert (steps.abs() == 1).all()
    assert {float(steps[i, 0, 0]) for i in range(6)} == {-1.0, 1.0}
    assert (made[:, 0, 8, 8] - 8).abs().max() <= 2


def test_a_patch_is_a_part_of_its_image() -> None:
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    made = _flip_and_shift(torch.stack([rows, columns]).expand(50, 2, 20, 24), torch.Generator().manual_seed(0), 8)
    assert made.shape == (50, 2, 8, 8)
    assert (made[:, 0].diff(dim=1) == 1).all()
    assert (made[:, 1].diff(dim=2).abs() == 1).all()
    assert set(made[:, 0, 0, 0].tolist()) == set(range(13))
    assert set(made[:, 1].amin((1, 2)).tolist()) == set(range(17))


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("y = Conv <pads = [1, 1, 1, 1]> (a, v)", True),
        ("y = Conv (a, v)", True),
        ("b = Conv <pads = [1, 1, 1, 1]> (a, v)  y = DepthToSpace <blocksize = 2> (b)", True),
        ("b = Conv <pads = [1, 1, 1, 1]> (a, v)  c = GlobalAveragePool (b)  y = Mul (b, c)", False),
        ("y = Conv <pads = [64, 64, 64, 64], dilations = [64, 64]> (a, v)", False),
        ("b = Conv (a, v)  y = GlobalAveragePool (b)", False),
        ("b = Conv <pads = [1, 1, 1, 1]> (a, v)  y = Add (b, large)", False),
    ],
)
def test_parts_of_images_teach_networks_that_look_no_further(body: str, parts: bool) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17]> net (float[N, 3, H, W] x) => (float[N, C, h, w] y)
    <float[8, 3, 3, 3] k, float[8, 8, 3, 3] v, float[1, 8, 128, 160] large>
    {{ a = Conv <pads = [1, 1, 1, 1]> (x, k)  {body} }}"""
    model = prepare(ir.serde.deserialize_model(build(text)))
    images = np.random.default_rng(0).standard_normal((20, 3, 2 * PATCH, 160)).astype(np.float32)
    run = Distiller(model, model.clone(), in_batches(images), (), 0)
    assert run._patch == (PATCH if parts else None)
    run.step(0.5)


@pytest.mark.parametrize(("batch", "steps"), [pytest.param(1, 24, marks=pytest.mark.slow), (5, 60)])
def test_a_fixed_batch_is_tuned_too(batch: int, steps: int) -> None:
    original, small, images = _compressed(batch)
    tuned = tune(original, small, in_batches(images), steps=steps, threads=1)
    assert tuned.divergence_after < tuned.divergence_before


@pytest.mark.parametrize("size", ["N", "5"])
def test_answers_with_their_steps_first_are_tuned(size: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17]> net (float[{size}, 3, 2, 9] x) => (float[9, {size}, 6] y)
    <float[4, 3, 2, 3] k, float[4, 6] m>
    {{ a = Conv <pads = [0, 1, 0, 1]> (x, k)  axes = Constant <value_ints = [2]> ()  b = Squeeze (a, axes)
       c = Transpose <perm = [2, 0, 1]> (b)  l = MatMul (c, m)  y = Softmax <axis = 2> (l) }}"""
    model = prepare(ir.serde.deserialize_model(build(text)))
    images = np.random.default_rng(0).standard_normal((100, 3, 2, 9)).astype(np.float32)
    run = Distiller(model, model.clone(), in_batches(images), (), 0)
    run.step(0.5)
    assert run.held_out_images == 12
    assert run.start_score[:2] == (pytest.approx(0, abs=1e-6), 1)


def test_too_few_images_for_a_fixed_batch_are_repeated() -> None:
    original, small, images = _compressed(20)
    assert tune(original, small, in_batches(images[:20], fixed=True), steps=2, threads=1).steps == 2


def test_images_with_their_channels_last_are_flipped_and_cut_as_others_are() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[N, H, W, 3] x) => (float[N, 4, h, w] y)
    <float[4, 3, 3, 3] k> { a = Transpose <perm = [0, 3, 1, 2]> (x)  y = Conv <pads = [1, 1, 1, 1]> (a, k) }"""
    model = prepare(ir.serde.deserialize_model(build(text)))
    images = np.random.default_rng(0).random((20, 2 * PATCH, 160, 3)).astype(np.float32)
    run, seen = Distiller(model, model.clone(), in_batches(images), (), 0), []
    run._gradients = lambda batch: seen.append(batch["x"]) or [None]
    run.step(0.5)
    assert {tuple(part.shape[1:]) for part in seen} == {(PATCH, PATCH, 3)}
    grey = torch.from_numpy(images).mean(dim=3, keepdim=True).expand(-1, -1, -1, 3)
    made = augment(grey * torch.tensor([1.0, 2.0, 3.0]), torch.Generator().manual_seed(0), channels=3)
    torch.testing.assert_close(made[..., 1:], made[..., :1] * torch.tensor([2.0, 3.0]))


def test_only_answers_that_fit_into_memory_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trp_export.calibration.memory._WALKED_BYTES", 1)
    original, small, images = _compressed()
    run = Distiller(original, small, in_batches(images[:40]), in_batches(images[40:]), 0)
    assert run.held_out_images == 8
    assert len(run._units["y"].relevance) == 8


def test_threads_are_those_of_before_afterwards() -> None:
    torch.set_num_threads(2)
    original, small, images = _compressed()
    tune(original, small, in_batches(images), steps=1, threads=1)
    assert torch.get_num_threads() == 2
    with pytest.raises(UnsupportedError):
        tune(unknown(), small, in_batches(images), steps=1, threads=1)
    assert torch.get_num_threads() == 2
