"""A mixture of kernels against the mixture of what the pairs themselves answer, run by torch conv by conv."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from networks import as_samples, make_images, make_network
from torch import Tensor
from torch.nn import functional

from training.search.factors import metric_of, nested_factors
from training.search.logits import Mixture
from training.search.space import Space, by_macs, second_by_macs
from training.search.supernet import Supernet
from trp_export.calibration.moments import gather_moments
from trp_export.errors import UnsupportedError
from trp_export.graph.bias import add_to_bias
from trp_export.graph.rewrite import rewrite
from trp_export.graph.sites import find_sites
from trp_export.lowrank.calibrated import calibrated_pair, output_errors, relative_error
from trp_export.lowrank.factor import Factors, factorise, product
from trp_export.lowrank.metric import ErrorMetric
from trp_export.lowrank.schemes import (
    CHANNEL_WISE,
    DECOUPLING,
    POINTWISE_FIRST,
    SPATIAL_WISE,
    SPATIAL_WISE_TRANSPOSED,
    Branch,
    Scheme,
    fold_pair,
    full_rank,
    input_sliced,
    output_sliced,
)
from trp_export.planning.plan import Decision, Plan
from trp_export.runtime.partial import Tap

SCHEMES = (
    CHANNEL_WISE,
    SPATIAL_WISE,
    SPATIAL_WISE_TRANSPOSED,
    POINTWISE_FIRST,
    DECOUPLING,
    input_sliced(2),
    input_sliced(4),
    output_sliced(2),
    output_sliced(3),
)


def covariance_of(group: int, size: int, seed: int = 3) -> np.ndarray:
    roots = np.random.default_rng(seed).standard_normal((group, size, size))
    return roots @ np.swapaxes(roots, 1, 2) / size


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("group", [1, 2])
def test_each_rank_of_nested_factors_is_the_truncated_svd(scheme: Scheme, group: int) -> None:
    kernel = np.random.default_rng(0).standard_normal((6 * group, 4, 3, 3))
    top = full_rank(scheme, kernel.shape, group)
    nested = nested_factors(kernel, scheme, group, top)
    whole = float(np.sum(kernel**2))
    for rank in range(1, top + 1):
        wanted = product(factorise(kernel, scheme, group, rank), scheme, kernel.shape, group)
        np.testing.assert_allclose(nested.kernel(rank).numpy(), wanted, atol=1e-5)
        assert nested.lost[rank] == pytest.approx(np.sum((kernel - wanted) ** 2) / whole, abs=1e-6)
    np.testing.assert_allclose(nested.kernel(top).numpy(), kernel, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_with_a_covariance_less_of_the_output_is_lost(scheme: Scheme) -> None:
    kernel = np.random.default_rng(0).standard_normal((12, 4, 3, 3))
    # What a Kronecker product is: rows and taps that vary independently, slices of the input too.
    size = {"input-sliced-2": (2, 2), "input-sliced-4": (4, 1)}.get(scheme.name, (1, 4))
    channels = np.kron(np.eye(size[0]), covariance_of(1, size[1])[0])
    axes = [covariance_of(1, 3, seed)[0] for seed in (4, 5)]
    covariance = np.kron(channels, np.kron(*axes))[None] if scheme.name != "none" else None
    top = full_rank(scheme, kernel.shape, 1)
    nested = nested_factors(kernel, scheme, 1, top, metric_of(covariance, kernel.shape, scheme.reduce_axes))
    wanted = output_errors(kernel, scheme, 1, ErrorMetric(covariance))
    rank = max(1, top // 2)
    pair = calibrated_pair(kernel, scheme, 1, rank, ErrorMetric(covariance))
    fitted = relative_error(kernel, product(pair, scheme, kernel.shape, 1), 1, ErrorMetric(covariance))
    flat = (kernel - nested.kernel(rank).numpy()).reshape(12, -1)
    own = np.sum((flat @ covariance[0]) * flat) / np.sum(
        (kernel.reshape(12, -1) @ covariance[0]) * kernel.reshape(12, -1)
    )
    plain = product(factorise(kernel, scheme, 1, rank), scheme, kernel.shape, 1)
    flat = (kernel - plain).reshape(12, -1)
    untold = np.sum((flat @ covariance[0]) * flat) / np.sum(
        (kernel.reshape(12, -1) @ covariance[0]) * kernel.reshape(12, -1)
    )
    assert own == pytest.approx(nested.lost[rank], rel=0.02, abs=1e-4)
    assert own <= untold * 1.001
    assert own == pytest.approx(fitted, rel=0.05, abs=1e-3)
    assert fitted <= wanted[rank - 1] * 1.001


def network() -> tuple[ir.Model, tuple[Space, ...], dict, np.ndarray]:
    model, located = make_network()
    images = make_images(24)
    moments = gather_moments(model, located, as_samples(images))
    return model, by_macs([place.site for place in located], "all"), moments, images.inputs


def conv_of(
    node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor | None, part: str, scheme: Scheme, groups: int
) -> Tensor:
    """One conv of a pair: with the node's stride, pads and dilation on the axes that it covers."""
    covered = [axis in scheme.reduce_axes if part == "reduce" else axis not in scheme.reduce_axes for axis in (0, 1)]
    strides, dilations = (list(node.attributes.get_ints(name, [1, 1])) for name in ("strides", "dilations"))
    pads = list(node.attributes.get_ints("pads", [0] * 4))
    pads = [pad if covered[index % 2] else 0 for index, pad in enumerate(pads)]
    strides, dilations = (
        [v if c else 1 for v, c in zip(values, covered, strict=True)] for values in (strides, dilations)
    )
    x = functional.pad(x, (pads[1], pads[3], pads[0], pads[2]))
    return functional.conv2d(x, weight, bias, strides, 0, dilations, groups)


@pytest.mark.parametrize("name", ["one", "grouped"])
def test_a_mixture_of_kernels_gives_the_mixture_of_the_pairs(name: str) -> None:
    model, spaces, _, _ = network()
    supernet = Supernet(model, spaces, {})
    layer = supernet.layers[name]
    node = next(place for place in find_sites(model, {}) if place.site.name == name).nodes[0]
    site = next(space.site for space in spaces if space.site.name == name)
    x = torch.randn(2, site.kernel_shape[1] * site.group, 9, 8, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(1)
    for _ in range(12):
        chosen = tuple(rng.choice(len(layer.candidates), 2, replace=False).tolist())
        weights = torch.tensor([0.3, 0.7])
        mixed, _ = layer.mixed(Mixture(chosen, weights))
        pads = list(node.attributes.get_ints("pads", [0] * 4))
        padded = functional.pad(x, (pads[1], pads[3], pads[0], pads[2]))
        strides, dilations = (list(node.attributes.get_ints(n, [1, 1])) for n in ("strides", "dilations"))
        got = functional.conv2d(padded, mixed, None, strides, 0, dilations, site.group)
        wanted = torch.zeros_like(got)
        for weight, index in zip(weights, chosen, strict=True):
            branches = layer.candidates[index]
            if not branches:
                kernel = torch.from_numpy(np.array(place_kernel(model, name)))
                wanted += weight * functional.conv2d(padded, kernel, None, strides, 0, dilations, site.group)
                continue
            (branch,) = branches
            nested = layer._pairs[(), branch.scheme].nested
            sides = nested.left[:, :, : branch.rank].numpy(), nested.right[:, : branch.rank].numpy()
            factors = Factors(*fold_pair(*sides, branch.scheme, site.kernel_shape, site.group))
            slices_in, slices_out = branch.scheme.slices(site.kernel_shape, site.group)
            first, second = (torch.from_numpy(np.ascontiguousarray(k)) for k in (factors.reduce, factors.expand))
            middle = conv_of(node, x, first, None, "reduce", branch.scheme, site.group * slices_in)
            wanted += weight * conv_of(node, middle, second, None, "expand", branch.scheme, site.group * slices_out)
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


def place_kernel(model: ir.Model, name: str) -> np.ndarray:
    return next(place for place in find_sites(model, {}) if place.site.name == name).kernel()


def test_one_candidate_everywhere_equals_the_network_with_those_pairs() -> None:
    model, spaces, moments, images = network()
    supernet = Supernet(model, spaces, moments)
    rng = np.random.default_rng(0)
    chosen = {
        space.site.name: int(rng.integers(1, len(space.candidates))) for space in spaces if len(space.candidates) > 1
    }
    plan = Plan(tuple(Decision(s.site, s.candidates[chosen.get(s.site.name, 0)], "") for s in spaces), "by hand")
    small = model.clone()
    places = find_sites(small, {})
    factors, shifts = {}, {}
    for change in plan.changed:
        layer, branch, site = supernet.layers[change.site.name], change.branches[0], change.site
        nested = layer._pairs[(), branch.scheme].nested
        sides = nested.left[:, :, : branch.rank].numpy(), nested.right[:, : branch.rank].numpy()
        factors[site.name] = (Factors(*fold_pair(*sides, branch.scheme, site.kernel_shape, site.group)),)
        shift = layer.mixed(Mixture((chosen[site.name],), torch.ones(1)))[1]
        if shift is not None:
            shifts[site.name] = shift.numpy()
    add_to_bias(small, places, shifts)
    rewrite(small, plan, places, factors)
    tap = Tap(small, ["x"], ["y"])
    got = supernet(torch.from_numpy(images), {n: Mixture((k,), torch.ones(1)) for n, k in chosen.items()})[0]
    np.testing.assert_allclose(got.numpy(), tap({"x": images})["y"], atol=2e-4)


def test_the_bias_keeps_the_mean_output() -> None:
    model, spaces, moments, _ = network()
    supernet = Supernet(model, spaces, moments)
    layer, mean = supernet.layers["one"], moments["one"].mean.reshape(-1)
    kernel, shift = layer.mixed(Mixture((3, 9), torch.tensor([0.5, 0.5])))
    assert shift is not None
    lost = (place_kernel(model, "one") - kernel.numpy()).reshape(8, -1) @ mean
    np.testing.assert_allclose(shift.numpy(), lost, atol=1e-5)


def test_the_gradient_of_a_weight_is_the_gradient_of_the_kernel_times_the_candidate() -> None:
    model, spaces, moments, images = network()
    supernet = Supernet(model, spaces, moments)
    x = torch.from_numpy(images[:4])

    def loss_at(weights: Tensor) -> Tensor:
        return supernet(x, {"one": Mixture((2, 7), weights)})[0].square().sum()

    weights = torch.tensor([0.4, 0.6], requires_grad=True)
    (gradient,) = torch.autograd.grad(loss_at(weights), weights)
    for index in (0, 1):
        step = torch.zeros(2)
        step[index] = 1e-2
        with torch.no_grad():
            slope = (loss_at(weights + step) - loss_at(weights - step)) / 2e-2
        assert float(gradient[index]) == pytest.approx(float(slope), rel=1e-2, abs=1e-3)


def test_a_sum_of_pairs_is_the_smaller_first_and_its_residual() -> None:
    model, spaces, _, _ = network()
    first = {"one": Branch(SPATIAL_WISE, 12), "two": Branch(CHANNEL_WISE, 6)}
    plan = Plan(
        tuple(Decision(s.site, (first[s.site.name],) if s.site.name in first else (), "") for s in spaces), "by hand"
    )
    second = second_by_macs(plan, "all")
    supernet = Supernet(model, second, {})
    assert set(supernet.layers) == set(first)
    for space in second:
        if space.site.name not in first:
            assert space.candidates == ((),)
            continue
        layer, kernel = supernet.layers[space.site.name], place_kernel(model, space.site.name)
        assert space.candidates[0] == (first[space.site.name],)
        lost = layer.lost()
        for index, branches in enumerate(space.candidates):
            assert space.costs[index] == space.site.macs_of(branches)
            assert len({branch.scheme for branch in branches}) == len(branches)
            left = kernel.astype(np.float64)
            for branch in branches:
                left = left - product(factorise(left, branch.scheme, 1, branch.rank), branch.scheme, kernel.shape, 1)
            np.testing.assert_allclose(layer.kernel(index).numpy(), kernel - left, atol=1e-4)
            assert lost[index] == pytest.approx(np.sum(left**2) / np.sum(kernel**2), abs=1e-4)


def test_the_network_is_left_as_it_was_and_answers_as_it_did() -> None:
    model, spaces, moments, images = network()
    before = ir.serde.serialize_model(model).SerializeToString()
    supernet = Supernet(model, spaces, moments)
    supernet.require_sound(torch.from_numpy(images[:4]))
    tap = Tap(model, ["x"], ["y"])
    np.testing.assert_allclose(supernet(torch.from_numpy(images), {})[0].numpy(), tap({"x": images})["y"], atol=1e-5)
    assert ir.serde.serialize_model(model).SerializeToString() == before


def test_a_stand_in_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, spaces, moments, images = network()
    supernet = Supernet(model, spaces, moments)
    monkeypatch.setattr(Supernet, "__call__", lambda self, x, mixtures: [torch.ones(len(x), 5)])
    with pytest.raises(UnsupportedError, match=r"differs by .* between torch and onnxruntime"):
        supernet.require_sound(torch.from_numpy(images[:4]))
