"""The super-network: every layer runs once, dense, with a mixture of the kernels of the drawn candidates.

A convolution is linear in its kernel, so mixing kernels equals mixing outputs. A candidate's kernel is rebuilt from its
factors when it is drawn; no dense kernels of the others are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.func import functional_call

from training.search.factors import Metric, Nested, metric_of, nested_factors
from training.search.logits import Mixture
from training.search.space import Space
from trp_export.calibration.moments import Moments
from trp_export.errors import UnsupportedError
from trp_export.graph.bias import add_to_bias, takes_bias
from trp_export.graph.rewrite import stored_order
from trp_export.graph.sites import LocatedSite, find_sites
from trp_export.lowrank.branches import calibrate_branches, factorise_branches, sum_products
from trp_export.lowrank.calibrated import output_variance
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.metric import ErrorMetric
from trp_export.lowrank.schemes import Array, Branches, Scheme
from trp_export.recover.torch_graph import TorchGraph
from trp_export.runtime.partial import Tap
from trp_export.system.progress import Share

# Largest relative distance between outputs of torch and onnxruntime that is accepted.
_SOUND = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Candidates of one layer with the same first pair (or none) and the same scheme of the last.

    `base` is the kernel of the first pair, `left` the share of energy that it does not cover.
    """

    base: Tensor | None
    nested: Nested
    left: float

    def kernel(self, rank: int) -> Tensor:
        own = self.nested.kernel(rank)
        return own if self.base is None else self.base + own


class MixedLayer:
    """One layer: the kernels of its candidates, rebuilt on demand, and the bias that belongs to a mixture."""

    def __init__(self, space: Space, place: LocatedSite, moments: Moments | None) -> None:
        self.name, self.candidates = space.site.name, space.candidates
        kernel, covariance = place.kernel(), _covariance(place, moments)
        self._dense = torch.from_numpy(np.array(kernel, dtype=np.float32))
        self._order = stored_order(place)
        self._mean = torch.from_numpy(moments.mean).float() if moments is not None and takes_bias(place) else None
        self._pairs = _pairs(space, kernel, covariance)

    def kernel(self, index: int) -> Tensor:
        """The dense kernel (n, c/group, *k) of a candidate."""
        branches = self.candidates[index]
        if not branches:
            return self._dense
        return self._pairs[branches[:-1], branches[-1].scheme].kernel(branches[-1].rank)

    def lost(self) -> Float64:
        """The share of the kernel, or of the output, that each candidate loses: (k,)."""
        found = [self._pairs[b[:-1], b[-1].scheme] if b else None for b in self.candidates]
        pairs = zip(self.candidates, found, strict=True)
        return np.array([own.left * own.nested.lost[b[-1].rank] if own is not None else 0.0 for b, own in pairs])

    def mixed(self, mixture: Mixture) -> tuple[Tensor, Tensor | None]:
        """The kernel of a mixture in the graph's order, and the change of the bias that keeps the mean output."""
        kernels = [self.kernel(index) for index in mixture.candidates]
        kernel = sum(weight * own for weight, own in zip(mixture.weights, kernels, strict=True))
        assert isinstance(kernel, Tensor)
        shift = None
        if self._mean is not None:
            rows = (self._dense - kernel).reshape(len(self._mean), -1, self._mean.shape[1])
            shift = (rows @ self._mean[:, :, None]).reshape(-1)
        return kernel.permute(self._order), shift


class Supernet:
    """A copy of the model in which the layers with a `Space` are mixtures.

    Raises UnsupportedError for models that torch cannot compute.
    """

    def __init__(
        self,
        model: ir.Model,
        spaces: Sequence[Space],
        moments: Mapping[str, Moments],
        progress: Share = lambda share: None,
    ) -> None:
        copy = model.clone()
        wanted = {space.site.name: space for space in spaces if len(space.candidates) > 1}
        for place in find_sites(copy, {}):
            if place.site.name in wanted and place.site.name in moments and takes_bias(place):
                add_to_bias(copy, [place], {place.site.name: np.zeros(place.site.kernel_shape[0])})
        self._model, self._graph = copy, TorchGraph(copy)
        self._graph.requires_grad_(False)
        self.layers: dict[str, MixedLayer] = {}
        self._weights: dict[str, str] = {}
        self._biases: dict[str, list[tuple[str, Tensor]]] = {}
        indices = {name: f"weights.{index}" for index, name in enumerate(self._graph.names)}
        for number, place in enumerate(places := find_sites(copy, {})):
            progress(number / len(places))
            name = place.site.name
            if name not in wanted:
                continue
            self.layers[name] = MixedLayer(wanted[name], place, moments.get(name))
            self._weights[name] = indices[place.constant.root.name or ""]
            keys = _biases(place) if name in moments and takes_bias(place) else []
            self._biases[name] = [(indices[key], self._graph.get_parameter(indices[key])) for key in keys]

    def __call__(self, images: Tensor, mixtures: Mapping[str, Mixture]) -> list[Tensor]:
        """The outputs on images (N, C, H, W) with these mixtures; layers that are not named stay dense."""
        return functional_call(self._graph, self._given(mixtures), (images,))  # type: ignore[no-any-return]

    @torch.no_grad()
    def require_sound(self, images: Tensor) -> None:
        """Raise UnsupportedError where torch and onnxruntime compute different outputs."""
        names = [value.name or "" for value in self._model.graph.outputs]
        tap = Tap(self._model, [self._model.graph.inputs[0].name or ""], names)
        wanted = tap({tap.inputs[0]: images.numpy()})
        for name, own in zip(names, self(images, {}), strict=True):
            gap = np.linalg.norm(own.numpy() - wanted[name]) / max(float(np.linalg.norm(wanted[name])), 1e-30)
            if not gap < _SOUND:
                raise UnsupportedError(
                    f"output {name} differs by {gap:.2g} between torch and onnxruntime; this model cannot be searched."
                )

    @torch.no_grad()
    def first_broken(self, images: Tensor, mixtures: Mapping[str, Mixture]) -> str | None:
        """The first layer, in the order of the graph, whose outputs are not finite."""
        outputs = {place.site.name: place.nodes[0].outputs[0].name or "" for place in find_sites(self._model, {})}
        graph = TorchGraph(self._model, list(outputs.values()))
        found = functional_call(graph, self._given(mixtures), (images,))
        return next((name for name, one in zip(outputs, found, strict=True) if not one.isfinite().all()), None)

    def _given(self, mixtures: Mapping[str, Mixture]) -> dict[str, Tensor]:
        """Kernels and biases of mixtures, by the names of the graph's parameters."""
        given: dict[str, Tensor] = {}
        for name, mixture in mixtures.items():
            kernel, shift = self.layers[name].mixed(mixture)
            given[self._weights[name]] = kernel
            if shift is not None:
                given |= {key: bias + shift for key, bias in self._biases[name]}
        return given


def _biases(place: LocatedSite) -> list[str]:
    """The names of a layer's biases, one for each place that applies it."""
    values = (node.inputs[2] for node in place.nodes)
    return [value.name or "" for value in values if value is not None]


def _covariance(place: LocatedSite, moments: Moments | None) -> Float64 | None:
    """The covariance of a layer's inputs, about zero where its bias cannot change; None where it is not known."""
    if moments is None:
        return None
    return moments.covariance if takes_bias(place) else moments.second


def _pairs(space: Space, kernel: Array, covariance: Float64 | None) -> dict[tuple[Branches, Scheme], _Pairs]:
    """The factors of a layer's candidates, by their first pairs and the scheme of the last."""
    found: dict[tuple[Branches, Scheme], _Pairs] = {}
    metrics: dict[tuple[int, ...], Metric] = {}
    group, cut = space.site.group, [branches for branches in space.candidates if branches]
    for after in dict.fromkeys(branches[:-1] for branches in cut):
        first = _kernel_of(kernel, after, group, covariance)
        base = torch.from_numpy(first).float() if after else None
        left = _left(kernel, first, group, covariance) if after else 1.0
        last = [branches[-1] for branches in cut if branches[:-1] == after]
        for scheme in dict.fromkeys(branch.scheme for branch in last):
            axes = scheme.reduce_axes
            if covariance is not None and axes not in metrics:
                metrics[axes] = metric_of(covariance, kernel.shape, axes)
            top = max(branch.rank for branch in last if branch.scheme == scheme)
            nested = nested_factors(kernel - first, scheme, group, top, metrics.get(axes))
            found[after, scheme] = _Pairs(base, nested, left)
    return found


def _left(kernel: Array, base: Float64, group: int, covariance: Float64 | None) -> float:
    """The share of a kernel's squares, or of its output's variance, that a first pair loses."""
    lost, whole = (
        float(np.sum(own**2)) if covariance is None else output_variance(own, group, ErrorMetric(covariance))
        for own in (kernel - base, kernel)
    )
    return lost / whole if whole else 0.0


def _kernel_of(kernel: Array, branches: Branches, group: int, covariance: Float64 | None) -> Float64:
    """The dense kernel of the first pairs; zero without any."""
    if not branches:
        return np.zeros(kernel.shape)
    if covariance is None:
        pairs = factorise_branches(kernel, branches, group)
    else:
        pairs = calibrate_branches(kernel, branches, group, ErrorMetric(covariance))
    return sum_products(pairs, branches, kernel.shape, group)
