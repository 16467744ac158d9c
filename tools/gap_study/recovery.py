"""Plans recovered and judged: in closed form, on images that the search has not seen, as an export would do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.moments import gather_moments
from trp_export.errors import OptionError
from trp_export.graph.bias import add_to_bias
from trp_export.graph.rewrite import set_products
from trp_export.graph.sites import find_sites
from trp_export.graph.weights import apply_values
from trp_export.inputs.calibration import image_samples
from trp_export.inputs.images import ImageSet
from trp_export.network import Network
from trp_export.options import Calibration
from trp_export.planning.budgets import lost_energy
from trp_export.planning.plan import Plan
from trp_export.runtime.partial import Tap
from trp_export.steps.calibrate import CalibrationData
from trp_export.steps.factors import make_factors

DRAWS = 2
_RECOVERED_ON, _JUDGED_ON, _LEAST = 256, 2500, 64


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Images that the search has not seen: `draws` to recover plans on, and those they are judged on."""

    draws: tuple[ImageSet, ...]
    judge: ImageSet


def split_images(images: ImageSet, seen: ImageSet, seed: int) -> Judged:
    """Two draws and the rest, in random order, without those that the search has seen. Raises OptionError."""
    known = {image.tobytes() for batch in seen.batches(_LEAST) for image in batch}
    inputs = np.concatenate(list(images.batches(_LEAST)))
    fresh = [index for index, image in enumerate(inputs) if image.tobytes() not in known]
    fresh = np.random.default_rng(seed).permutation(fresh).tolist()
    if len(fresh) < 4 * _LEAST:
        raise OptionError(
            f"the study needs {4 * _LEAST} images that the search has not seen, not {len(fresh)}: lower --count."
        )
    size = min(_RECOVERED_ON, len(fresh) // 4)
    cuts = [*range(0, DRAWS * size + 1, size), DRAWS * size + _JUDGED_ON]

    def part(indices: Sequence[int]) -> ImageSet:
        labels = images.labels[indices] if images.labels is not None else None
        return ImageSet(images.name, inputs[indices], labels, images.preprocessing, images.channels, None, ())

    *draws, judge = (part(fresh[start:stop]) for start, stop in pairwise(cuts))
    return Judged(tuple(draws), judge)


def images_needed(count: int) -> int:
    """How many images to read, so that enough are left when those of a search of `count` are taken out."""
    return count + DRAWS * _RECOVERED_ON + _JUDGED_ON


class Recovery:
    """Plans recovered in closed form on each draw of images, and judged: by `measure`, accuracy where there are labels,
    else agreement with the class that the original gives, in percent."""

    def __init__(self, network: Network, images: Judged, labelled: bool) -> None:
        self._network, self._images = network, images
        self.measure = "accuracy" if labelled else "agreement"
        self.counts = {"recovered on": len(images.draws[0]), "judged on": len(images.judge)}
        draws = [image_samples(draw, network.described) for draw in images.draws]
        self._batches = [tuple(draw.batches()) for draw in draws]
        self._moments = [gather_moments(network.model, network.located, draw) for draw in draws]
        labels = images.judge.labels if labelled else None
        self._wanted = labels if labels is not None else self._classes(network.model)

    def judge(self, plan: Plan, draw: int) -> float:
        network = self._network
        known = CalibrationData(self._batches[draw], self._moments[draw], lost_energy, ())
        fitted = make_factors(network, plan, known, Calibration(Path("drawn"), seed=draw), lambda step, share: None)
        model = network.model.clone()
        places = find_sites(model, network.shapes)
        set_products(model, plan, places, fitted.factors)
        add_to_bias(model, places, fitted.shifts)
        apply_values(model, fitted.values)
        got = self._classes(model)  # Fewer than there are images where these do not fill a fixed batch.
        return 100 * float((got == self._wanted[: len(got)]).mean())

    def _classes(self, model: ir.Model) -> NDArray[np.intp]:
        output = model.graph.outputs[0].name or ""
        tap = Tap(model, [model.graph.inputs[0].name or ""], [output])
        parts = [
            tap(batch.arrays)[output] for batch in image_samples(self._images.judge, self._network.described).batches()
        ]
        return np.concatenate([part.reshape(len(part), -1).argmax(axis=1) for part in parts])
