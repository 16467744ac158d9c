"""Images for users without images: made from batch norm statistics where there are any, else drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np

from trp_export.errors import UnsupportedError
from trp_export.inputs.calibration import image_samples
from trp_export.inputs.drawn import PixelScale, drawn_images, pixel_scales, scale_turns
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.inputs.samples import Samples
from trp_export.inputs.spec import Array, InputSpec
from trp_export.network import Network
from trp_export.options import Calibration, Options
from trp_export.system.extras import is_installed
from trp_export.system.progress import Progress
from trp_export.system.signals import held_back

# Where the user gives no number: multiply-adds to spend on a pass over drawn images, and bounds on their number.
_DRAWN_MACS = 1e11
_LEAST_DRAWN, _MOST_DRAWN = 16, 256
# Where nobody asked for images: this many keep nearly as much as four times as many (docs/results/synthetic-images.md).
_MOST_UNASKED = 256


@dataclass(frozen=True, slots=True)
class SyntheticSamples:
    """Synthetic images, and whether they were drawn without batch norm statistics."""

    samples: Samples
    drawn: bool


def synthetic_samples(network: Network, options: Options, progress: Progress) -> SyntheticSamples | None:
    """Samples for the network; None where it does not take images and the user did not ask for any.

    Raises UnsupportedError where the user did.
    """
    calibration = options.calibration
    if calibration is None or (calibration.unasked and not network.described.takes_images):
        return None
    images = synthetic_images(network, calibration, options.preprocessing, progress)
    samples, drawn = image_samples(images, network.described), not _has_statistics(network)
    scales = len(_scales(network, options.preprocessing))
    if drawn and scales > 1:
        samples = replace(samples, groups=scale_turns(len(samples), scales))
    return SyntheticSamples(samples, drawn)


def synthetic_images(
    network: Network, calibration: Calibration, preprocessing: Preprocessing, progress: Progress
) -> ImageSet:
    """Images in the layout and type of the network's input, in the scale that the preprocessing tells, if it does.

    Raises UnsupportedError for a network that does not take images.
    """
    spec = network.described.image
    if not network.described.takes_images or spec.size is None:
        raise UnsupportedError(
            f"images cannot be synthesised for input {spec.name} {spec.show()}; give real data with --calib PATH."
        )
    scales = _scales(network, preprocessing)
    make = _from_statistics if _has_statistics(network) else _drawn
    images = make(network, spec, calibration, scales, progress)
    notes: tuple[str, ...] = (synthetic_note(len(images), calibration.seed),)
    if not _has_statistics(network) and len(scales) > 1:
        notes += (
            "the scale of the input is not known, so images of several take turns; --scale 1/255 (or 1) tells it",
        )
    channels = spec.channels or 3
    return ImageSet("synthetic images", images, None, Preprocessing(), channels, None, notes, (), spec, as_is=True)


def synthetic_note(count: int, seed: int) -> str:
    """What the user should know about synthetic images."""
    return f"{count:,} images were synthesised, seed {seed}; real images, even without labels, keep more accuracy"


def _scales(network: Network, preprocessing: Preprocessing) -> Sequence[PixelScale]:
    return pixel_scales(network.described.image, preprocessing.or_else(network.source.mean, network.source.std))


def _has_statistics(network: Network) -> bool:
    """True where images can be made from batch norm statistics."""
    spec = network.described.only
    return bool(network.statistics) and spec.layout == "NCHW" and not spec.is_integer and is_installed("torch")


def _drawn(
    network: Network, spec: InputSpec, calibration: Calibration, scales: Sequence[PixelScale], progress: Progress
) -> Array:
    progress("draw images", 0)
    affordable = _DRAWN_MACS * _at_a_time(network) / max(network.macs or 1, 1)
    count = calibration.count or int(np.clip(affordable, _LEAST_DRAWN, _MOST_DRAWN))
    return drawn_images(spec, scales, _whole_batches(count, network), calibration.seed)


def _whole_batches(count: int, network: Network) -> int:
    """As many images and more, that fill batches: one to fit to and one to hold out at least."""
    multiple = _at_a_time(network)
    return max(-(-count // multiple), 2 if multiple > 1 else 1) * multiple


def _at_a_time(network: Network) -> int:
    """The images that the network takes at a time, and that its multiply-adds are of."""
    return network.described.at_a_time or 1


def _from_statistics(
    network: Network, spec: InputSpec, calibration: Calibration, scales: Sequence[PixelScale], progress: Progress
) -> Array:
    with held_back():
        from trp_export.recover.synthetic import affordable, synthesise

    runs = (run for runs in network.shapes.values() for run in runs)
    values = sum(prod(size or 1 for size in run.output) for run in runs if run.output)
    multiple = _at_a_time(network)
    count = calibration.count or affordable((network.macs or 1) // multiple, values // multiple)
    if calibration.unasked:
        count = min(count, _MOST_UNASKED)
    return synthesise(
        network.model,
        network.statistics,
        spec.shape or (),
        _whole_batches(count, network),
        seed=calibration.seed,
        scales=scales,
        progress=partial(progress, "synthesise images"),
    )
