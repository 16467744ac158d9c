"""Our own checkpoint: its architecture, how its images are normalised, and where it has them a plan and a licence.

Its weights are dense, or the factors themselves (`kind`). Factors are multiplied out: the plan then cuts the
products at their own rank, which gives the same pairs back, and the export can compare with the dense network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trp_export.errors import LoadError, OptionError
from trp_export.graph.metadata import LICENCE_KEYS
from trp_export.load.source import Source
from trp_export.load.state_dict import build_module, get_architecture, load_state
from trp_export.lowrank.factor import Factors, product
from trp_export.options import LoadOptions
from trp_export.planning.plan import Choice, parse_plan

FORMAT = "trp-checkpoint"
VERSION = 1
# A checkpoint may come from anybody: what it asks to be run takes no more memory than a large photo.
_MOST_ELEMENTS = 3 * 2048 * 2048


def load_checkpoint(path: Path, content: Mapping[str, Any], options: LoadOptions) -> Source:
    """Raises LoadError for a damaged one, OptionError where options contradict it."""
    if content.get("version") != VERSION:
        raise LoadError(f"{path}: checkpoint version {content.get('version')!r}; this program reads {VERSION}.")
    arch, state = content.get("arch"), content.get("state_dict")
    if not isinstance(arch, str) or not isinstance(state, Mapping):
        raise LoadError(f"{path} lacks its architecture or its weights; it is damaged.")
    if options.arch is not None and options.arch != arch:
        raise OptionError(f"{path} is a checkpoint of {arch}, not of {options.arch}; leave --arch out.")
    if ":" in arch and not arch.startswith("torchvision:") and options.arch is None:
        raise OptionError(f"{path} asks to import {arch}; if you trust it, say so with --arch {arch}.")
    plan = content.get("plan")
    tensors: Mapping[str, Any] = state
    if content.get("kind") == "factors":
        tensors = _multiply_out(tensors, arch, parse_plan(plan, f"the plan inside {path}"), path)
    try:
        mean, std = (tuple(map(float, content.get(key) or ())) or None for key in ("mean", "std"))
        classes = tuple(str(name).encode().decode() for name in content.get("classes") or ())
        shape = tuple(map(int, content.get("input_shape") or ())) or None
    except (TypeError, ValueError, OverflowError) as error:
        raise LoadError(f"{path} is damaged: mean, std, classes or input_shape is not a list ({error}).") from error
    if shape is not None and not (min(shape) > 0 and prod(shape) <= _MOST_ELEMENTS):
        raise LoadError(f"{path}: input_shape {list(shape)} is not the size of an image; give it with --shape.")
    source = load_state(path, arch, tensors, replace(options, input_shape=options.input_shape or shape))
    if isinstance(content.get("licence"), str):
        source.model.metadata_props[LICENCE_KEYS[0]] = content["licence"]
    return replace(source, mean=mean, std=std, classes=classes, plan=plan if isinstance(plan, Mapping) else None)


def _multiply_out(
    tensors: Mapping[str, Tensor], arch: str, choices: tuple[Choice, ...], path: Path
) -> dict[str, Tensor]:
    """The state dict of the dense network that the pairs amount to."""
    if any(len(choice.branches) > 1 for choice in choices):
        raise LoadError(
            f"{path} holds layers that are sums of pairs, which cannot be told apart again once multiplied out. "
            "Keep the dense weights and the plan instead."
        )
    module = build_module(get_architecture(arch), None)
    dense = dict(tensors)
    for choice in choices:
        if not choice.branches or f"{choice.name}.reduce.weight" not in dense:
            continue
        layer = _layer(module, choice.name, path)
        try:
            pair = [dense.pop(f"{choice.name}.{part}.weight").double().numpy() for part in ("reduce", "expand")]
            shape = (pair[1].shape[0], *layer.weight.shape[1:])
            kernel = product(Factors(*pair), choice.branches[0].scheme, shape, getattr(layer, "groups", 1))
        except (ValueError, LookupError, AttributeError, ZeroDivisionError) as error:
            raise LoadError(f"{path}: the factors of {choice.name} do not fit its plan.") from error
        dense[f"{choice.name}.weight"] = torch.from_numpy(kernel).to(layer.weight.dtype)
        if f"{choice.name}.expand.bias" in dense:
            dense[f"{choice.name}.bias"] = dense.pop(f"{choice.name}.expand.bias")
    return dense


def _layer(module: nn.Module, name: str, path: Path) -> Any:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise LoadError(f"{path}: its plan names {name}, which its architecture lacks.") from None
