"""Our checkpoint: weights with all that is needed to use them. Read with weights_only: a file is untrusted.

A dict of plain values: `format`, `version`, `arch` (a name for models_zoo), `kind` ("dense", or "factors" where the
plan's layers are stored as pairs), `input_shape`, `mean`, `std`, `classes`, `licence` of the weights, `state_dict`,
`plan`, `history`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models_zoo import find_architecture
from models_zoo.pairs import with_pairs
from training.layers import unwrapped
from trp_export.errors import LoadError, OptionError, OutputError
from trp_export.planning.plan import parse_plan
from trp_export.system.files import atomic_write

FORMAT = "trp-checkpoint"
VERSION = 1
DENSE, FACTORS = "dense", "factors"

# What most published CIFAR and ImageNet weights are trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_STATE_KEYS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A module and what is known about it. `plan` is the JSON form; `kind` says whether its layers are pairs yet."""

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
    """An untrained network. Raises OptionError where the architecture is unknown or has no input shape."""
    try:
        architecture = find_architecture(arch)
        module = architecture.build(len(classes))
    except (LookupError, ImportError) as error:
        raise OptionError(f"--arch: {error.args[0] if error.args else error}") from error
    shape = input_shape or architecture.input_shape
    if shape is None:
        raise OptionError(f"--arch {arch}: its input shape is unknown; give --input-shape, e.g. 1,3,224,224.")
    return TrainedNetwork(module, arch, shape, classes=classes)


def save_network(network: TrainedNetwork, path: Path, history: list[dict[str, Any]]) -> None:
    """Write a checkpoint in one stroke. Raises OutputError."""
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
    path: Path, arch: str | None, classes: tuple[str, ...], input_shape: tuple[int, ...] | None = None
) -> TrainedNetwork:
    """Weights from a checkpoint of ours, or a state dict of `arch`. Raises LoadError or OptionError."""
    content = read(path)
    if content.get("format") == FORMAT:
        return _from_checkpoint(content, path, arch)
    if arch is None:
        raise OptionError(f"{path} holds weights only: name their architecture with --arch.")
    network = new_network(arch, classes, input_shape)
    _fill(network.module, _state(content, path), path, arch)
    return network


def read(path: Path) -> dict[str, Any]:
    """The dict in a file. Raises LoadError where the file is missing, foreign, damaged or would run code."""
    if not path.is_file():
        raise LoadError(f"{path} is not a file.")
    if path.suffix == ".onnx":
        raise LoadError(
            f"{path} is an ONNX file: give the PyTorch weights it was made of, and to train its factors its plan, "
            "with trp-train --plan."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the pickle machinery does.
        if "Unsupported global" in str(error):
            raise LoadError(
                f"{path} holds a pickled Python object, which can run code when it is opened. "
                "Save its state dict instead."
            ) from error
        raise LoadError(f"{path} is not a PyTorch file, or a damaged one.") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path} holds a {type(content).__name__}, not a checkpoint.")
    return content


def write(content: Mapping[str, Any], path: Path) -> None:
    """All or nothing: a killed process leaves the old file or the new one. Raises OutputError."""
    try:
        with atomic_write(path) as part, part.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch's word for a disk that ran full in the middle.
        raise OutputError(f"{path} cannot be written: {error}.") from error


def as_pairs(module: nn.Module, plan: object, where: str) -> nn.Module:
    """`module` with untrained pairs in place of the plan's layers. Raises LoadError where they do not fit."""
    choices = parse_plan(plan, where)
    try:
        return with_pairs(module, [(c.name, c.branches) for c in choices if c.branches])
    except (KeyError, TypeError) as error:
        raise LoadError(f"{where}: its plan does not fit the network: {error.args[0]}.") from error


def _from_checkpoint(content: Mapping[str, Any], path: Path, arch: str | None) -> TrainedNetwork:
    if content.get("version") != VERSION:
        raise LoadError(f"{path}: checkpoint version {content.get('version')!r}; this program reads {VERSION}.")
    own = content.get("arch")
    if not isinstance(own, str) or not isinstance(content.get("state_dict"), Mapping):
        raise LoadError(f"{path} lacks its architecture or its weights; it is damaged.")
    if arch is not None and arch != own:
        raise OptionError(f"{path} is a checkpoint of {own}, not of {arch}.")
    if ":" in own and not own.startswith("torchvision:") and arch is None:
        raise OptionError(f"{path} asks to import {own}; if you trust it, say so with --arch {own}.")
    classes = tuple(str(name) for name in content.get("classes") or ())
    stored = content.get("input_shape")
    network = new_network(own, classes, tuple(map(int, stored)) if stored else None)
    plan, kind, licence = content.get("plan"), content.get("kind", DENSE), content.get("licence")
    if kind == FACTORS:
        as_pairs(network.module, plan, str(path))
    _fill(network.module, content["state_dict"], path, own)
    return replace(
        network,
        mean=tuple(map(float, content.get("mean") or MEAN)),
        std=tuple(map(float, content.get("std") or STD)),
        licence=licence if isinstance(licence, str) else None,
        plan=plan if isinstance(plan, Mapping) else None,
        kind=str(kind),
    )


def _state(content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    for candidate in (*(content.get(key) for key in _STATE_KEYS), content):
        if isinstance(candidate, Mapping) and any(isinstance(value, Tensor) for value in candidate.values()):
            return candidate
    raise LoadError(f"{path} holds no state dict.")


def _fill(module: nn.Module, state: Mapping[str, Any], path: Path, arch: str) -> None:
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    own = module.state_dict()
    wrong = [key for key in own if key not in tensors and not key.endswith("num_batches_tracked")]
    wrong += [key for key in tensors if key not in own or tensors[key].shape != own[key].shape]
    if wrong:
        raise LoadError(f"{path} does not fit {arch}: {', '.join(wrong[:3])} differ{'s' if len(wrong) == 1 else ''}.")
    broken = next((key for key, value in tensors.items() if not bool(torch.isfinite(value.float()).all())), None)
    if broken:
        raise LoadError(f"{path}: {broken} has NaN or infinite values.")
    module.load_state_dict(tensors, strict=False)
