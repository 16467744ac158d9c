"""Networks to be timed: a plan carried out with arbitrary factors of the right shape, since time knows no values."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trp_export.graph.batchnorm import fold_batch_norm
from trp_export.graph.prepare import remove_unused
from trp_export.graph.rewrite import WeightNames, rewrite
from trp_export.graph.sites import find_sites
from trp_export.lowrank.factor import Factors
from trp_export.lowrank.schemes import Array, pair_shape
from trp_export.network import Network
from trp_export.planning.plan import Change, Plan
from trp_export.save import save_model

# Normal numbers, repeated: never denormal, which would be slow, and quickly made.
_NUMBERS = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)


def save_standin(network: Network, plan: Plan, path: Path) -> WeightNames:
    """Write the network as the plan would have it, batch norm folded. Returns what its new weights are called."""
    model = network.model.clone()
    factors = {change.site.name: _factors(change) for change in plan.changed}
    names = rewrite(model, plan, find_sites(model, network.shapes), factors)
    remove_unused(model)
    fold_batch_norm(model)
    remove_unused(model)
    save_model(model, path)
    return names


def _factors(change: Change) -> Factors:
    shape = pair_shape(change.scheme, change.site.kernel_shape, change.site.group, change.rank)
    return Factors(_numbers(shape.reduce), _numbers(shape.expand))


def _numbers(shape: tuple[int, ...]) -> Array:
    """Scaled so that outputs are about as large as inputs."""
    scale = np.float32(1 / np.sqrt(np.prod(shape[1:])))
    return np.resize(_NUMBERS, int(np.prod(shape))).reshape(shape) * scale
