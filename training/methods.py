"""The methods of trp-train behind one set of functions: make one for a run, cut its network now, finish it."""

from __future__ import annotations

from dataclasses import replace

import torch

from training.channels.csgd import CSGD
from training.checkpoint import DENSE, TrainedNetwork
from training.cut import as_trained, low_rank_copy, reestimate_batch_norm
from training.data.batches import TrainingBatches
from training.layers import find_layers, total_macs
from training.options import TrainOptions
from training.trp import TRP

Method = TRP | CSGD

STATISTICS_BATCHES = 16


def make_method(
    options: TrainOptions, network: TrainedNetwork, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> Method | None:
    """The method that trains dense weights by the rule of the run; None where nothing is to shrink."""
    if network.kind != DENSE:
        return None
    if options.channel_rule is not None:
        channels = options.csgd_settings(options.channel_rule)
        return CSGD(network.module, optimizer, channels, network.input_shape)
    if options.rank_rule is not None:
        ranks = options.trp_settings(options.rank_rule, steps_per_epoch)
        return TRP(network.module, optimizer, ranks, network.input_shape)
    return None


def cut_now(method: Method | None, network: TrainedNetwork, batches: TrainingBatches) -> tuple[TrainedNetwork, int]:
    """The network as a cut at this moment would leave it, and its multiply-adds. It changes no weights."""
    if method is None:
        return network, total_macs(find_layers(network.module, network.input_shape))
    inputs = batches.inputs(STATISTICS_BATCHES)
    if isinstance(method, CSGD):
        return replace(network, module=method.merged(inputs)), method.plan.macs
    plan = method.measure()
    module = low_rank_copy(network.module, plan)
    reestimate_batch_norm(module, inputs)
    cut = replace(network, module=module, plan=as_trained(plan).to_json())
    return cut, sum(decision.macs for decision in plan.decisions)


def finish(method: Method, network: TrainedNetwork, batches: TrainingBatches) -> TrainedNetwork:
    """The network whose weights the method leaves ready for a cut, with the plan of factors if there is one."""
    inputs = batches.inputs(STATISTICS_BATCHES)
    if isinstance(method, CSGD):
        method.finish(inputs)
        return network
    return replace(network, plan=method.finish(inputs).to_json())
