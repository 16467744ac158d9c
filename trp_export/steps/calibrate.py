"""Run calibration images through a network: moments of each layer's inputs, and how damage shows in the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.moments import Moments, calibration_remarks, gather_moments, load_moments, merge_moments
from trp_export.calibration.output_curves import calibrated_layers
from trp_export.calibration.sensitivities import measure_sensitivities
from trp_export.inputs.images import ImageSet, load_images
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.network import Network
from trp_export.options import Calibration
from trp_export.planning.budgets import Damage, lost_energy, measured_damage
from trp_export.planning.curves import Layer
from trp_export.rules import Rule
from trp_export.runtime.partial import feed
from trp_export.system.extras import require
from trp_export.system.progress import Progress
from trp_export.system.signals import held_back

# Sensitivities need fewer images than moments: they are averages over whole outputs. With 64, 256 and 1,024 images
# ResNet-20 diverges alike at 2x and 3x, so large networks, which run again for every layer, get fewer.
_MOST_IMAGES, _LEAST_IMAGES = 256, 32
_SENSITIVITY_MACS = 300e9
_MOST_CALIBRATION_IMAGES = 1024

Batches = Sequence[NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationData:
    """What images told about a network: moments of each layer's inputs, and how damage shows in the output.

    `batches` are the images themselves, inputs (n, C, H, W); `notes` what the user should know about them.
    """

    batches: Batches
    moments: Mapping[str, Moments]
    damage: Damage
    notes: tuple[str, ...]
    synthetic: bool = False


def calibrate(
    network: Network,
    layers: Sequence[Layer],
    calibration: Calibration,
    preprocessing: Preprocessing,
    rule: Rule,
    progress: Progress,
) -> tuple[CalibrationData, tuple[Layer, ...]]:
    """Run the images through the network; the layers' curves then speak of kept output, not of kept weight."""
    if calibration.tune is not None:
        require("--tune", "torch")
    images = _images(network, calibration, preprocessing, progress)
    ir.external_data.load_to_model(network.model)  # Parts of it are run from memory from here on.
    batches = tuple(feed(network.model, images))
    if all(float(np.ptp(image)) == 0 for batch in batches for image in batch):
        notes = (*images.notes, f"{images.name}: all images are of one colour; factors are made without them")
        return CalibrationData(batches, {}, lost_energy, notes, calibration.synthetic), tuple(layers)
    earlier = _saved_statistics(calibration)
    own = gather_moments(
        network.model, network.located, images, seed=calibration.seed, progress=partial(progress, "calibrate")
    )
    moments = merge_moments([own, *earlier])
    layers = calibrated_layers(layers, network.located, moments, partial(progress, "output errors"))
    damage: Damage = lost_energy
    if rule.needs_sensitivities:
        count = int(np.clip(_SENSITIVITY_MACS / max(network.macs, 1), _LEAST_IMAGES, _MOST_IMAGES))
        few = batches[: -(-count // len(batches[0]))]
        damage = measured_damage(
            measure_sensitivities(network.model, layers, moments, few, progress=partial(progress, "sensitivities"))
        )
    told = calibration_remarks(moments, network.means, None if earlier else len(images))
    return CalibrationData(batches, moments, damage, (*images.notes, *told), calibration.synthetic), layers


def _saved_statistics(calibration: Calibration) -> tuple[dict[str, Moments], ...]:
    """Those of earlier runs. Raises LoadError for a file that holds something else."""
    file = calibration.statistics
    return (load_moments(file),) if file is not None and file.exists() else ()


def _images(network: Network, calibration: Calibration, preprocessing: Preprocessing, progress: Progress) -> ImageSet:
    shape = next(iter(network.inputs.values()))
    if not isinstance(calibration.path, Path):
        require("--calib synthetic", "torch")
        with held_back():
            from trp_export.recover.synthetic import affordable, synthetic_images

        count, told = calibration.count or affordable(network.macs), partial(progress, "synthesise images")
        return synthetic_images(network.model, network.statistics, shape, count, seed=calibration.seed, progress=told)
    return load_images(
        calibration.path,
        preprocessing.or_else(network.source.mean, network.source.std),
        input_shape=(None, *shape[1:]),
        count=calibration.count or _MOST_CALIBRATION_IMAGES,
        seed=calibration.seed,
    )
