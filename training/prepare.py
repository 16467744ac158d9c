"""Everything that a run needs, made from its options: device, network, teacher, optimizer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from training.checkpoint import DENSE, FACTORS, TrainedNetwork, load_network, new_network
from training.cut import as_trained, decompose, plan_from_file
from training.data.classes import are_named
from training.layers import find_layers, output_on_zeros, total_macs
from training.loss import scores_of
from training.optimisation import Optimisation, Speed
from training.options import TrainOptions
from training.replicas import world
from trp_export.errors import OptionError, first_line, is_out_of_memory
from trp_export.load.state_dict import build_module, get_architecture
from trp_export.rules import SavedPlan


def find_device(speed: Speed) -> torch.device:
    """The device of this process: `auto` takes a GPU where there is one, and each process of a run takes another.

    Raises OptionError where it cannot be used.
    """
    name = speed.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{world()[0] % max(1, torch.cuda.device_count())}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    if speed.sync_batch_norm and device.type != "cuda":
        raise OptionError(f"--sync-bn needs GPUs, and this run is on {device}. Leave it out.")
    return device


def start_network(options: TrainOptions, classes: tuple[str, ...]) -> TrainedNetwork:
    """Fresh weights or those of --init, cut into the factors of --plan if given. Raises LoadError, OptionError."""
    start = options.start
    if start.init is not None:
        network = load_network(start.init, start.arch, start.input_shape)
    else:
        network = new_network(start.arch or "", classes, start.input_shape)
    _leave_out_auxiliary_heads(network.module)
    names = network.classes or classes
    network = replace(network, classes=names if len(names) == class_count(network) else ())
    if isinstance(options.rule, SavedPlan):
        network = _cut_by_plan(network, options.rule)
    elif options.rule is None and network.kind == DENSE and not options.optimisation.dense_epochs:
        raise OptionError("--factors all needs a rule (--energy, --threshold or --macs) or a --plan.")
    elif options.has_method and network.kind == FACTORS:
        raise OptionError(
            f"a rule such as --macs needs dense weights, and {start.init} holds factors. Leave it out to train these."
        )
    return network


def load_teacher(options: TrainOptions, network: TrainedNetwork, classes: int) -> nn.Module | None:
    """The teacher of a network of so many classes, in evaluation mode.

    Raises LoadError, and OptionError where its inputs or its classes are others.
    """
    distillation = options.distillation
    if distillation is None:
        return None
    shape = network.input_shape
    teacher = load_network(distillation.teacher, distillation.arch, shape, default_arch=network.arch)
    if (its := class_count(teacher)) != classes:
        raise OptionError(f"the --teacher has {its} classes, and the network {classes}.")
    guessed = options.guesses_classes and options.start.init is None
    if are_named(teacher.classes) and are_named(network.classes) and not guessed:
        for theirs, ours in zip(teacher.classes, network.classes, strict=False):
            if theirs != ours:
                raise OptionError(f"the --teacher has other classes than the network: {theirs} in the place of {ours}.")
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
    """The number of classes that the network tells apart.

    Raises OptionError where it cannot take inputs of its shape, or answers with anything but a score for each class.
    """
    try:
        output = output_on_zeros(network.module, network.input_shape)
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        shape = ",".join(map(str, network.input_shape))
        raise OptionError(f"{network.arch} cannot take an input of {shape}: {first_line(error)}.") from error
    return scores_of(output, network.arch).shape[1]


def dense_macs(network: TrainedNetwork, classes: int) -> int:
    """The multiply-adds for one input of the network of so many classes before any layer became factors."""
    module = network.module
    if network.kind == FACTORS:
        module = build_module(get_architecture(network.arch), classes)
    return total_macs(find_layers(module, network.input_shape))


def _leave_out_auxiliary_heads(module: nn.Module) -> None:
    """Let torchvision's GoogLeNet and Inception v3 answer with the scores of their last head alone, also in training.

    Files without these heads fit as well.
    """
    if getattr(module, "aux_logits", False) is True:
        module.aux_logits = False  # type: ignore[assignment]
        for name in ("aux1", "aux2", "AuxLogits"):
            if hasattr(module, name):
                setattr(module, name, None)


def _cut_by_plan(network: TrainedNetwork, rule: SavedPlan) -> TrainedNetwork:
    if network.kind == FACTORS:
        raise OptionError("--init holds factors already: leave --plan out to train them, or start from dense weights.")
    plan = plan_from_file(rule.path, network.module, network.input_shape)
    return replace(network, module=decompose(network.module, plan), kind=FACTORS, plan=as_trained(plan).to_json())
