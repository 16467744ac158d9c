"""The methods of trp-train behind one set of functions: make one for a run, cut its network now, finish it."""

from __future__ import annotations

from dataclasses import replace

import torch

from training.batch_norm import reestimate_batch_norm
from training.channels.csgd import CSGD
from training.channels.dagger import Dagger
from training.channels.magnitude import Magnitude
from training.channels.settings import Widths
from training.checkpoint import DENSE, TrainedNetwork
from training.cut import as_trained, low_rank_copy
from training.data.batches import TrainingBatches
from training.layers import find_layers, total_macs
from training.options import TrainOptions
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
        ranks = options.trp_settings(options.rank_rule, steps_per_epoch)
        return TRP(network.module, optimizer, ranks, network.input_shape)
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
    if options.method == "csgd":
        return CSGD(module, optimizer, options.csgd_settings(rule), shape)
    if options.method == "magnitude":
        return Magnitude(module, optimizer, options.magnitude_settings(rule), shape)
    settings, steps = options.dagger_settings(rule), steps_per_epoch * options.optimisation.epochs
    if settings.gate_steps >= steps:
        raise OptionError(
            f"--gate-steps {settings.gate_steps} leaves none of the {steps} steps of this run to train the weights. "
            "Lower it, or raise --epochs."
        )
    return Dagger(module, optimizer, settings, shape)
