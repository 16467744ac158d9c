"""What the plan's layers become: their factors, and what is added to their biases.

From the weights alone, plain truncated SVD; where batch norm tells the mean input of a layer, the bias takes back
what truncation does to the mean of its output. From images, the factors that keep most of each layer's output,
refitted layer after layer to what the compressed network feeds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.curves import Fitted, calibrated_factors, calibrated_layers
from trp_export.calibration.moments import Moments, gather_moments, load_moments, merge_moments, remarks
from trp_export.calibration.sensitivity import measure_sensitivities
from trp_export.calibration.taps import feed
from trp_export.graph.bias import takes_bias
from trp_export.images import ImageSet, load_images
from trp_export.lowrank.branches import Pairs, factorise_branches, sum_products
from trp_export.lowrank.calibrated import bias_shift
from trp_export.lowrank.factor import Factors, Float64
from trp_export.network import Network
from trp_export.options import SYNTHETIC, Calibration, Macs, MaxDrop, Params, Rule, Speedup
from trp_export.parallel import map_layers
from trp_export.planning.curves import Layer
from trp_export.planning.plan import Change, Plan
from trp_export.planning.shared_budget import Damage, lost_energy, measured_damage
from trp_export.progress import Progress
from trp_export.recover.outcome import closest
from trp_export.recover.refit import refit
from trp_export.signals import held_back

# Sensitivities need fewer images than moments: they are averages over whole outputs. With 64, 256 and 1,024 images
# ResNet-20 diverges alike at 2x and 3x, so large networks, which run again for every layer, get fewer.
_MOST_IMAGES, _LEAST_IMAGES = 256, 32
_SENSITIVITY_MACS = 300e9


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What images told about a network: moments of each layer's inputs, and how damage shows in the output.

    `batches` are the images themselves, inputs (n, C, H, W); `notes` what the user should know about them.
    """

    batches: Sequence[NDArray[Any]]
    moments: Mapping[str, Moments]
    damage: Damage
    notes: tuple[str, ...]


def look(
    network: Network, layers: Sequence[Layer], calibration: Calibration, rule: Rule | MaxDrop | None, progress: Progress
) -> tuple[Known, tuple[Layer, ...]]:
    """Run the images through the network; the layers' curves then speak of kept output, not of kept weight."""
    images = _images(network, calibration, progress)
    ir.external_data.load_to_model(network.model)  # Parts of it are run from memory from here on.
    batches = tuple(feed(network.model, images))
    if all(float(np.ptp(image)) == 0 for batch in batches for image in batch):
        notes = (*images.notes, f"{images.name}: all images are of one colour; factors are made without them")
        return Known(batches, {}, lost_energy, notes), tuple(layers)
    own = gather_moments(
        network.model, network.located, images, seed=calibration.seed, progress=partial(progress, "calibrate")
    )
    moments = merge_moments([own, *(load_moments(path) for path in calibration.moments)])
    layers = calibrated_layers(layers, network.located, moments, partial(progress, "output errors"))
    damage: Damage = lost_energy
    if isinstance(rule, Macs | Params | Speedup | MaxDrop):
        count = int(np.clip(_SENSITIVITY_MACS / max(network.macs, 1), _LEAST_IMAGES, _MOST_IMAGES))
        few = batches[: -(-count // len(batches[0]))]
        damage = measured_damage(
            measure_sensitivities(network.model, layers, moments, few, progress=partial(progress, "sensitivities"))
        )
    told = remarks(moments, network.means, None if calibration.moments else len(images))
    return Known(batches, moments, damage, (*images.notes, *told)), layers


def _images(network: Network, calibration: Calibration, progress: Progress) -> ImageSet:
    shape = next(iter(network.inputs.values()))
    if calibration.path == SYNTHETIC:
        with held_back():
            from trp_export.recover.synthetic import affordable, synthetic_images

        count, told = calibration.count or affordable(network.macs), partial(progress, "synthesise images")
        return synthetic_images(network.model, network.statistics, shape, count, seed=calibration.seed, progress=told)
    return load_images(
        calibration.path,
        calibration.preprocessing.or_else(network.source.mean, network.source.std),
        input_shape=(None, *shape[1:]),
        count=calibration.count,
        seed=calibration.seed,
    )


def fit(
    network: Network, plan: Plan, known: Known | None, calibration: Calibration | None, progress: Progress
) -> Fitted:
    """Factors of every layer that the plan changes, in the precision of its weight, and shifts of biases.

    With images, the closest to the original of plain, calibrated and refitted factors: on a network that was trained
    for low rank plain ones are exact, and nothing can be closer.
    """
    plain = _plain(network, plan, progress)
    candidates = [plain]
    if known is not None and known.moments and calibration is not None and plan.changed:
        calibrated = calibrated_factors(plan, network.located, known.moments, partial(progress, "factor"))
        candidates.append(_completed(calibrated, plain))
        if calibration.recover:
            refitted = refit(
                network.model,
                plan,
                known.batches,
                candidates[-1],
                seed=calibration.seed,
                progress=partial(progress, "refit"),
            )
            candidates.append(_completed(refitted, plain))
        best, _ = closest(network.model, plan, candidates, known.batches)
        return _rounded(network, candidates[best])
    return _rounded(network, plain)


def _completed(fitted: Fitted, plain: Fitted) -> Fitted:
    """With plain factors where nothing better is known, and their shifts with them."""
    missing = plain.factors.keys() - fitted.factors.keys()
    shifts = {name: shift for name, shift in plain.shifts.items() if name in missing}
    return Fitted({**plain.factors, **fitted.factors}, {**shifts, **fitted.shifts}, fitted.values)


def _plain(network: Network, plan: Plan, progress: Progress) -> Fitted:
    places = {place.site.name: place for place in network.located}

    def make(change: Change) -> tuple[Pairs, Float64 | None]:
        site, place = change.site, places[change.site.name]
        kernel = place.kernel()
        factors = factorise_branches(kernel, change.branches, site.group)
        if site.name not in network.means or not takes_bias(place):
            return factors, None
        new = sum_products(factors, change.branches, site.kernel_shape, site.group)
        return factors, bias_shift(kernel, new, network.means[site.name])

    made = map_layers(make, plan.changed, partial(progress, "factor"))
    named = {change.site.name: one for change, one in zip(plan.changed, made, strict=True)}
    shifts = {name: shift for name, (_, shift) in named.items() if shift is not None}
    return Fitted({name: factors for name, (factors, _) in named.items()}, shifts)


def _rounded(network: Network, fitted: Fitted) -> Fitted:
    """The factors in the precision that the graph stores: what verification holds the result against."""
    types = {
        place.site.name: place.constant.dtype.numpy() for place in network.located if place.site.name in fitted.factors
    }
    factors = {
        name: tuple(Factors(own.reduce.astype(types[name]), own.expand.astype(types[name])) for own in pairs)
        for name, pairs in fitted.factors.items()
    }
    return Fitted(factors, fitted.shifts, fitted.values)
