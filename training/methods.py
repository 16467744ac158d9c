"""The methods of trp-train behind one set of functions: make one for a run, cut its network now, finish it."""

from __future__ import annotations

from dataclasses import replace

import torch

from training.batch_norm import reestimate_batch_norm
from training.channels.csgd import CSGD
from training.channels.dagger import Dagger
from training.channels.magnitude import Magnitude
from training.channels.settings import MagnitudeSettings, Widths
from training.checkpoint import DENSE, TrainedNetwork
from training.cut import as_trained, low_rank_copy
from training.data.batches import TrainingBatches
from training.layers import find_layers, total_macs
from training.options import TrainOptions
from training.settings import ByName, RankRule, TRPSettings
from training.trp import TRP
from trp_export.errors import OptionError
from trp_export.rules import Macs

Method = TRP | CSGD | Dagger | Magnitude

STATISTICS_BATCHES = 16


def make_method(
    options: TrainOptions, network: TrainedNetwork, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> Method | None:
    """The method that trains dense weights by the rule of the run; None where nothing is to shrink."""
    if network.kind != DENSE:
        return None
    if options.channel_rule is not None:
        return _channel_method(options, options.channel_rule, network, optimizer, steps_per_epoch)
    if options.rank_rule is not None:
        settings = _trp_settings(options, options.rank_rule, steps_per_epoch)
        return TRP(network.module, optimizer, settings, network.input_shape)
    return None


def cut_now(method: Method | None, network: TrainedNetwork, batches: TrainingBatches) -> tuple[TrainedNetwork, int]:
    """The network as a cut at this moment would leave it, and its multiply-adds. It changes no weights."""
    if method is None:
        return network, total_macs(find_layers(network.module, network.input_shape))
    inputs = batches.inputs(STATISTICS_BATCHES)
    if not isinstance(method, TRP):
        return replace(network, module=method.as_cut(inputs)), method.measure().macs
    plan = method.measure()
    module = low_rank_copy(network.module, plan)
    reestimate_batch_norm(module, inputs)
    cut = replace(network, module=module, plan=as_trained(plan).to_json())
    return cut, sum(decision.macs for decision in plan.decisions)


def finish(method: Method, network: TrainedNetwork, batches: TrainingBatches) -> TrainedNetwork:
    """The network whose weights the method leaves ready for a cut, with the plan of factors if there is one."""
    inputs = batches.inputs(STATISTICS_BATCHES)
    if not isinstance(method, TRP):
        method.finish(inputs)
        return network
    return replace(network, plan=method.finish(inputs).to_json())


def steps_at_rest(method: Method | None) -> int:
    """For how many steps from the start of the run the method leaves all weights as they are."""
    return method.settings.gate_steps if isinstance(method, Dagger) else 0


def _channel_method(
    options: TrainOptions,
    rule: Macs | Widths,
    network: TrainedNetwork,
    optimizer: torch.optim.Optimizer,
    steps_per_epoch: int,
) -> CSGD | Dagger | Magnitude:
    module, shape = network.module, network.input_shape
    may_lose_filters = ByName(options.layers.only, options.layers.skip).matches
    if options.method == "magnitude":
        return Magnitude(module, optimizer, MagnitudeSettings(rule, may_lose_filters), shape)
    if options.method == "csgd":
        csgd = replace(options.csgd, rule=rule, seed=options.seed, layers=may_lose_filters)
        return CSGD(module, optimizer, csgd, shape)
    dagger = replace(options.dagger, rule=rule, seed=options.seed, layers=may_lose_filters)
    steps = steps_per_epoch * options.optimisation.epochs
    if dagger.gate_steps >= steps:
        raise OptionError(
            f"--gate-steps {dagger.gate_steps} leaves none of the {steps} steps of this run to train the weights. "
            "Lower it, or raise --epochs."
        )
    return Dagger(module, optimizer, dagger, shape)


def _trp_settings(options: TrainOptions, rule: RankRule, steps_per_epoch: int) -> TRPSettings:
    """The settings of TRP for a run. The ramp takes three quarters of the dense epochs."""
    return replace(
        options.trp,
        rule=rule,
        schemes={"*": options.layers.scheme},
        layers=options.layers.filter,
        ramp_steps=int(0.75 * options.optimisation.dense_epochs * steps_per_epoch),
    )
