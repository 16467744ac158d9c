"""Refit: it undoes what can be undone exactly, and never falls behind factors that know only the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import RESIDUAL, as_samples, in_batches, make_images, make_network
from shared import USES, SharedUse, all_patches, shared_images, shared_network

from trp_export.calibration import memory
from trp_export.calibration.divergence import divergence
from trp_export.calibration.moments import gather_moments
from trp_export.calibration.output_curves import LayerFactors, calibrated_factors
from trp_export.graph.bias import add_to_bias
from trp_export.graph.rewrite import set_products
from trp_export.graph.sites import find_sites
from trp_export.graph.weights import apply_values
from trp_export.lowrank.branches import factorise_branches, sum_products
from trp_export.lowrank.schemes import CHANNEL_WISE, MATRIX, POINTWISE_FIRST, SPATIAL_WISE, Branch, Scheme, input_sliced
from trp_export.planning.plan import Decision, Plan
from trp_export.recover.batch_norm_statistics import norms_left, renormalise
from trp_export.recover.best_of import closest
from trp_export.recover.refit import refit
from trp_export.recover.regression import Choice, LayerState, Residuals, regress
from trp_export.runtime.incremental import Walk
from trp_export.runtime.partial import Tap


def _plan(located: tuple, ranks: dict[str, tuple[Scheme, int]]) -> Plan:
    decisions = [
        Decision(p.site, (Branch(*ranks[p.site.name]),) if p.site.name in ranks else (), reason="by hand")
        for p in located
    ]
    return Plan(tuple(decisions), "by hand")


def _outputs(model: ir.Model, plan: Plan, fitted: LayerFactors, images: np.ndarray) -> dict[str, np.ndarray]:
    copy = model.clone()
    places = find_sites(copy, {})
    set_products(copy, plan, places, fitted.factors)
    add_to_bias(copy, places, fitted.shifts)
    return Tap(copy, ["x"], ["c2", "y"])({"x": images})


RANKS = {"one": (SPATIAL_WISE, 6), "two": (CHANNEL_WISE, 3), "grouped": (POINTWISE_FIRST, 2)}


def test_full_rank_stays_the_dense_network() -> None:
    model, located = make_network()
    images = make_images(40).inputs
    plan = _plan(located, {"one": (SPATIAL_WISE, 24), "two": (CHANNEL_WISE, 8), "grouped": (POINTWISE_FIRST, 4)})
    fitted = refit(model, plan, in_batches(images[:20], images[20:]), LayerFactors({}, {}))
    dense = Tap(model, ["x"], ["c2", "y"])({"x": images})
    after = _outputs(model, plan, fitted, images)
    for name, wanted in dense.items():
        np.testing.assert_allclose(after[name], wanted, atol=2e-3 * float(np.abs(wanted).max()))


def test_refit_comes_nearer_than_factors_alone_on_images_not_seen() -> None:
    model, located = make_network()
    seen, unseen = make_images(96), make_images(64, seed=5).inputs
    plan = _plan(located, RANKS)
    alone = calibrated_factors(plan, located, gather_moments(model, located, as_samples(seen)))
    refitted = refit(model, plan, in_batches(seen.inputs[:48], seen.inputs[48:]), alone)
    dense = {"y": Tap(model, ["x"], ["y"])({"x": unseen})["y"]}
    before = divergence(dense, _outputs(model, plan, alone, unseen))
    after = divergence(dense, _outputs(model, plan, refitted, unseen))
    assert after < before


def test_the_same_seed_gives_the_same_factors_and_the_model_stays() -> None:
    model, located = make_network()
    images = make_images(24).inputs
    before = Tap(model, ["x"], ["y"])({"x": images})["y"]
    plan = _plan(located, RANKS)
    first, second = (refit(model, plan, in_batches(images), LayerFactors({}, {}), seed=3) for _ in range(2))
    for name, (factors,) in first.factors.items():
        np.testing.assert_array_equal(factors.reduce, second.factors[name][0].reduce)
        np.testing.assert_array_equal(first.shifts[name], second.shifts[name])
    np.testing.assert_array_equal(Tap(model, ["x"], ["y"])({"x": images})["y"], before)


def test_constant_images_keep_every_factor_finite() -> None:
    model, located = make_network()
    images = np.ones((8, 3, 12, 12), dtype=np.float32)
    fitted = refit(model, _plan(located, RANKS), in_batches(images), LayerFactors({}, {}))
    for (factors,) in fitted.factors.values():
        assert np.isfinite(factors.reduce).all()
        assert np.isfinite(factors.expand).all()


def test_layers_that_cannot_be_refitted_keep_what_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    model, located = make_network()
    plan = _plan(located, {"one": (CHANNEL_WISE, 3)})
    given = factorise_branches(located[1].kernel(), (Branch(CHANNEL_WISE, 3),), 1)
    assert "one" in refit(model, plan, in_batches(make_images(8).inputs), LayerFactors({"one": given}, {})).shifts
    for calibrated, fits in (((), True), (None, False)):
        monkeypatch.setattr("trp_export.recover.refit.can_refit", lambda *_, fits=fits: fits)
        known = LayerFactors({"one": given}, {})
        fitted = refit(model, plan, in_batches(make_images(8).inputs), known, calibrated=calibrated)
        assert fitted.factors["one"] is given
        assert fitted.shifts == {}


def test_layers_too_large_for_their_products_stand_as_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fitted after them, and how close the network comes, is the same as with their products."""
    model, located = make_network()
    plan, batches = _plan(located, RANKS), in_batches(make_images(32).inputs)
    plain = LayerFactors(
        {
            c.site.name: factorise_branches(_kernel(located, c.site.name), c.branches, c.site.group)
            for c in plan.changed
        },
        {"one": np.linspace(0, 1, 8)},
    )
    found = []
    for bound in (memory._MATRIX_BYTES, 8 * 2 * 40**2):  # The moments of `one` and `two` are larger, of 72 values.
        monkeypatch.setattr(memory, "_MATRIX_BYTES", bound)
        fitted = refit(model, plan, batches, plain, calibrated=("grouped",))
        found.append((fitted, closest(model, plan, [plain], batches)[1][0].divergence))
    (first, apart), (second, as_pairs) = found
    assert second.factors["one"] is plain.factors["one"]
    assert as_pairs == pytest.approx(apart, rel=1e-4)
    np.testing.assert_allclose(second.shifts["grouped"], first.shifts["grouped"], rtol=1e-3, atol=1e-6)
    for part in ("reduce", "expand"):
        wanted, got = (getattr(own.factors["grouped"][0], part) for own in (first, second))
        np.testing.assert_allclose(np.abs(got), np.abs(wanted), rtol=1e-2, atol=1e-4)


def test_a_second_pair_is_fitted_to_what_the_first_leaves() -> None:
    model, located = make_network()
    images = make_images(96).inputs
    sums = {
        "one": (Branch(SPATIAL_WISE, 2), Branch(CHANNEL_WISE, 1)),
        "two": (Branch(input_sliced(2), 1), Branch(SPATIAL_WISE, 1)),
    }
    losses = []
    for count in (1, 2):
        decisions = (Decision(p.site, sums.get(p.site.name, ())[:count], "by hand") for p in located)
        plan = Plan(tuple(decisions), "by hand")
        fitted = refit(model, plan, in_batches(images), LayerFactors({}, {}))
        assert all(len(pairs) == count for pairs in fitted.factors.values())
        dense = {"y": Tap(model, ["x"], ["y"])({"x": images})["y"]}
        losses.append(divergence(dense, _outputs(model, plan, fitted, images)))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("rank", [1, 3])
def test_a_shortcut_takes_back_what_it_lost(rank: int) -> None:
    """With the stem cut, the sum after the block is nearer to the original than without its second conv's help."""
    model, located = make_network()
    images = make_images(96).inputs
    plan = _plan(located, {"stem": (CHANNEL_WISE, rank), "two": (CHANNEL_WISE, 6)})
    fitted = refit(model, plan, in_batches(images), LayerFactors({}, {}))
    stem_alone = LayerFactors({"stem": fitted.factors["stem"]}, {"stem": fitted.shifts["stem"]})
    copies = []
    for chosen, own in ((plan, fitted), (_plan(located, {"stem": (CHANNEL_WISE, rank)}), stem_alone)):
        copy = model.clone()
        places = find_sites(copy, {})
        set_products(copy, chosen, places, own.factors)
        add_to_bias(copy, places, own.shifts)
        copies.append(Tap(copy, ["x"], ["s"])({"x": images})["s"])
    dense = Tap(model, ["x"], ["s"])({"x": images})["s"]
    helped, alone = (float(np.sum((copy - dense) ** 2)) for copy in copies)
    assert helped < alone


def test_closest_prefers_the_last_of_equals() -> None:
    model, located = make_network()
    images = make_images(48)
    plan = _plan(located, RANKS)
    plain = LayerFactors(
        {
            c.site.name: factorise_branches(_kernel(located, c.site.name), c.branches, c.site.group)
            for c in plan.changed
        },
        {},
    )
    refitted = refit(model, plan, in_batches(images.inputs), plain)
    index, scores = closest(model, plan, [plain, refitted], in_batches(images.inputs[:24], images.inputs[24:]))
    assert index == 1
    assert scores[1].divergence < scores[0].divergence
    assert closest(model, plan, [refitted, refitted, plain], in_batches(images.inputs))[0] == 1
    dense = {"y": Tap(model, ["x"], ["y"])({"x": images.inputs})["y"]}
    assert scores[0].divergence == pytest.approx(
        divergence(dense, _outputs(model, plan, plain, images.inputs)), rel=1e-4
    )


def _kernel(located: tuple, name: str) -> np.ndarray:
    return next(place for place in located if place.site.name == name).kernel()


# A batch norm behind a sum with a shortcut, which no layer can take up.
NORMED = RESIDUAL.replace(
    "r2 = Relu (s)",
    "b = BatchNormalization (s, norm_gain, norm_shift, norm_mean, norm_var)\n    r2 = Relu (b)",
)
NORM = {"norm.gain": np.linspace(1, 2, 8), "norm.shift": np.zeros(8), "norm.mean": np.ones(8), "norm.var": np.ones(8)}


def _normed() -> tuple[ir.Model, tuple]:
    return make_network(NORMED, given=NORM)


def test_a_batch_norm_that_is_left_gives_what_it_gave_in_the_mean() -> None:
    model, located = _normed()
    images = make_images(64).inputs
    plan = _plan(located, {"one": (SPATIAL_WISE, 3), "two": (CHANNEL_WISE, 1)})
    fitted = refit(model, plan, in_batches(images[:20], images[20:]), LayerFactors({}, {}))
    assert fitted.values.keys() == {"norm.mean", "norm.var"}
    before, after = (_normed_outputs(model, plan, own, images) for own in (None, fitted))
    untouched = _normed_outputs(model, plan, LayerFactors(fitted.factors, fitted.shifts), images)
    assert np.abs(untouched.std(axis=(0, 2, 3)) / before.std(axis=(0, 2, 3)) - 1).max() > 0.02
    np.testing.assert_allclose(after.mean(axis=(0, 2, 3)), before.mean(axis=(0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(after.std(axis=(0, 2, 3)), before.std(axis=(0, 2, 3)), rtol=1e-3)


def test_a_batch_norm_stays_where_nothing_before_it_changes() -> None:
    model, located = _normed()
    fitted = refit(
        model,
        _plan(located, {"grouped": (POINTWISE_FIRST, 2)}),
        in_batches(make_images(8).inputs),
        LayerFactors({}, {}),
    )
    np.testing.assert_array_equal(fitted.values["norm.mean"], NORM["norm.mean"])
    np.testing.assert_array_equal(fitted.values["norm.var"], NORM["norm.var"])


def test_a_channel_that_the_images_no_longer_move_keeps_a_bounded_gain() -> None:
    model, _ = _normed()
    (norm,) = norms_left(model)
    images = make_images(16).inputs
    original, compressed = Walk(model, [{"x": images}]), Walk(model, [{"x": images}])
    compressed.to(["s"])
    compressed.values["s"] = [np.zeros_like(compressed.values["s"][0])]
    found = renormalise(original, compressed, norm)
    np.testing.assert_allclose(found["norm.var"], 0.01 * NORM["norm.var"])
    assert np.isfinite(found["norm.mean"]).all()


def _normed_outputs(model: ir.Model, plan: Plan, fitted: LayerFactors | None, images: np.ndarray) -> np.ndarray:
    """What the batch norm gives, of the original where nothing is fitted."""
    copy = model.clone()
    places = find_sites(copy, {})
    if fitted is not None:
        set_products(copy, plan, places, fitted.factors)
        add_to_bias(copy, places, fitted.shifts)
        apply_values(copy, fitted.values)
    return Tap(copy, ["x"], ["b"])({"x": images})["b"]


def test_little_room_takes_fewer_images_and_later_layers_take_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model, located = make_network()
    images = make_images(48).inputs
    opened: list[int] = []

    class Counted(Walk):
        def __init__(self, model: ir.Model, batches: Sequence[Mapping[str, np.ndarray]], threads: int = 0) -> None:
            opened.append(sum(len(batch["x"]) for batch in batches))
            super().__init__(model, batches, threads)

    monkeypatch.setattr("trp_export.recover.refit.Walk", Counted)
    nodes = list(model.graph)
    late = next(index for index, node in enumerate(nodes) if node is located[3].nodes[0])
    room = [8] * late + [100] * (len(nodes) - late)
    fitted = refit(model, _plan(located, RANKS), in_batches(images[:24], images[24:36]), LayerFactors({}, {}),
                   held_out=in_batches(images[36:]), room=room)  # fmt: skip
    assert fitted.factors.keys() == RANKS.keys()
    assert sorted(set(opened)) == [8, 48]
    assert opened[-1] == 48


def test_a_layer_is_refitted_only_where_that_gains_on_held_out_images() -> None:
    """Two images fit perfectly and say nothing of others: the factors of the kernel are kept."""
    model, located = make_network()
    few, others = make_images(2, seed=1).inputs, make_images(64, seed=2).inputs
    plan = _plan(located, {"grouped": (POINTWISE_FIRST, 3), "head": (MATRIX, 4)})
    start = LayerFactors(
        {
            c.site.name: factorise_branches(_kernel(located, c.site.name), c.branches, c.site.group)
            for c in plan.changed
        },
        {},
    )
    dense = {"y": Tap(model, ["x"], ["y"])({"x": others})["y"]}
    fitted = refit(model, plan, in_batches(few), start, held_out=in_batches(others))
    before, after = (divergence(dense, {"y": _outputs(model, plan, own, others)["y"]}) for own in (start, fitted))
    assert after <= before


@settings(max_examples=12)
@given(uses=USES, rank=st.integers(1, 3))
def test_a_shared_weight_is_refitted_to_all_its_uses(uses: Sequence[SharedUse], rank: int) -> None:
    """The error over the outputs of all uses is that of the reduced-rank regression on all patches, in numpy."""
    model, x = shared_network(uses), shared_images(64)
    located = find_sites(model, {})
    name = located[0].site.name
    plan = _plan(located, {name: (CHANNEL_WISE, rank)})
    fitted = refit(model, plan, in_batches(x[:32], x[32:]), LayerFactors({}, {}))
    kernel, bias = (np.asarray(model.graph.initializers[name].const_value.numpy()) for name in ("w", "b"))
    patches = np.concatenate([p.reshape(-1, p.shape[2]) for p in all_patches(uses, x, kernel, bias)])
    wanted = patches @ kernel.reshape(len(kernel), -1).T
    wanted -= wanted.mean(axis=0)
    best = np.square(np.linalg.svd(wanted, compute_uv=False)[rank:]).sum()
    new = sum_products(fitted.factors[name], (Branch(CHANNEL_WISE, rank),), kernel.shape, 1).reshape(len(kernel), -1)
    shift = fitted.shifts[name]
    error = np.square(patches @ (new - kernel.reshape(len(kernel), -1)).T + shift).sum()
    # The covariance is shrunk where a use has few positions.
    assert error <= 1.1 * best + 5e-3 * np.square(wanted).sum()


def test_uses_in_series_see_what_the_compressed_network_gives_them() -> None:
    """At full rank nothing is lost, although the second use reads what the first one made."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    net (float[N, 3, 12, 12] x) => (float[N, 3, 12, 12] y)
    { a = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (a)  c = Conv <pads = [1, 1, 1, 1]> (r, w, b)
      s = Add (c, r)  y = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (s, w, b) }"""
    rng = np.random.default_rng(0)
    model, located = make_network(text, given={"w": rng.standard_normal((3, 3, 3, 3)) / 4, "b": np.ones(3)})
    images = make_images(40).inputs
    fitted = refit(
        model, _plan(located, {located[0].site.name: (CHANNEL_WISE, 3)}), in_batches(images), LayerFactors({}, {})
    )
    copy = model.clone()
    places = find_sites(copy, {})
    set_products(copy, _plan(located, {located[0].site.name: (CHANNEL_WISE, 3)}), places, fitted.factors)
    add_to_bias(copy, places, fitted.shifts)
    wanted, got = (Tap(each, ["x"], ["y"])({"x": images})["y"] for each in (model, copy))
    np.testing.assert_allclose(got, wanted, atol=5e-3 * float(np.abs(wanted).max()))


ROWS = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 12, 12] x) => (float[R, 5] y)
<int64[1] one = {1}, float half = {0.5}> {
    a = Conv <pads = [1, 1, 1, 1]> (x, stem_weight, stem_bias)
    b = Relu (a)
    c = ReduceMean <axes = [1], keepdims = 0> (b)
    d = Greater (c, half)
    e = NonZero (d)
    f = Transpose (e)
    g = Transpose <perm = [0, 2, 3, 1]> (b)
    h = GatherND (g, f)
    y = MatMul (h, rows_weight)
}"""


def test_a_layer_whose_rows_the_values_decide_keeps_what_it_is_given() -> None:
    """The compressed network picks other positions than the original."""
    model, located = make_network(ROWS, given={"rows.weight": np.random.default_rng(0).standard_normal((8, 5))})
    plan = _plan(located, {"stem": (CHANNEL_WISE, 2), "rows": (MATRIX, 3)})
    given = factorise_branches(located[1].kernel(), (Branch(MATRIX, 3),), 1)
    images = in_batches(make_images(12).inputs)
    fitted = refit(model, plan, images, LayerFactors({"rows": given}, {}), held_out=images)
    assert fitted.factors["rows"] is given
    _, (score,) = closest(model, plan, [fitted], images)
    assert (score.divergence, score.error) == (np.inf, 0)


def test_the_rows_of_an_image_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 3, 12, 12] x) => (float[P, 5] y)
    <int64[2] tokens = {-1, 8}> {
        a = Conv (x, stem_weight)  b = Transpose <perm = [0, 2, 3, 1]> (a)  c = Reshape (b, tokens)
        y = Gemm (c, rows_weight)
    }"""
    model, located = make_network(text, given={"rows.weight": np.random.default_rng(0).standard_normal((8, 5))})
    seen = []

    def recorded(state: LayerState, shown: Residuals, pull: float = 1) -> Choice:
        seen.append(shown.inputs.images)
        return regress(state, shown, pull)

    monkeypatch.setattr("trp_export.recover.refit.regress", recorded)
    refit(model, _plan(located, {"rows": (MATRIX, 3)}), in_batches(make_images(12).inputs), LayerFactors({}, {}))
    assert seen == [12]
