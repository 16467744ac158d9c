"""Images that are held out take no part in what is judged on them, and what is predicted from few images is true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import as_samples, in_batches, input_shapes, make_images, make_network

from trp_export.calibration.held_out import split_samples, take_samples
from trp_export.calibration.moments import Moments, MomentSums, gather_moments
from trp_export.calibration.output_curves import calibrated_factors, calibrated_layers
from trp_export.graph.prepare import prepare
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.sites import LocatedSite, find_sites
from trp_export.lowrank.branches import sum_products
from trp_export.lowrank.calibrated import calibrated_pair, output_errors, output_variance
from trp_export.lowrank.factor import product
from trp_export.lowrank.metric import ErrorMetric
from trp_export.lowrank.schemes import CHANNEL_WISE, DECOUPLING, POINTWISE_FIRST, SPATIAL_WISE, Scheme
from trp_export.planning.budgets import Budget, lost_energy, plan_by_macs
from trp_export.planning.curves import Layer, make_curve, schemes_for
from trp_export.planning.plan import Plan
from trp_export.planning.rules import take
from trp_export.steps.calibrate import CalibrationData


@given(count=st.integers(2, 3000), multiple=st.integers(1, 7))
def test_split_samples_are_apart_and_fill_batches(count: int, multiple: int) -> None:
    numbered = replace(make_images(1), pixels=np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1))
    split = split_samples(as_samples(numbered, at_a_time=multiple))
    shown, aside = split.fitting, split.held_out
    assert split.fresh is shown
    if aside is None:
        assert count < 2 * multiple
        return
    parts = [set(part.sets["x"].inputs.reshape(-1).tolist()) for part in (shown, aside)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(range(count))
    assert len(aside) % multiple == 0
    assert len(aside) >= multiple
    assert len(aside) <= max(count / 4, multiple)


@given(marks=st.lists(st.booleans(), min_size=1, max_size=200), multiple=st.integers(1, 7))
def test_samples_that_were_counted_are_not_held_out_and_do_not_count_again(marks: list[bool], multiple: int) -> None:
    numbered = replace(make_images(1), pixels=np.arange(len(marks), dtype=np.float32).reshape(-1, 1, 1, 1))
    split = split_samples(as_samples(numbered, at_a_time=multiple), np.array(marks))
    fitting, aside, fresh = (
        set(part.sets["x"].inputs.reshape(-1).astype(int).tolist()) if part is not None else set()
        for part in (split.fitting, split.held_out, split.fresh)
    )
    counted = set(np.flatnonzero(marks).tolist())
    assert fitting == set(range(len(marks))) - aside
    assert not aside & counted
    assert not fresh & counted
    assert fresh in (set(), fitting - counted)
    assert len(aside) % multiple == 0
    again = np.array(marks) | np.isin(np.arange(len(marks)), sorted(fresh))
    held = split_samples(as_samples(numbered, at_a_time=multiple), again).held_out
    assert split.fresh is None or held is None or len(held) == len(aside)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9), count=st.integers(1, 40))
def test_take_samples_takes_each_once_and_no_more(sizes: list[int], count: int) -> None:
    starts = np.cumsum([0, *sizes])
    batches = in_batches(*(np.arange(start, start + size) for start, size in zip(starts[:-1], sizes, strict=True)))
    taken = np.concatenate([batch.arrays["x"] for batch in take_samples(batches, count)])
    assert len(taken) == min(count, sum(sizes)) == len(set(taken.tolist()))


def test_shrinkage_is_that_of_ledoit_and_wolf() -> None:
    """Against the formula of the paper, vector by vector."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((20, 8)) * np.arange(1, 9)).astype(np.float32)
    sums = MomentSums(x.mean(axis=0)[None])
    sums.add(x.reshape(1, 20, 1, 8))
    moments = sums.moments()
    apart = x - x.mean(axis=0, dtype=np.float64)
    covariance = apart.T @ apart / 20
    spread = np.trace(covariance) / 8
    noise = sum(np.sum((np.outer(row, row) - covariance) ** 2) for row in apart) / 20**2
    wanted = noise / np.sum((covariance - spread * np.eye(8)) ** 2)
    np.testing.assert_allclose(moments.covariance[0], covariance, rtol=1e-5, atol=1e-5)
    assert moments.shrinkage[0] == pytest.approx(wanted, rel=1e-4)
    np.testing.assert_allclose(
        moments.shrunk(centred=True)[0], (1 - wanted) * covariance + wanted * spread * np.eye(8), rtol=1e-4, atol=1e-4
    )


def test_positions_of_one_image_do_not_count_as_images() -> None:
    """A thousand equal positions of each image say no more than one."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 6, 1, 10)).astype(np.float32)
    shrinkages = []
    for positions in (1, 4, 1000):
        sums = MomentSums(x.mean(axis=(1, 2)))
        sums.add(np.repeat(x, positions, axis=2))
        shrinkages.append(float(sums.moments().shrinkage[0]))
    np.testing.assert_allclose(shrinkages, shrinkages[0], rtol=1e-4)
    assert shrinkages[0] > 0.3


@pytest.mark.parametrize("images", [1, 2, 3])
def test_moments_of_few_images_stay_positive_definite(images: int) -> None:
    rng = np.random.default_rng(0)
    x = (1000 + 1e-3 * rng.standard_normal((1, images, 1, 40))).astype(np.float32)
    x[..., :5] = 7
    sums = MomentSums(x.mean(axis=(1, 2)))
    sums.add(x)
    values = np.linalg.eigvalsh(sums.moments().shrunk(centred=True)[0])
    assert values.min() >= 0
    if images > 1:
        assert values.min() > 0


@pytest.mark.parametrize("scheme", [CHANNEL_WISE, SPATIAL_WISE, POINTWISE_FIRST, DECOUPLING])
@pytest.mark.parametrize("group", [1, 2])
def test_held_out_errors_are_those_of_the_factors(scheme: Scheme, group: int) -> None:
    """Rank by rank, against the errors of the factors themselves, without turns that lower them."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((8, 6 // group, 3, 3))
    size = kernel[0].size

    def moments(count: int) -> np.ndarray:
        x = rng.standard_normal((group, count, size)) * np.linspace(0.2, 2, size)
        return x.transpose(0, 2, 1) @ x / count

    fitted, judge = ErrorMetric(moments(size + 10)), ErrorMetric(moments(3 * size))
    errors = output_errors(kernel, scheme, group, fitted, judge.inputs)
    direct = []
    for rank in range(1, len(errors) + 1):
        pair = calibrated_pair(kernel, scheme, group, rank, fitted, turns=0)
        new = product(pair, scheme, kernel.shape, group)
        direct.append(output_variance(kernel - new, group, judge) / output_variance(kernel, group, judge))
    wanted = np.maximum.accumulate(np.array(direct)[::-1])[::-1]
    np.testing.assert_allclose(errors, wanted, rtol=1e-3, atol=1e-8)


WIDE = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 512, 1, 1] x) => (float[N, 128, 1, 1] y)
{ a = Conv (x, w)
  r = Relu (a)
  y = Conv (r, v) }
"""


def _wide() -> tuple[ir.Model, tuple[LocatedSite, ...]]:
    proto = onnx.parser.parse_model(WIDE)
    rng = np.random.default_rng(0)
    for name, shape in {"w": (256, 512, 1, 1), "v": (128, 256, 1, 1)}.items():
        array = rng.standard_normal(shape) / np.sqrt(shape[1])
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    model = prepare(ir.serde.deserialize_model(proto))
    return model, find_sites(model, infer_shapes(model, input_shapes(model)))


def _vectors(count: int, seed: int) -> np.ndarray:
    """With a spectrum that falls slowly, in directions that are the same for every seed."""
    directions = np.linalg.qr(np.random.default_rng(99).standard_normal((512, 512)))[0]
    strengths = np.arange(1, 513) ** -0.5
    vectors = np.random.default_rng(seed).standard_normal((count, 512)) * strengths @ directions
    return vectors.reshape(count, 512, 1, 1).astype(np.float32)


def test_the_error_predicted_from_64_vectors_in_512_dimensions_is_true() -> None:
    model, located = _wide()
    images = replace(make_images(1), pixels=_vectors(64, 0), channels=512)
    split = split_samples(as_samples(images))
    shown, aside = split.fitting, split.held_out
    assert aside is not None
    place = located[0]
    plain = [
        Layer(p.site, tuple(make_curve(p.site, s, p.kernel()) for s in schemes_for(p.site, "auto"))) for p in located
    ]
    moments, judge = gather_moments(model, located, shown), gather_moments(model, located, aside)
    layers = calibrated_layers(plain, located, moments, held_out=judge)
    believed = calibrated_layers(plain, located, moments)
    curve, naive = layers[0].curves[0], believed[0].curves[0]
    fresh = _vectors(4000, 1).reshape(4000, 512)
    kernel = place.kernel().reshape(256, 512)
    for rank in (16, 48, 96, 160):
        plan = Plan((take(place.site, curve, rank),), "by hand")
        fitted = calibrated_factors(plan, located, moments)
        new = sum_products(fitted.factors[place.site.name], plan.changed[0].branches, place.site.kernel_shape, 1)
        apart = fresh @ (kernel - new.reshape(kernel.shape)).T
        true = float(np.square(apart - apart.mean(axis=0)).sum() / np.square(fresh @ kernel.T).sum())
        predicted = 1 - float(curve.energy[rank - 1])
        assert true / 2 < predicted < 2 * true
        assert 1 - naive.energy[rank - 1] < 0.8 * true
    plan = plan_by_macs(layers, Budget(sum(p.site.macs or 0 for p in located), 1.5))
    assert all(decision.energy < 0.999 for decision in plan.decisions if decision.branches)


def test_moments_of_two_runs_keep_their_images_apart() -> None:
    model, located = make_network()
    first, second = (gather_moments(model, located, as_samples(make_images(9, seed)))["one"] for seed in (0, 1))
    both: Moments = first + second
    assert both.images == 18
    assert both.shrinkage[0] < first.shrinkage[0]


def test_a_layer_that_only_held_out_images_reach_keeps_its_curves() -> None:
    """A branch may be taken for few images."""
    model, located = _wide()
    images = as_samples(replace(make_images(1), pixels=_vectors(8, 0), channels=512))
    judge = gather_moments(model, located, images)
    plain = [
        Layer(p.site, tuple(make_curve(p.site, s, p.kernel()) for s in schemes_for(p.site, "auto"))) for p in located
    ]
    assert calibrated_layers(plain, located, {}, held_out=judge) == tuple(plain)


@pytest.mark.parametrize(("room", "count"), [((), 40), ((8, 12), 12), ((8, 400), 40)])
def test_results_are_judged_on_as_many_samples_as_memory_is_for(room: tuple[int, ...], count: int) -> None:
    batches = in_batches(np.zeros((30, 1, 1, 1)), np.zeros((10, 1, 1, 1)))
    data = CalibrationData((), {}, lost_energy, (), batches, room)
    assert sum(len(batch) for batch in data.judged_on) == count
