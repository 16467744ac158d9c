"""Everything that a run needs, made from its options: device, network, teacher, optimizer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from training.checkpoint import DENSE, FACTORS, TrainedNetwork, load_network, new_network
from training.cut import as_trained, decompose, plan_from_file
from training.optimisation import Optimisation
from training.options import TrainOptions
from training.replicas import world
from trp_export.errors import OptionError
from trp_export.rules import SavedPlan


def find_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes a GPU where there is one. Raises OptionError where it cannot be used."""
    if name == "auto":
        name = f"cuda:{world()[0] % max(1, torch.cuda.device_count())}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def start_network(options: TrainOptions, classes: tuple[str, ...]) -> TrainedNetwork:
    """Fresh weights or those of --init, cut into the factors of --plan if given. Raises LoadError, OptionError."""
    start = options.start
    if start.init is not None:
        network = load_network(start.init, start.arch, classes, start.input_shape)
    else:
        network = new_network(start.arch or "", classes, start.input_shape)
    if isinstance(options.rule, SavedPlan):
        network = _cut_by_plan(network, options.rule)
    elif options.rule is None and network.kind == DENSE and not options.optimisation.dense_epochs:
        raise OptionError("--factors all needs a rule (--energy, --threshold or --macs) or a --plan.")
    if options.channel_rule is not None and network.kind == FACTORS:
        raise OptionError(f"--method {options.method} needs dense weights, and {start.init} holds factors.")
    return replace(network, classes=network.classes or classes)


def load_teacher(options: TrainOptions, network: TrainedNetwork) -> nn.Module | None:
    """The teacher in evaluation mode. Raises LoadError, and OptionError where it needs other inputs."""
    distillation = options.distillation
    if distillation is None:
        return None
    shape = network.input_shape
    teacher = load_network(distillation.teacher, distillation.arch, network.classes, shape, default_arch=network.arch)
    # Values that went through float32 differ in the last place.
    if not np.allclose((teacher.mean, teacher.std), (network.mean, network.std), rtol=1e-5):
        raise OptionError("the --teacher is normalised by a different mean and std than the network.")
    return teacher.module.eval()


def make_optimizer(module: nn.Module, options: Optimisation) -> torch.optim.SGD:
    return torch.optim.SGD(
        module.parameters(),
        options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
    )


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on the device, with kernels in channels-last order."""
    return module.to(device).to(memory_format=torch.channels_last)


def wrapped(module: nn.Module, device: torch.device, *, compile: bool) -> nn.Module:
    """The module as it is run in training: in DistributedDataParallel and compiled, where these are used."""
    model: nn.Module = module
    if world()[1] > 1:
        model = nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    return torch.compile(model) if compile else model  # type: ignore[return-value]


def class_count(network: TrainedNetwork) -> int:
    """The number of outputs of the last Linear layer, or of classes where there is none."""
    linear = [module for module in network.module.modules() if isinstance(module, nn.Linear)]
    return linear[-1].out_features if linear else len(network.classes)


def _cut_by_plan(network: TrainedNetwork, rule: SavedPlan) -> TrainedNetwork:
    if network.kind == FACTORS:
        raise OptionError("--init holds factors already: leave --plan out to train them, or start from dense weights.")
    plan = plan_from_file(rule.path, network.module, network.input_shape)
    return replace(network, module=decompose(network.module, plan), kind=FACTORS, plan=as_trained(plan).to_json())
