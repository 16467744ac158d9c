"""Trained networks in memory and on disk. `trp_export.load` has the file format and the checks on reading it.

A checkpoint is a dict of plain values: `format`, `version`, `arch` (a name for models_zoo), `kind` ("dense", or
"factors" where the plan's layers are stored as pairs), `input_shape`, `mean`, `std`, `classes`, `licence` of the
weights, `state_dict`, `plan`, `history`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models_zoo import Architecture
from models_zoo.pairs import with_pairs
from training.layers import unwrapped
from trp_export.errors import LoadError, OptionError, OutputError
from trp_export.load.checkpoint import FORMAT, VERSION, parse_checkpoint
from trp_export.load.state_dict import build_module, fit_module, get_architecture, outline
from trp_export.load.torch_file import read_torch_file
from trp_export.planning.saved_plan import parse_plan
from trp_export.system.files import atomic_write

DENSE, FACTORS = "dense", "factors"

# Most published CIFAR and ImageNet weights are trained with these.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A module and what is known about it. `plan` is in its JSON form; `kind` says whether its layers are pairs."""

    module: nn.Module
    arch: str
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    classes: tuple[str, ...] = ()
    licence: str | None = None
    plan: Mapping[str, Any] | None = None
    kind: str = DENSE


def new_network(arch: str, classes: tuple[str, ...], input_shape: tuple[int, ...] | None = None) -> TrainedNetwork:
    """An untrained network. Raises OptionError for an unknown architecture, or one of unknown input shape."""
    architecture = get_architecture(arch)
    shape = input_shape or architecture.input_shape
    if shape is None:
        raise OptionError(f"the input shape of {arch} is unknown; give it, for example --shape 1,3,224,224.")
    return TrainedNetwork(build_module(architecture, len(classes) or None), arch, shape, classes=classes)


def save_network(network: TrainedNetwork, path: Path, history: list[dict[str, Any]]) -> None:
    """Write a checkpoint atomically. Raises OutputError."""
    state = {key: value.detach().cpu().contiguous() for key, value in unwrapped(network.module).state_dict().items()}
    write(
        {
            "format": FORMAT,
            "version": VERSION,
            "arch": network.arch,
            "kind": network.kind,
            "input_shape": list(network.input_shape),
            "mean": list(network.mean),
            "std": list(network.std),
            "classes": list(network.classes),
            "licence": network.licence,
            "state_dict": state,
            "plan": None if network.plan is None else dict(network.plan),
            "history": history,
        },
        path,
    )


def load_network(
    path: Path, arch: str | None, input_shape: tuple[int, ...] | None = None, default_arch: str | None = None
) -> TrainedNetwork:
    """The network of a checkpoint, or of a state dict of `arch`, whose classes have no names then.

    `input_shape` takes the place of the file's; `default_arch` is the architecture where neither `arch` nor the file
    names one.

    Raises LoadError for a file that is missing, damaged or would run code, OptionError where options contradict it.
    """
    content = _read(path)
    if arch is None and (content.get("format") != FORMAT or content.get("arch") == default_arch):
        arch = default_arch
    if content.get("format") != FORMAT:
        if arch is None:
            raise OptionError(f"{path} holds weights only: name their architecture with --arch.")
        shape = input_shape or get_architecture(arch).input_shape
        if shape is None:
            raise OptionError(f"the input shape of {arch} is unknown; give it, for example --shape 1,3,224,224.")
        module, _ = fit_module(get_architecture(arch), content, path)
        return TrainedNetwork(_finite(module, path), arch, shape)
    checkpoint = parse_checkpoint(content, path, arch)
    architecture = get_architecture(checkpoint.arch)
    shape = input_shape or checkpoint.input_shape or architecture.input_shape
    if shape is None:
        raise LoadError(f"{path} does not hold the input shape of {checkpoint.arch}; give it with --shape.")
    if checkpoint.factored:
        architecture = _with_pairs(architecture, checkpoint.plan, str(path))
    module, _ = fit_module(architecture, checkpoint.tensors, path)
    return TrainedNetwork(
        _finite(module, path),
        checkpoint.arch,
        shape,
        checkpoint.mean or MEAN,
        checkpoint.std or STD,
        checkpoint.classes,
        checkpoint.licence,
        checkpoint.plan,
        FACTORS if checkpoint.factored else DENSE,
    )


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a dict atomically: a killed process leaves the old file or the new one. Raises OutputError."""
    try:
        with atomic_write(path) as part, part.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch's own, where a write failed, such as on a full disk.
        reason = error.__context__.strerror if isinstance(error.__context__, OSError) else None
        raise OutputError(f"{path} cannot be written: {reason or 'the disk may be full'}.") from error


def as_pairs(module: nn.Module, plan: object, where: str) -> nn.Module:
    """`module` with untrained pairs in place of the plan's layers. Raises LoadError where they do not fit."""
    choices = parse_plan(plan, where).layers
    try:
        return with_pairs(module, [(choice.name, choice.branches) for choice in choices if choice.branches])
    except (KeyError, TypeError) as error:
        raise LoadError(f"{where}: its plan does not fit the network: {error.args[0]}.") from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise LoadError(f"{path} is not a file.")
    if path.suffix.lower() == ".onnx":
        raise LoadError(
            f"{path} is an ONNX file, which cannot be trained. Give the PyTorch weights that it was made of; "
            "trp-train --plan trains the factors of a plan."
        )
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise LoadError(f"{path} holds a {type(content).__name__}, not a checkpoint.")
    return content


def _with_pairs(architecture: Architecture, plan: object, where: str) -> Architecture:
    """The architecture with pairs in place of the plan's layers. Raises LoadError where the plan does not fit it."""
    as_pairs(outline(architecture, None), plan, where)
    return replace(architecture, build=lambda classes: as_pairs(architecture.build(classes), plan, where))


def _finite(module: nn.Module, path: Path) -> nn.Module:
    for name, value in module.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise LoadError(f"{path}: {name} has NaN or infinite values.")
    return module
