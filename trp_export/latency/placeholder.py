"""Networks to be timed: a plan carried out with arbitrary factors of the right shape, since time knows no values, in
the precision that ships."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_export.graph.exact import fold_all, write_timed
from trp_export.graph.model_files import save_model
from trp_export.graph.rewrite import WeightNames, rewrite
from trp_export.graph.sites import find_sites
from trp_export.lowrank.branches import Pairs
from trp_export.lowrank.factor import Factors
from trp_export.lowrank.schemes import Array, pair_shape
from trp_export.network import Network
from trp_export.planning.plan import Change, Plan
from trp_export.precision.random_ranges import Shapes, convert_for_speed

# Normal numbers, repeated: never denormal, which would be slow, and quickly made.
_NUMBERS = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)


def save_standin(network: Network, plan: Plan, path: Path, precision: str) -> WeightNames:
    """Write the network as the plan would have it. Returns what its new weights are called."""
    return save_model_as(network.model, network.inputs, plan, path, precision, network.rewrites)


def save_model_as(
    model: ir.Model, inputs: Shapes, plan: Plan, path: Path, precision: str, rewrites: Collection[str] = ()
) -> WeightNames:
    """The same for any model in normal form, which stays as it is. `inputs` are the shapes that it is fed."""
    made, names = make_standin(model, plan)
    write_timed(made, rewrites)
    save_model(convert_for_speed(made, precision, inputs), path)
    return names


def make_standin(model: ir.Model, plan: Plan) -> tuple[ir.Model, WeightNames]:
    """The model as the plan would have it, in fp32, all rewrites done that pay on every device."""
    copy = model.clone()
    factors = {change.site.name: _factors(change) for change in plan.changed}
    names = rewrite(copy, plan, find_sites(copy, {}), factors)
    fold_all(copy)
    return copy, names


def _factors(change: Change) -> Pairs:
    site = change.site
    shapes = [pair_shape(branch.scheme, site.kernel_shape, site.group, branch.rank) for branch in change.branches]
    return tuple(Factors(numbers(shape.reduce), numbers(shape.expand)) for shape in shapes)


def numbers(shape: tuple[int, ...]) -> Array:
    """Arbitrary numbers, scaled so that outputs are about as large as inputs."""
    scale = np.float32(1 / np.sqrt(np.prod(shape[1:])))
    return np.resize(_NUMBERS, int(np.prod(shape))).reshape(shape) * scale
