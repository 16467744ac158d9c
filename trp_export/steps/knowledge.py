"""What an export learns about a network before it makes a plan: from images, the device and an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trp_export.calibration.memory import has_room_for_second
from trp_export.channels.thin import ChannelChoice
from trp_export.errors import DeviceError, LoadError, OptionError, UnsupportedError, first_line
from trp_export.inputs.description import NetworkInputs, describe_inputs
from trp_export.inputs.samples import Samples
from trp_export.load import Source, load
from trp_export.metrics.evaluator import Evaluator, open_evaluator
from trp_export.network import Network, analyse, left_out, measure_layers, normal_form
from trp_export.options import Options
from trp_export.planning.budgets import Damage, lost_energy
from trp_export.planning.channels import ChannelDecision
from trp_export.planning.curves import Layer
from trp_export.planning.saved_plan import Choice, Choices, parse_plan, read_plan
from trp_export.rules import OwnPlan, Rule, SavedPlan
from trp_export.runtime.batch_size import with_true_batch
from trp_export.runtime.new_sizes import set_sizes
from trp_export.runtime.sessions import CannotRunError, open_session
from trp_export.steps.calibrate import Batches, CalibrationData, calibrate, open_samples
from trp_export.steps.timed_rewrites import with_timed_rewrites
from trp_export.system.progress import Progress
from trp_export.system.staging import is_same_file
from trp_export.workspace import Workspace

if TYPE_CHECKING:
    from torch import nn

    from trp_export.latency.network import NetworkLatency
    from trp_export.latency.pair_costs import PairCosts


_WEIGHTS_ALONE = (
    "the weights alone chose ranks and factors; --calib with data of the network's kind keeps more accuracy"
)


@dataclass(frozen=True, slots=True)
class ChannelsByImages:
    """That channels may go by images: those of a choice. `required`: whatever is predicted of it."""

    choice: ChannelChoice
    required: bool


@dataclass(frozen=True, slots=True, eq=False)
class Knowledge:
    """The network, and the data that plans, factors and evaluations use. A field is None if it was not asked for.

    `layers` hold the curves of each layer, `saved` the choices of a saved plan. `pair_costs` say which pairs are slow;
    None where there will be no pairs, or slow ones are kept. `by_images` is None where no channels may go by images.
    `damage_done` is the damage predicted of the channels that went.
    `remarks` are what the user should know beside what network and images say.
    """

    network: Network
    layers: tuple[Layer, ...]
    saved: tuple[Choice, ...]
    align: int
    calibration: CalibrationData | None = None
    evaluator: Evaluator | None = None
    latency: NetworkLatency | None = None
    pair_costs: PairCosts | None = None
    by_images: ChannelsByImages | None = None
    damage_done: float = 0.0
    remarks: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """All that the user should know."""
        of_images = self.calibration.notes if self.calibration is not None else ()
        return tuple(dict.fromkeys((*self.network.notes, *self.remarks, *of_images)))

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense network, or of one output pixel of each layer where they are unknown."""
        return self.network.budget_macs

    @property
    def params(self) -> int:
        """Parameters of the dense network in normal form."""
        return self.network.params

    @property
    def fewer_macs(self) -> float:
        """How many times fewer multiply-adds the removal of channels left, before low rank."""
        return self.network.fewer_macs

    @property
    def fewer_params(self) -> float:
        """How many times fewer parameters the removal of channels left, before low rank."""
        return self.network.fewer_params

    @property
    def damage(self) -> Damage:
        """What each rank of a layer does to the network's output."""
        return self.calibration.damage if self.calibration is not None else lost_energy

    @property
    def batches(self) -> Batches:
        """The calibration inputs; none without calibration."""
        return self.calibration.batches if self.calibration is not None else ()

    @property
    def held_out(self) -> Batches:
        """The calibration inputs that took no part in moments and factors; none without calibration."""
        return self.calibration.held_out if self.calibration is not None else ()

    @property
    def measured_latency(self) -> NetworkLatency:
        """The latency of layers. Raises OptionError where none was measured."""
        if self.latency is None:
            raise OptionError("this rule needs the latency of layers on a device, which was not measured.")
        return self.latency

    @property
    def required_evaluator(self) -> Evaluator:
        """Raises OptionError where there is nothing to evaluate plans with."""
        if self.evaluator is None:
            raise OptionError("this rule needs an evaluation of what is lost.")
        return self.evaluator


def learn(model: str | Path | nn.Module, options: Options, work: Workspace, *, fold: bool | None = None) -> Knowledge:
    """Load a model and learn about it what the options need: layers, saved plan, images, evaluation, latencies.

    `fold` says whether batch norm is folded before layers are looked at; it is by default where images calibrate.
    Raises LoadError, OptionError or UnsupportedError, each with the remedy.
    """
    work.progress("load", 0)
    source = normal_form(_with_sizes(load(model, options.load_with_inputs), options, work))
    inputs = describe_inputs(source.model, options.inputs, source.aliases)
    if source.path is not None and (options.calibration is not None or options.images is not None):
        inputs = with_true_batch(inputs, source.path)
    samples = open_samples(inputs, source, options)
    fold = options.calibration is not None if fold is None else fold
    plan = saved_plan(options.effective_rule, source)
    saved = plan.layers if plan is not None else ()
    channels = ChannelChoice(
        plan.channels if plan is not None else None, lambda name: left_out(name, options.selection)
    )
    sample = samples.first if samples is not None else {}
    required = _requires_channels(options, channels.saved)
    fold = fold or required
    first = None if required else channels
    network = analyse(source, work.scratch, inputs, data=sample, fold=fold, channels=first)
    network, rewritten = with_timed_rewrites(network, plan, options, work)
    layers = measure_layers(network, options.selection, () if required else saved, work.progress)
    evaluator, remarks = _evaluator(network, inputs, options, work.progress)
    data, may_thin = None, False
    cuts = options.effective_rule.chooses_ranks or bool(saved)
    if options.calibration is not None:
        data, layers, unfit = _calibrate(network, layers, samples, options, work.progress, cuts=cuts)
        may_thin = data is not None and bool(data.moments) and (required or _may_thin(network, options))
        remarks = (*remarks, *_same_images(options), *(() if data is not None else (*unfit, _WEIGHTS_ALONE)))
    knowledge = Knowledge(
        network,
        layers,
        saved=tuple(_kept_if_left_out(choice, options) for choice in saved),
        align=_alignment(options),
        calibration=data,
        evaluator=evaluator,
        by_images=ChannelsByImages(channels, required) if may_thin else None,
        remarks=(*rewritten, *remarks),
    )
    return with_clocks(knowledge, options, work) if cuts else knowledge


def with_clocks(knowledge: Knowledge, options: Options, work: Workspace) -> Knowledge:
    """With what times layers and pairs on the device, as far as the options need it. Raises DeviceError."""
    pair_costs, untimed = _pair_costs(knowledge.network, options, work)
    latency = _latency(knowledge.network, knowledge.layers, options, work)
    return replace(knowledge, pair_costs=pair_costs, latency=latency, remarks=(*knowledge.remarks, *untimed))


def _requires_channels(options: Options, saved: Sequence[ChannelDecision] | None) -> bool:
    """True where channels are to go by images whatever is predicted: the user asks for it, or a saved plan did so.

    Raises OptionError for such a plan without images.
    """
    fitted = [decision.name for decision in saved or () if decision.fitted]
    if fitted and options.calibration is None:
        raise OptionError(
            f"the plan removes channels of {fitted[0]} and refits what reads them, which needs images: give --calib "
            "PATH, best those that the plan was made with."
        )
    return bool(fitted) or options.selection.channels == "on"


def _may_thin(network: Network, options: Options) -> bool:
    """Whether channels may go by images unasked: their groups are understood, and none went at no loss."""
    understood = bool(network.channels) and network.thinned is None
    return options.may_remove_channels and understood and has_room_for_second(network.located)


def _with_sizes(source: Source, options: Options, work: Workspace) -> Source:
    """The source at the sizes of --shape, also where its ONNX file fixes others."""
    if source.path is None or not options.inputs.shapes:
        return source
    copy = work.scratch / "original.onnx"
    changed = set_sizes(source.model, options.inputs, copy)
    if not changed:
        return source
    return replace(source, path=copy, notes=(*source.notes, f"{changed}: the result takes this size instead"))


def _alignment(options: Options) -> int:
    """What ranks are rounded up to a multiple of; where the user leaves it open, what suits the device."""
    wanted = options.selection_with_int8_alignment.align
    if wanted != "auto":
        return wanted
    from trp_export.latency.device import channel_block

    return channel_block(options.benchmark.device)


def _calibrate(
    network: Network,
    layers: tuple[Layer, ...],
    samples: Samples | None,
    options: Options,
    progress: Progress,
    *,
    cuts: bool,
) -> tuple[CalibrationData | None, tuple[Layer, ...], tuple[str, ...]]:
    """`calibrate`; without data, and with a note, where a network does not run on images that nobody asked for."""
    unasked = options.calibration is not None and options.calibration.unasked
    if unasked and not _opens(network.original):  # Answers are compared later.
        return None, layers, ()
    try:
        return *calibrate(network, layers, samples, options, progress, cuts=cuts), ()
    except (LoadError, UnsupportedError) as error:
        if not unasked:
            raise
        return None, layers, (f"synthetic images do not suit this network: {first_line(error, 160)}",)


def _opens(model: Path) -> bool:
    try:
        open_session(model)
    except CannotRunError:
        return False
    return True


def saved_plan(rule: Rule, source: Source) -> Choices | None:
    """The saved plan that the rule names; without any rule that inside the checkpoint. Raises LoadError."""
    if isinstance(rule, SavedPlan):
        return read_plan(rule.path)
    if isinstance(rule, OwnPlan) and source.plan is not None:
        return parse_plan(source.plan, f"the plan inside {source.name}")
    return None


def _evaluator(
    network: Network, inputs: NetworkInputs, options: Options, progress: Progress
) -> tuple[Evaluator | None, tuple[str, ...]]:
    """Opened before long work is done. The plan of a dry run is evaluated only where the rule searches for it.

    Sizes that the file leaves open follow the images.
    """
    if options.dry_run and options.effective_rule.largest_drop is None:
        return None, ()
    return open_evaluator(
        network.source,
        inputs,
        network.original,
        options,
        lambda share: progress("evaluate the original", share),
    )


def _latency(network: Network, layers: Sequence[Layer], options: Options, work: Workspace) -> NetworkLatency | None:
    if not options.effective_rule.needs_latency:
        return None
    from trp_export.latency.network import open_latency

    return open_latency(
        network,
        layers,
        selection=options.selection,
        benchmark=options.benchmark,
        precision=options.planned_precision,
        folder=work.scratch,
        progress=work.progress,
    )


def _pair_costs(network: Network, options: Options, work: Workspace) -> tuple[PairCosts | None, tuple[str, ...]]:
    """What tells slow pairs, and a note where they can only be estimated though they should be timed."""
    if options.benchmark.keep_slow_pairs or options.effective_rule.needs_latency:
        return None, ()
    from trp_export.latency.pair_costs import EstimatedCosts, open_pair_costs

    try:
        return open_pair_costs(network, options.benchmark, options.planned_precision, work.scratch), ()
    except (DeviceError, UnsupportedError) as error:
        if options.benchmark.require:
            raise
        return EstimatedCosts(), (f"the cost of pairs is estimated, since they cannot be timed: {error}",)


def _same_images(options: Options) -> tuple[str, ...]:
    images, calibration = options.images, options.calibration
    if images is None or calibration is None:
        return ()
    if not isinstance(calibration.path, Path) or not is_same_file(images.path, calibration.path):
        return ()
    return ("--eval and --calib are the same images: on others expect somewhat more to be lost",)


def _kept_if_left_out(choice: Choice, options: Options) -> Choice:
    if left_out(choice.name, options.selection) is None:
        return choice
    return replace(choice, branches=(), reason="left out by --only or --skip")
