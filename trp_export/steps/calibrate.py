"""Run calibration samples through a network: moments of each layer's inputs, and how damage shows in the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.answers import find_answers, reference_to, run_answers
from trp_export.calibration.held_out import digests, split_samples, take_samples
from trp_export.calibration.memory import images_to_keep, images_to_read, images_to_walk, places_with_room
from trp_export.calibration.moments import (
    Moments,
    calibration_remarks,
    gather_moments,
    load_counted,
    load_moments,
    merge_moments,
    require_layers,
    with_owed,
)
from trp_export.calibration.output_curves import calibrated_layers
from trp_export.calibration.sensitivities import measure_sensitivities
from trp_export.errors import LoadError, OptionError, UnsupportedError, is_out_of_memory
from trp_export.graph.model_files import size_bytes
from trp_export.graph.random_draws import random_operators
from trp_export.graph.shapes import infer_value_shapes
from trp_export.graph.sites import LocatedSite
from trp_export.inputs.calibration import open_calibration
from trp_export.inputs.description import NetworkInputs
from trp_export.inputs.images import choose
from trp_export.inputs.samples import Batch, Samples, groups_of, input_types
from trp_export.load import Source
from trp_export.network import Network
from trp_export.options import Calibration, Options
from trp_export.planning.budgets import Damage, lost_energy, measured_damage
from trp_export.planning.curves import Layer
from trp_export.planning.sensitivity import Sensitivity
from trp_export.steps.synthetic_samples import synthetic_samples
from trp_export.system.extras import is_installed, require
from trp_export.system.progress import Progress
from trp_export.system.signals import held_back
from trp_export.system.text import name_some

# Sensitivities need fewer images than moments: they are averages over whole outputs. With 64, 256 and 1,024 images
# ResNet-20 diverges alike at 2x and 3x, so large networks, which run again for every layer, get fewer.
_MOST_IMAGES, _LEAST_IMAGES = 256, 16
# Multiply-adds of all runs together, of which there are this many for each layer.
_SENSITIVITY_MACS = 1.2e12
_RUNS_PER_LAYER = 2.0
# Multiply-adds for gradients, whose forward and backward pass take as long as three runs.
_GRADIENT_MACS = 1e12
_RUNS_OF_A_GRADIENT = 3
# On networks of a few hundred million multiply-adds more images lower the damage by less than its standard error; on
# small ones, more cost little.
_ENOUGH_IMAGES, _ENOUGH_OF_AFFORDABLE = 96, 8
_MOST_CALIBRATION_IMAGES = 1024
# The weights of larger networks stay on disk.
_IN_MEMORY_BYTES = 2**28

Batches = Sequence[Batch]


@dataclass(frozen=True, slots=True, eq=False)
class Earlier:
    """What earlier runs counted: the moments of layers, and the digests of the samples behind these.

    `known` says which of the samples of this run are among them.
    """

    moments: Mapping[str, Moments] | None = None
    counted: frozenset[str] = frozenset()
    known: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationData:
    """What samples say about a network: moments of each layer's inputs, and how damage shows in the output.

    `batches` are the samples that factors are fitted to; `held_out` those that took no part in moments and factors, on
    which both are judged. `notes` are what the user should know. `room` is the number of samples that fit into memory
    in a walk from each node of the network to its end. `synthetic`: the samples are synthesised. `samples` are all of
    them; `sensitivities` say how each layer's error shows, `judge` holds the moments of the held-out samples,
    `to_save` those of all layers before channels were removed, with those of `earlier` runs, and `counted` the digests
    of the samples behind these.
    """

    batches: Batches
    moments: Mapping[str, Moments]
    damage: Damage
    notes: tuple[str, ...]
    held_out: Batches = ()
    room: Sequence[int] = ()
    synthetic: bool = False
    samples: Samples | None = None
    sensitivities: Mapping[str, Sensitivity] = field(default_factory=dict)
    judge: Mapping[str, Moments] | None = None
    to_save: Mapping[str, Moments] = field(default_factory=dict)
    counted: frozenset[str] = frozenset()
    earlier: Earlier = Earlier()

    @property
    def judged_on(self) -> Batches:
        """What results are judged on: held-out samples, or all if none are; as many as memory is for with answers."""
        samples = self.held_out or self.batches
        return take_samples(samples, self.room[-1]) if self.room else samples


def calibrate(
    network: Network,
    layers: Sequence[Layer],
    samples: Samples | None,
    options: Options,
    progress: Progress,
    *,
    cuts: bool = True,
    known: CalibrationData | None = None,
) -> tuple[CalibrationData | None, tuple[Layer, ...]]:
    """Run the samples through the network; the layers' curves then measure kept output instead of kept weight.

    `known` is what was learned on the same samples before channels were removed: sensitivities stay. Without
    `samples`, images are synthesised; None where that cannot be done and the user did not ask for it. One
    sample in four is held out: errors and damage are measured on these. Where no layer is to be cut, only the samples
    are returned: int8 and the evaluation use them. Raises OptionError without calibration options.
    """
    calibration, rule = options.calibration, options.effective_rule
    if calibration is None:
        raise OptionError("calibration needs images; give calibration=Calibration(PATH).")
    if calibration.tune is not None:
        require("--tune", "torch")
    made = synthetic_samples(network, options, progress) if samples is None and known is None else None
    samples = made.samples if made is not None else known.samples if known is not None else samples
    if samples is None:
        return None, tuple(layers)
    model = network.model
    if size_bytes(network.file) <= _IN_MEMORY_BYTES:  # Parts of it are run from here on.
        ir.external_data.load_to_model(model)
    located = places_with_room(network.located)
    earlier = _earlier_runs(samples, located, calibration) if known is None else known.earlier
    split = split_samples(samples, earlier.known)
    shapes = infer_value_shapes(model, {name: array.shape for name, array in samples.largest.arrays.items()})
    names = [node.inputs[0].name or "" for place in network.located for node in place.nodes if node.inputs[0]]
    at_a_time, room = images_to_read(names, shapes), images_to_walk(model, shapes)
    batches, held_out = (
        tuple(part.batches(at_a_time)) if part is not None else () for part in (split.fitting, split.held_out)
    )
    notes = (*samples.notes, *_counted_before(earlier, calibration, held_out))
    data = CalibrationData(
        *(batches, {}, lost_energy, notes, held_out, room, calibration.synthetic, samples),
        to_save=earlier.moments or {},
        counted=earlier.counted if known is None else known.counted,
        earlier=replace(earlier, moments=None),
    )
    if _of_one_colour(network, samples.name, (*batches, *held_out)):
        notes = (*notes, f"{samples.name}: all images are of one colour; factors are made without them")
        return replace(data, notes=notes), tuple(layers)
    if not cuts and calibration.statistics is None:
        return data, tuple(layers)

    def gather(part: Samples, step: str) -> Mapping[str, Moments]:
        return gather_moments(
            model, located, part, seed=calibration.seed, at_a_time=at_a_time, progress=partial(progress, step)
        )

    # What earlier runs saved is of the network with all channels.
    fresh, unweighted = split.fresh if known is None else split.fitting, tuple[str, ...]()
    parts, counted = [earlier.moments] if earlier.moments else [], data.counted
    if fresh is not None:
        own = batches if fresh is split.fitting else tuple(fresh.batches(at_a_time))
        owed, unweighted = _owed(network, located, own, calibration, progress)
        parts = [with_owed(gather(fresh, "calibrate"), owed), *parts]
        is_saved = known is None and calibration.statistics is not None
        counted = counted.union(digests(own)) if is_saved else counted
    moments = merge_moments(parts) if parts else {}
    held_out_moments = gather(split.held_out, "held-out images") if split.held_out is not None else None
    layers = calibrated_layers(layers, network.located, moments, partial(progress, "output errors"), held_out_moments)
    means = {} if made is not None and made.drawn else network.means
    notes = (*notes, *_left_out(network.located, located), *unweighted, *calibration_remarks(moments, means))
    to_save = moments if known is None else known.to_save
    data = replace(data, moments=moments, judge=held_out_moments, to_save=to_save, counted=counted, notes=notes)
    if rule.needs_sensitivities and not random_operators(model):  # Draws would hide what a layer does.
        sensitivities = known.sensitivities if known is not None else _sensitivities(network, layers, data, progress)
        data = replace(data, damage=measured_damage(sensitivities), sensitivities=sensitivities)
    return data, layers


def _sensitivities(
    network: Network, layers: Sequence[Layer], data: CalibrationData, progress: Progress
) -> Mapping[str, Sensitivity]:
    return measure_sensitivities(
        network.model,
        layers,
        data.moments,
        _for_sensitivities(data, network),
        held_out=data.judge,
        progress=partial(progress, "sensitivities"),
    )


def divergence_of(model: ir.Model, network: Network, data: CalibrationData) -> float:
    """How far a model with other weights is from the network, on the held-out samples that sensitivities come from."""
    batches, answers = _for_sensitivities(data, network), find_answers(network.model)
    reference = reference_to(answers, run_answers(network.model, answers, batches), groups_of(batches))
    return reference.divergence(run_answers(model, answers, batches))


def _owed(
    network: Network,
    located: Sequence[LocatedSite],
    batches: Batches,
    calibration: Calibration,
    progress: Progress,
) -> tuple[Mapping[str, NDArray[np.float64]], tuple[str, ...]]:
    """What the answers owe to output channels, and a note where that stays unknown."""
    if not is_installed("torch"):
        return {}, ("without torch all channels of a layer count alike; with it factors lose less of the answers",)
    with held_back():
        from trp_export.calibration.gradients import measure_owed

    images = sum(len(batch) for batch in batches)
    affordable = int(_GRADIENT_MACS / (_RUNS_OF_A_GRADIENT * max(network.macs or 0, 1)))
    enough = max(_ENOUGH_IMAGES, affordable // _ENOUGH_OF_AFFORDABLE)
    fewer = take_samples(batches, max(_LEAST_IMAGES, min(affordable, enough, images)))
    share = partial(progress, "gradients")
    try:
        return measure_owed(network.model, located, fewer, seed=calibration.seed, progress=share), ()
    except (UnsupportedError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # A graph may do what our operators in torch do not: factors are then found without gradients.
        if is_out_of_memory(error):
            raise
        return {}, ("torch gives no gradients of this network, so all channels of a layer count alike",)


def _left_out(located: Sequence[LocatedSite], with_room: Sequence[LocatedSite]) -> tuple[str, ...]:
    """A note on the layers whose moments do not fit into memory."""
    kept = {place.site.name for place in with_room}
    names = [place.site.name for place in located if place.site.refusal is None and place.site.name not in kept]
    if not names:
        return ()
    return (
        f"{name_some(names)}: too large to calibrate within the bound on memory, so the weights alone give the factors",
    )


def _of_one_colour(network: Network, name: str, batches: Batches) -> bool:
    """True where no image varies. Raises LoadError where conversion to the type of the input removes all variation."""
    types = input_types(network.model)
    if any(batch.in_types(types).varies for batch in batches):
        return False
    if any(batch.varies for batch in batches):
        raise LoadError(
            f"{name}: as {next(iter(types.values()))}, the type that the network reads, all values of an image are "
            "equal. Give the pixels as they are, without --mean and --std."
        )
    return True


def _for_sensitivities(data: CalibrationData, network: Network) -> Batches:
    """Held-out samples, as many as the network's size allows."""
    layers = sum(place.site.refusal is None for place in network.located)
    count = _SENSITIVITY_MACS / max((network.macs or 0) * layers * _RUNS_PER_LAYER, 1)
    count = min(int(np.clip(count, _LEAST_IMAGES, _MOST_IMAGES)), *data.room[:1])
    return take_samples(data.held_out or data.batches, count)


def _earlier_runs(samples: Samples, located: Sequence[LocatedSite], calibration: Calibration) -> Earlier:
    """Raises LoadError for a file that does not hold any statistics, OptionError for those of another network."""
    file = calibration.statistics
    if file is None or not file.exists():
        return Earlier()
    moments, counted, known = load_moments(file), load_counted(file), np.zeros(len(samples), dtype=bool)
    require_layers(moments, located)
    if counted:
        found = digests(samples.batches())
        known[: len(found)] = [digest in counted for digest in found]
    return Earlier(moments, counted, known)


def _counted_before(earlier: Earlier, calibration: Calibration, held_out: Batches) -> tuple[str, ...]:
    """A note on images that do not count again."""
    if earlier.known is None or not earlier.known.any():
        return ()
    note = f"{earlier.known.sum():,} of {len(earlier.known):,} images are in {calibration.statistics} already"
    return (f"{note}: they do not count again" + ("" if held_out else ", and none is held out"),)


def open_samples(inputs: NetworkInputs, source: Source, options: Options) -> Samples | None:
    """The calibration data that the user gave; None without any. Raises LoadError for data that do not fit.

    Where the user does not say how many, they are as many as memory is for.
    """
    calibration = options.calibration
    if calibration is None or calibration.synthetic:
        return None
    samples = open_calibration(
        calibration.path,
        inputs,
        options.preprocessing.or_else(source.mean, source.std),
        count=calibration.count,
        most=_MOST_CALIBRATION_IMAGES,
        seed=calibration.seed,
    )
    multiple = samples.at_a_time or 1
    each = sum(array.nbytes for array in samples.largest.arrays.values()) // multiple
    room = max(images_to_keep(each) // multiple, 1) * multiple
    if calibration.count is not None or room >= len(samples):
        return samples
    note = f"{room:,} of {len(samples):,} images are used, for memory's sake; --calib-count asks for more"
    return replace(samples.take(choose(len(samples), room, calibration.seed)), notes=(*samples.notes, note))
