"""What a layer may become, by regression on inputs that it gets and residuals that it should make up for.

The residual r of a layer is its target less its output with the kernel W and the bias that it has. A new kernel W + D
with a bias shifted by s leaves r - D x - s. Everything follows from sums over inputs x and residuals r: the regression
D = C S^-1 (S the covariance of x, C that of r and x), and the error of every choice up to a constant. As residuals are
small, nothing cancels.
Source: Izenman, "Reduced-rank regression", 1975.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trp_export.calibration.moments import Moments, MomentSums
from trp_export.inputs.samples import Groups
from trp_export.lowrank.branches import Pairs, calibrate_branches, sum_products
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.metric import ErrorMetric, channel_roots, weigh
from trp_export.planning.plan import Change

Array = NDArray[Any]
# Inputs (group, images, positions, d), targets (images x positions, n) and groups (images,) of a batch.
Samples = tuple[Array, Array, Groups | None]

# Pulls the regression towards the kernel as it was, as a share of the mean variance of the inputs.
RIDGE = 1e-3
# How much stronger the pull may be, to choose from on held-out inputs: deep layers see few independent images.
PULLS = (1, 4, 16, 64, 256)


@dataclass(frozen=True, slots=True, eq=False)
class LayerState:
    """A layer as it is: `layer.branches` says what it becomes, `kernel` (n, c/group, *k) and `bias` (n,) are its own.

    `owed` is what the answers owe to its output channels, if that is known.
    """

    layer: Change
    kernel: Float64
    bias: Float64
    owed: Float64 | None = None

    def product(self, pairs: Pairs) -> Float64:
        """The kernel of factors; without any, the layer's own."""
        site = self.layer.site
        return sum_products(pairs, self.layer.branches, site.kernel_shape, site.group) if pairs else self.kernel

    def by_group(self, kernel: Float64) -> Float64:
        """(group, n/group, d)."""
        group = self.layer.site.group
        return kernel.reshape(group, len(kernel) // group, -1)


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What a layer may become: its factors (none where it stays), kernel (n, c/group, *k), and shift of its bias."""

    pairs: Pairs
    kernel: Float64
    shift: Float64


@dataclass(frozen=True, slots=True, eq=False)
class Residuals:
    """Inputs and residuals of a layer: moments of x, mean (n,) of r and covariance (group, n/group, d) of r and x."""

    inputs: Moments
    mean: Float64
    cross: Float64


def sum_residuals(state: LayerState, samples: Iterable[Samples]) -> Residuals | None:
    """The sums over all batches; None where these hold no rows for the layer."""
    kernel = state.by_group(state.kernel).astype(np.float32)
    bias = state.bias
    sums: MomentSums | None = None
    total, cross = np.zeros(len(state.bias)), np.zeros(kernel.shape)
    for every, answers, groups in samples:
        sums = sums or MomentSums(every.mean(axis=(1, 2), dtype=np.float64))
        targets = answers.reshape(*every.shape[1:3], -1)
        for places, own in sums.by_group(every, groups):
            x, y = own.about_reference(every[:, places]), targets[places].reshape(-1, targets.shape[-1])
            sums.add_to(own, x)
            flat = x.reshape(len(x), -1, x.shape[-1])
            made = (flat @ kernel.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(y.shape)
            left = y - made - (bias + (kernel @ own.reference[:, :, None]).reshape(-1)).astype(np.float32)
            summed = own.weight * left.sum(axis=0, dtype=np.float64)
            total += summed
            cross += own.weight * (left.reshape(len(left), len(x), -1).transpose(1, 2, 0) @ flat)
            cross += summed.reshape(len(x), -1, 1) * (own.reference - sums.reference)[:, None, :]
    if sums is None:
        return None
    mass = sums.mass or 1.0
    inputs = sums.moments()
    mean = total / mass
    offset = (inputs.mean - sums.reference)[:, None, :]
    return Residuals(inputs, mean, cross / mass - mean.reshape(len(kernel), -1, 1) * offset)


def regress(state: LayerState, shown: Residuals, pull: float = 1) -> Choice:
    """The best kernel for the samples shown, of the ranks that the layer gets, and the shift that goes with it.

    What the images do not show stays as it was: the ridge pulls towards the kernel, `pull` times as strongly as the
    covariance is shrunk towards the identity.
    """
    covariance, share = shown.inputs.covariance, np.maximum(shown.inputs.shrinkage, RIDGE)[:, None, None]
    size = covariance.shape[1]
    spread = np.trace(covariance, axis1=1, axis2=2)[:, None, None] / size
    # A layer whose inputs never change keeps its kernel.
    ridge = np.where(spread > 0, share * spread, 1.0)
    shrunk = (1 - share) * covariance + ridge * np.eye(size)
    pulled = shrunk + (pull - 1) * ridge * np.eye(size)
    change = np.linalg.solve(pulled, (1 - share) * shown.cross.transpose(0, 2, 1)).transpose(0, 2, 1)
    kernel = state.kernel + change.reshape(state.kernel.shape)
    if not state.layer.branches:
        return with_mean_kept(state, (), shown, kernel)
    pairs = calibrate_branches(kernel, state.layer.branches, state.layer.site.group, ErrorMetric(shrunk, state.owed))
    return with_mean_kept(state, pairs, shown)


def with_mean_kept(state: LayerState, pairs: Pairs, shown: Residuals, kernel: Float64 | None = None) -> Choice:
    """Factors, or without any a kernel, with the shift of the bias that gives the mean of the target."""
    kernel = state.product(pairs) if kernel is None else kernel
    change = state.by_group(kernel - state.kernel)
    return Choice(pairs, kernel, shown.mean - np.einsum("gnd,gd->gn", change, shown.inputs.mean).reshape(-1))


def closest_choice(state: LayerState, choices: Sequence[Choice], judged: Residuals) -> Choice:
    """The choice of the least squared error, each output channel counting as much as the answers owe to it."""
    roots = channel_roots(state.owed)
    return min(choices, key=lambda choice: _error(state, choice, judged, roots))


def _error(state: LayerState, choice: Choice, judged: Residuals, roots: Float64 | None) -> float:
    """The mean squared error less that of the layer as it is about the mean, which is the same for all choices."""
    change = state.by_group(choice.kernel - state.kernel)
    moved = np.einsum("gnd,gd->gn", change, judged.inputs.mean).reshape(-1)
    offset = weigh((judged.mean - moved - choice.shift)[:, None], roots)
    weighted, cross = (
        weigh(part.reshape(len(state.kernel), -1), roots).reshape(part.shape) for part in (change, judged.cross)
    )
    quadratic = np.einsum("gnd,gnd->", weighted @ judged.inputs.covariance, weighted)
    return float(quadratic - 2 * np.einsum("gnd,gnd->", weighted, cross) + np.square(offset).sum())
