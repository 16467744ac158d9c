"""Moments against patches by hand, streaming against all at once, and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import RESIDUAL, as_samples, make_images, make_network

from trp_export.calibration import memory
from trp_export.calibration import moments as module
from trp_export.calibration.moments import (
    Moments,
    MomentSums,
    calibration_remarks,
    gather_moments,
    load_moments,
    merge_moments,
    samples_per_image,
    save_moments,
)
from trp_export.calibration.output_curves import calibrated_factors, calibrated_layers
from trp_export.calibration.patches import Window, count_positions, gather_patches, sample_positions, window
from trp_export.calibration.triangles import packed
from trp_export.errors import LoadError, OptionError, OutputError
from trp_export.graph.bias import add_to_bias
from trp_export.graph.rewrite import set_products
from trp_export.graph.sites import find_sites
from trp_export.graph.weights import set_value
from trp_export.lowrank.site import Site
from trp_export.planning.curves import Layer, make_curve, schemes_for
from trp_export.planning.plan import Plan
from trp_export.planning.rules import take
from trp_export.runtime.partial import Tap, fixed_batch


@settings(max_examples=40)
@given(
    extents=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    auto_pad=st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]),
    group=st.sampled_from([1, 2, 4]),
)
def test_kernel_times_patches_is_the_conv(
    extents: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int],
    auto_pad: str,
    group: int,
) -> None:
    if auto_pad != "NOTSET":
        pads = (0, 0, 0, 0)
        dilations = (1, 1)  # onnxruntime refuses some dilated SAME convs.
    rng = np.random.default_rng(0)
    data = rng.standard_normal((2, 4, 7, 8)).astype(np.float32)
    kernel = rng.standard_normal((8, 4 // group, *extents)).astype(np.float32)
    attributes = {"strides": strides, "dilations": dilations, "group": group}
    attributes |= {"pads": pads} if auto_pad == "NOTSET" else {"auto_pad": auto_pad}
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [info("x", 1, data.shape)], [info("y", 1, None)], [onnx.numpy_helper.from_array(kernel, "w")]
    )
    proto = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    wanted = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": data})[
        0
    ]
    seen_by = Window(extents, strides, pads, dilations, auto_pad, group, transposed=False)
    assert seen_by.out_extents(data.shape) == wanted.shape[2:]
    positions = sample_positions(rng, 2, count_positions(seen_by, data.shape), 10**6)
    patches = gather_patches(data, seen_by, positions)
    outputs = np.einsum("gpd,gnd->pgn", patches, kernel.reshape(group, 8 // group, -1)).reshape(2, -1, 8)
    np.testing.assert_allclose(outputs.transpose(0, 2, 1).reshape(wanted.shape), wanted, atol=1e-4)


@pytest.mark.parametrize("wanted", [1, 5, 40])
def test_positions_are_drawn_alike_and_once(wanted: int) -> None:
    drawn = sample_positions(np.random.default_rng(0), 4000, 50, wanted)
    assert drawn.shape == (4000, wanted)
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()
    counts = np.bincount(drawn.reshape(-1), minlength=50)
    share = wanted / 50
    assert np.abs(counts - 4000 * share).max() < 5 * np.sqrt(4000 * share)


def test_moments_are_those_of_all_patches() -> None:
    model, located = make_network()
    images = make_images(20)
    moments = gather_moments(model, located, as_samples(images))
    assert set(moments) == {"stem", "one", "two", "grouped", "head"}
    place = next(place for place in located if place.site.name == "grouped")
    values = Tap(model, ["x"], ["r2"])({"x": images.inputs})["r2"]
    seen_by = window(place.nodes[0], place.site)
    count = count_positions(seen_by, values.shape)
    patches = gather_patches(values, seen_by, np.broadcast_to(np.arange(count), (20, count)))
    own = moments["grouped"]
    assert own.count == patches.shape[1]
    for group in range(2):
        np.testing.assert_allclose(own.mean[group], patches[group].mean(axis=0), rtol=1e-4)
        np.testing.assert_allclose(own.covariance[group], np.cov(patches[group].T, bias=True), atol=1e-4)


def test_sampled_moments_are_close_and_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    model, located = make_network()
    images = make_images(64)
    full = gather_moments(model, located, as_samples(images))["one"]
    monkeypatch.setattr(module, "LEAST_SAMPLES", 64 * 50)
    monkeypatch.setattr(module, "SAMPLES_PER_ENTRY", 1)
    first, second = (gather_moments(model, located, as_samples(images), seed=1)["one"] for _ in range(2))
    assert first.count == 64 * 50 < full.count
    np.testing.assert_array_equal(first.half, second.half)
    gap = np.linalg.norm(first.covariance - full.covariance) / np.linalg.norm(full.covariance)
    assert gap < 0.1


def test_layers_of_many_groups_are_read_at_fewer_positions() -> None:
    """Their patches together are as large as those of a whole conv, though each of their sums has few entries."""
    depthwise, whole = (Site("layer", "Conv", (1152, entries, 5, 5), 1152 // entries, ()) for entries in (1, 1152))
    images = 32
    entries = 1152 * 25
    assert images * samples_per_image(depthwise, images) >= module.SAMPLES_PER_ENTRY * 25
    assert images * (samples_per_image(depthwise, images) - 1) * entries <= module._MANY_ENTRIES
    assert images * samples_per_image(whole, images) >= module.LEAST_SAMPLES


def test_images_that_are_summed_up_a_few_at_a_time_give_the_same_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    model, located = make_network()
    whole = gather_moments(model, located, as_samples(make_images(20)))
    monkeypatch.setattr(module, "images_to_sum", lambda site, positions: 3)
    some = gather_moments(model, located, as_samples(make_images(20)))
    for name, own in whole.items():
        assert (some[name].count, some[name].images) == (own.count, own.images)
        np.testing.assert_allclose(some[name].covariance, own.covariance, atol=1e-5)


def test_patches_of_large_images_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    model, located = make_network()
    monkeypatch.setattr(memory, "_PATCH_BYTES", 4 * 8 * 3 * 3 * 10)
    own = gather_moments(model, located, as_samples(make_images(20)))["one"]
    assert own.count == 20 * 10


def test_moments_add_up_and_survive_a_file(tmp_path: Path) -> None:
    model, located = make_network()
    images = make_images(20)
    halves = [replace(images, pixels=images.inputs[:9]), replace(images, pixels=images.inputs[9:])]
    parts = [gather_moments(model, located, as_samples(half)) for half in halves]
    save_moments(tmp_path / "a.npz", parts[0])
    merged = merge_moments([load_moments(tmp_path / "a.npz"), parts[1]])
    whole = gather_moments(model, located, as_samples(images))
    for name, own in whole.items():
        assert merged[name].count == own.count
        np.testing.assert_allclose(merged[name].covariance, own.covariance, atol=1e-5)


ODD_MOMENTS = {
    "an infinite count": ("count", np.array(np.inf)),
    "no count": ("count", np.array(0)),
    "a negative count": ("count", np.array(-9)),
    "true as a count": ("count", np.array(True)),
    "half an image": ("images", np.array(1.5)),
    "sums that are no numbers": ("total", np.full((1, 2), np.nan)),
    "huge sums": ("total", np.full((1, 2), 1e300)),
    "negative squares": ("outer", np.array([[-1.0, 0.0, -1.0]])),
    "a correlation above 1": ("outer", np.array([[10.0, 20.0, 10.0]])),
    "squares that are not finite": ("outer", np.array([[np.inf, 0.0, 1.0]])),
    "negative scatter": ("scatter", np.array([-1.0])),
    "a scale without images": ("scale_counts", np.array([10.0, 0.0])),
    "scales that do not add up": ("scale_totals", np.ones((2, 1, 2))),
    "scales of other layers": ("scale_totals", np.zeros((2, 1, 3))),
    "a scale that is no number": ("scale_totals", np.full((2, 1, 2), np.nan)),
}


@pytest.mark.parametrize(("field", "odd"), ODD_MOMENTS.values(), ids=ODD_MOMENTS)
def test_moments_that_no_images_give_are_refused(tmp_path: Path, field: str, odd: np.ndarray) -> None:
    path = tmp_path / "m.npz"
    scales = np.array([4.0, 6.0]), np.zeros((2, 1, 2))
    own = Moments(10, np.zeros((1, 2)), packed(10 * np.eye(2)[None]), 4, np.zeros(1), scales=scales)
    save_moments(path, {"a": own})
    assert load_moments(path)["a"].count == 10
    with np.load(path) as file:
        arrays = dict(file) | {f"0.{field}": odd}
    np.savez(path, **arrays)
    with pytest.raises(LoadError, match="holds no calibration statistics"):
        load_moments(path)


def test_moments_on_a_full_disk(small_disk: Path) -> None:
    wide = Moments(8, np.ones((1, 90)), packed(np.ones((1, 90, 90))))
    with pytest.raises(OutputError, match=r"wide.npz cannot be written: No space left.* --calib-stats"):
        save_moments(small_disk / "wide.npz", {"wide": wide, "wider": wide})
    assert not list(small_disk.iterdir())


def test_moments_of_another_type_are_refused(tmp_path: Path) -> None:
    arrays = {"0.count": np.array(3), "0.images": np.array(1), "0.outer": np.ones((1, 3))}
    for total in (np.zeros((1, 3), "M8[D]"), np.zeros((1, 3), np.complex128), np.zeros((1, 3), "U3")):
        np.savez(
            tmp_path / "m.npz", format=np.array("trp-moments-2"), names=np.array(["a"]), **arrays, **{"0.total": total}
        )
        with pytest.raises(LoadError, match="holds no calibration statistics"):
            load_moments(tmp_path / "m.npz")


def test_moments_of_other_networks_and_other_files_are_refused(tmp_path: Path) -> None:
    model, located = make_network()
    moments = gather_moments(model, located, as_samples(make_images(4)))
    with pytest.raises(OptionError, match="different networks"):
        merge_moments([moments, {"stem": moments["stem"]}])
    (tmp_path / "text.npz").write_text("no moments")
    with pytest.raises(LoadError, match=r"text\.npz is not an \.npy or \.npz file"):
        load_moments(tmp_path / "text.npz")
    np.savez(tmp_path / "few.npz", format=np.array("trp-moments-2"), names=np.array(["one"]))
    with pytest.raises(LoadError, match=r"holds no calibration statistics.*--calib-stats"):
        load_moments(tmp_path / "few.npz")
    np.savez(tmp_path / "other.npz", format=np.array("something"))
    with pytest.raises(LoadError, match="holds something"):
        load_moments(tmp_path / "other.npz")


def test_values_that_are_not_finite_name_the_layer() -> None:
    model, located = make_network()
    broken = replace(make_images(4), pixels=np.full((4, 3, 12, 12), 3e38, dtype=np.float32))
    with pytest.raises(LoadError, match="inputs of stem are NaN, infinite or huge"):
        gather_moments(model, located, as_samples(broken))
    set_value(model.graph.initializers["stem.weight"], np.full((8, 3, 3, 3), 3e38))
    with pytest.raises(LoadError, match="inputs of one are NaN, infinite or huge"):
        gather_moments(model, located, as_samples(make_images(4)))


def test_inputs_that_do_not_fit_are_refused() -> None:
    model, located = make_network()
    wrong = replace(make_images(4), pixels=np.zeros((4, 1, 12, 12), dtype=np.float32))
    with pytest.raises(LoadError, match=r"failed on inputs of these shapes \(x \(4, 1, 12, 12\)\)"):
        gather_moments(model, located, as_samples(wrong))


def test_a_fixed_batch_is_respected() -> None:
    model, _ = make_network(RESIDUAL.replace("float[N, 3, 12, 12] x", "float[6, 3, 12, 12] x"))
    images, fixed = make_images(20), fixed_batch(model)
    assert [len(batch) for batch in as_samples(images, at_a_time=fixed).batches()] == [6, 6, 6]
    assert [len(batch) for batch in as_samples(images).batches()] == [20]
    assert [len(batch) for batch in as_samples(images).batches(most=15)] == [15, 5]
    with pytest.raises(LoadError, match="takes 6 samples at a time; made has 4"):
        list(as_samples(make_images(4), at_a_time=fixed).batches())


def test_remarks_name_small_samples_and_constant_inputs() -> None:
    rng = np.random.default_rng(0)
    sums = MomentSums(np.zeros((1, 200)))
    sums.add(rng.standard_normal((1, 30, 1, 200)).astype(np.float32))
    few = sums.moments()
    constant = Moments(100, np.full((1, 3), 200.0), packed(np.full((1, 3, 3), 400.0)))
    notes = " ".join(calibration_remarks({"few": few, "constant": constant}))
    assert "1 layer has too few images for its size, few most of all (30 images for 200 inputs)" in notes
    assert "the inputs of constant never change" in notes
    (note,) = calibration_remarks({"few": few, "fewer": few})
    assert note.startswith("2 layers have too few images for their size")


def test_preprocessing_unlike_that_of_training_is_remarked() -> None:
    mean = np.ones((1, 4))
    seen = {"a": Moments(100, 250 * mean * 100, packed(10 * np.eye(4)[None]))}
    assert "24900 % away from those that batch norm saw" in " ".join(calibration_remarks(seen, {"a": mean}))
    assert "batch norm" not in " ".join(calibration_remarks(seen, {"a": 220 * mean, "b": mean}))


@pytest.mark.parametrize("choice", ["channel", "spatial", "spatial-t", "pointwise", "decouple"])
def test_calibrated_factors_lose_what_their_curve_says(choice: str) -> None:
    model, located = make_network()
    images = make_images(40)
    moments = gather_moments(model, located, as_samples(images))
    plain = [
        Layer(place.site, tuple(make_curve(place.site, s, place.kernel()) for s in schemes_for(place.site, choice)))
        for place in located
    ]
    layers = calibrated_layers(plain, located, moments)
    layer = next(layer for layer in layers if layer.site.name == "one")
    curve = layer.curves[0]
    rank = max(1, curve.full_rank // 2)
    plan = Plan((take(layer.site, curve, rank),), "by hand")
    fitted = calibrated_factors(plan, located, moments)
    before = Tap(model, ["x"], ["c1"])({"x": images.inputs})["c1"]
    copy = model.clone()
    places = find_sites(copy, {})
    set_products(copy, plan, places, fitted.factors)
    add_to_bias(copy, places, fitted.shifts)
    after = Tap(copy, ["x"], ["c1"])({"x": images.inputs})["c1"]
    mean = before.mean(axis=(0, 2, 3), keepdims=True)
    measured = float(np.sum((before - after) ** 2) / np.sum((before - mean) ** 2))
    promised = 1 - float(curve.energy[rank - 1])
    assert measured <= promised * 1.02
    assert np.abs((before - after).mean(axis=(0, 2, 3))).max() < 1e-4
    if choice == "channel":
        assert measured == pytest.approx(promised, rel=0.02)


GATED = RESIDUAL.replace(
    "    s = Add (c2, r0)\n",
    """    p = GlobalAveragePool (c2)
    q = Conv (p, squeeze_weight)
    e = Relu (q)
    h = Conv (e, excite_weight)
    o = Sigmoid (h)
    n = Mul (c2, o)
    s = Add (n, r0)
""",
)


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("constant", [False, True])
def test_few_images_and_constant_channels_give_finite_factors_of_gated_networks(count: int, constant: bool) -> None:
    rng = np.random.default_rng(0)
    gates = {"squeeze.weight": rng.standard_normal((4, 8, 1, 1)), "excite.weight": rng.standard_normal((8, 4, 1, 1))}
    model, located = make_network(GATED, given=gates)
    images = make_images(count)
    pixels = images.inputs.copy()
    if constant:
        pixels[:, 1:] = 1000.0
    images = replace(images, pixels=pixels)
    plain = [
        Layer(place.site, tuple(make_curve(place.site, s, place.kernel()) for s in schemes_for(place.site, "auto")))
        for place in located
    ]
    shown, aside = replace(images, pixels=pixels[1:]), replace(images, pixels=pixels[:1])
    moments, held_out = (gather_moments(model, located, as_samples(part)) for part in (shown, aside))
    layers = calibrated_layers(plain, located, moments, held_out=held_out)
    plan = Plan(tuple(take(layer.site, layer.curves[0], 1) for layer in layers if layer.curves), "by hand")
    fitted = calibrated_factors(plan, located, moments)
    for pairs in fitted.factors.values():
        assert all(np.isfinite(pair.reduce).all() and np.isfinite(pair.expand).all() for pair in pairs)


@pytest.mark.parametrize(
    "owed", [-np.eye(2)[None], np.full((1, 2, 2), np.nan), np.ones((1, 2, 3)), np.ones(4)], ids=str
)
def test_moments_of_gradients_that_cannot_be_are_refused(owed: np.ndarray, tmp_path: Path) -> None:
    sound = Moments(8, np.ones((1, 3)), packed(np.eye(3)[None]), 8, np.zeros(1), np.eye(2)[None])
    save_moments(tmp_path / "sound.npz", {"a": sound})
    kept = load_moments(tmp_path / "sound.npz")["a"].owed
    assert kept is not None
    np.testing.assert_array_equal(kept, np.eye(2)[None])
    save_moments(tmp_path / "damaged.npz", {"a": replace(sound, owed=owed)})
    with pytest.raises(LoadError, match="no calibration statistics"):
        load_moments(tmp_path / "damaged.npz")


def test_moments_of_layers_with_other_outputs_are_not_added() -> None:
    own, other = (
        {"a": Moments(8, np.ones((1, 3)), packed(np.eye(3)[None]), 8, np.zeros(1), np.eye(channels)[None])}
        for channels in (2, 4)
    )
    with pytest.raises(OptionError, match="different networks"):
        merge_moments([own, other])


def test_what_is_between_scales_is_told_from_what_varies(tmp_path: Path) -> None:
    """Half of the images 1,000 times larger than the others: patch by patch in numpy, of two runs, through a file."""
    rng = np.random.default_rng(0)
    parts = []
    for order in ([0, 1], [1, 0]):
        groups = np.repeat(order, 4)
        x = (1 + rng.standard_normal((2, 8, 5, 3))) * np.where(groups, 1000, 1)[:, None, None]
        sums = MomentSums(np.zeros((2, 3)))
        for some in (slice(4), slice(4, 8)):
            sums.add(x[:, some].astype(np.float32), groups[some])
        parts.append((sums.moments(), x, groups))
    own, x, groups = parts[0]
    weight = np.repeat([1 / np.square(x[:, groups == index]).mean() for index in (0, 1)], 4)[groups.argsort()]
    weight = np.broadcast_to(weight[None, :, None, None] / weight.sum() / 5, (2, 8, 5, 1))
    whole = (weight * x).sum(axis=(1, 2))
    wanted = np.zeros((2, 3, 3))
    for index in (0, 1):
        some, counts = x[:, groups == index], weight[:, groups == index]
        apart = (counts * some).sum(axis=(1, 2)) / counts.sum(axis=(1, 2)) - whole
        wanted += counts.sum(axis=(1, 2))[..., None] * apart[:, :, None] * apart[:, None]
    found = own.between_scales
    np.testing.assert_allclose(found @ found.swapaxes(1, 2), wanted, rtol=1e-4)
    save_moments(tmp_path / "m.npz", {"a": own})
    merged = merge_moments([load_moments(tmp_path / "m.npz"), {"a": parts[1][0]}])["a"]
    assert merged.between_scales.shape == (2, 3, 2)
    assert (own + replace(own, scales=None)).between_scales.shape == (2, 3, 3)
    np.testing.assert_allclose((own + own).between_scales, found)


def test_energy_is_the_share_of_what_varies_within_a_scale() -> None:
    """The same images in two scales: energies are those of images of one, not higher."""
    model, located = make_network()
    images = make_images(40)
    groups = np.arange(40) % 2
    pixels = (5 + images.inputs) * np.where(groups, 255, 1)[:, None, None, None].astype(np.float32)
    samples = replace(as_samples(replace(images, pixels=pixels)), groups=groups)
    place = next(place for place in located if place.site.name == "stem")
    plain = Layer(place.site, tuple(make_curve(place.site, s, place.kernel()) for s in schemes_for(place.site, "auto")))
    moments = gather_moments(model, located, samples)
    alike = {name: replace(own, scales=None) for name, own in moments.items()}
    alone = gather_moments(model, located, as_samples(replace(images, pixels=pixels[groups == 0])))
    told, blind, one = (calibrated_layers([plain], located, some)[0] for some in (moments, alike, alone))
    for own, without, wanted in zip(told.curves, blind.curves, one.curves, strict=True):
        assert without.energy[0] > wanted.energy[0] + 0.15
        np.testing.assert_allclose(own.energy, wanted.energy, atol=0.06)


WINDOWS = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 4, 8, 8] x) => (float[P, 16, 4] y, float[Q, 4] z, float[N, 64, 4] whole)
<int64[6] cut = {-1, 2, 4, 2, 4, 4}, int64[3] windows = {-1, 16, 4}, int64[2] tokens = {-1, 4},
int64[3] all = {0, -1, 4}> {
    a = Transpose <perm = [0, 2, 3, 1]> (x)
    b = Reshape (a, cut)
    c = Transpose <perm = [0, 1, 3, 2, 4, 5]> (b)
    d = Reshape (c, windows)
    y = MatMul (d, u)
    e = Reshape (a, tokens)
    z = Gemm (e, v)
    f = Reshape (a, all)
    whole = MatMul (f, w)
}"""


def test_the_windows_of_an_image_are_no_images() -> None:
    """Layers that read the same values window by window, or one by one, learn from as many images."""
    weights = {name: np.random.default_rng(0).standard_normal((4, 4)) for name in "uvw"}
    model, located = make_network(WINDOWS, given=weights)
    rng = np.random.default_rng(1)
    pixels = 2 * rng.standard_normal((24, 4, 1, 1)) + rng.standard_normal((24, 4, 8, 8))
    images = replace(make_images(1), pixels=pixels.astype(np.float32), channels=4)
    y, z, whole = gather_moments(model, located, as_samples(images), at_a_time=7).values()
    for own in (y, z):
        assert own.images == whole.images == 24
        np.testing.assert_allclose(own.covariance, whole.covariance, rtol=1e-5)
        np.testing.assert_allclose(own.shrinkage, whole.shrinkage, rtol=1e-4)
