"""What is learned about a network before a plan is made: from images, from the device, from an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trp_export.errors import OptionError
from trp_export.inputs.image_set import ImageSet
from trp_export.network import Network, left_out
from trp_export.options import Options
from trp_export.planning.budgets import Damage, lost_energy
from trp_export.planning.curves import Layer
from trp_export.planning.plan import Choice
from trp_export.steps.calibrate import Batches, CalibrationData, calibrate
from trp_export.system.cpu import block_size
from trp_export.system.progress import Progress
from trp_export.verify import Evaluator, open_evaluator
from trp_export.workspace import Workspace

if TYPE_CHECKING:
    from trp_export.latency.network import NetworkLatency
    from trp_export.steps.max_drop import Trials


@dataclass(frozen=True, slots=True, eq=False)
class Knowledge:
    """The network and all that plans, factors and verdicts draw on. What is None was not asked for.

    `layers` hold the curves of each layer, `saved` the choices of a saved plan, `trials` tries plans out.
    """

    network: Network
    layers: tuple[Layer, ...]
    saved: tuple[Choice, ...]
    align: int
    calibration: CalibrationData | None = None
    evaluator: Evaluator | None = None
    latency: NetworkLatency | None = None
    trials: Trials | None = None
    notes: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense network. Raises UnsupportedError where they are unknown."""
        return self.network.require_macs()

    @property
    def params(self) -> int:
        """Parameters of the dense network in normal form."""
        return self.network.params

    @property
    def damage(self) -> Damage:
        """What each rank of a layer does to the network's output."""
        return self.calibration.damage if self.calibration is not None else lost_energy

    @property
    def batches(self) -> Batches:
        """The calibration inputs; none without calibration."""
        return self.calibration.batches if self.calibration is not None else ()

    @property
    def measured_latency(self) -> NetworkLatency:
        """The latency of layers. Raises OptionError where none was measured."""
        if self.latency is None:
            raise OptionError("this rule needs the latency of layers on a device, which was not measured.")
        return self.latency

    @property
    def required_trials(self) -> Trials:
        """Raises OptionError where there is nothing to evaluate plans with."""
        if self.trials is None:
            raise OptionError("this rule needs an evaluation of what is lost.")
        return self.trials


def learn(
    network: Network,
    layers: Sequence[Layer],
    images: ImageSet | None,
    saved: Sequence[Choice],
    options: Options,
    work: Workspace,
) -> Knowledge:
    """Evaluate the original, run calibration images, measure latencies: whatever the options need."""
    evaluator, notes = _evaluator(network, options, work.progress)
    data, layers = None, tuple(layers)
    if options.calibration is not None:
        data, layers = calibrate(network, layers, images, options.calibration, options.effective_rule, work.progress)
        notes = (*notes, *_same_images(options), *data.notes)
    align = options.selection_with_int8_alignment.align
    knowledge = Knowledge(
        network,
        layers,
        saved=tuple(_kept_if_left_out(choice, options) for choice in saved),
        align=block_size() if align == "auto" else align,
        calibration=data,
        evaluator=evaluator,
        latency=_latency(network, layers, options, work),
        notes=(*network.notes, *notes),
    )
    if options.effective_rule.largest_drop is None or evaluator is None:
        return knowledge
    from trp_export.steps.max_drop import Trials

    return replace(knowledge, trials=Trials(knowledge, evaluator, options, work))


def _evaluator(network: Network, options: Options, progress: Progress) -> tuple[Evaluator | None, tuple[str, ...]]:
    """Opened before long work is done. The plan of a dry run is evaluated only where the rule searches for it."""
    if options.dry_run and options.effective_rule.largest_drop is None:
        return None, ()
    return open_evaluator(
        network.source,
        network.described,
        network.original,
        options.images,
        options.preprocessing,
        options.evaluate,
        lambda share: progress("evaluate the original", share),
    )


def _latency(network: Network, layers: Sequence[Layer], options: Options, work: Workspace) -> NetworkLatency | None:
    if not options.effective_rule.needs_latency:
        return None
    from trp_export.latency.session import open_latency

    return open_latency(
        network,
        layers,
        selection=options.selection,
        benchmark=options.benchmark,
        precision=options.planned_precision,
        folder=work.scratch,
        progress=work.progress,
    )


def _same_images(options: Options) -> tuple[str, ...]:
    images, calibration = options.images, options.calibration
    if images is None or calibration is None or calibration.synthetic:
        return ()
    if images.path.resolve() != calibration.path.resolve():  # type: ignore[union-attr]
        return ()
    return ("--eval and --calib are the same images: on others expect somewhat more to be lost",)


def _kept_if_left_out(choice: Choice, options: Options) -> Choice:
    if left_out(choice.name, options.selection) is None:
        return choice
    return replace(choice, branches=(), reason="left out by --only or --skip")
