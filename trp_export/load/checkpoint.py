"""The checkpoint of trp-train: weights, architecture, normalisation of images, and optionally a plan and a licence.

The weights are dense, or those of factor pairs (`kind`). For an export, pairs are multiplied out: the plan then cuts
the products at their own rank, which gives the same pairs again, and the export can compare with the dense network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models_zoo import require_repeated
from trp_export.errors import LoadError, OptionError
from trp_export.load.source import Source
from trp_export.load.state_dict import build_module, get_architecture, load_state, require_plain_tensors
from trp_export.lowrank.factor import Factors, product
from trp_export.options import LoadOptions
from trp_export.planning.saved_plan import Choice, parse_plan

FORMAT = "trp-checkpoint"
VERSION = 1
# A checkpoint may come from anybody: what it asks to be run takes no more memory than a large photo.
_MOST_ELEMENTS = 3 * 2048 * 2048


_LONGEST_TEXT = 200


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What a trp-checkpoint holds. With `factored` its `tensors` are those of the factor pairs that `plan` names."""

    arch: str
    tensors: Mapping[str, Tensor]
    factored: bool
    plan: Mapping[str, Any] | None
    input_shape: tuple[int, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    classes: tuple[str, ...]
    licence: str | None


def parse_checkpoint(content: Mapping[str, Any], path: Path, arch: str | None) -> Checkpoint:
    """Check every field. `arch` is what the user says the architecture is, if anything.

    Raises LoadError for a damaged checkpoint, OptionError where `arch` contradicts it, or where it asks to import code
    that the user has not named.
    """
    version = content.get("version")
    if not isinstance(version, int) or version != VERSION:
        raise LoadError(f"{path}: checkpoint version {str(version)[:80]}; this program reads {VERSION}.")
    stored, state = content.get("arch"), content.get("state_dict")
    if not isinstance(stored, str) or len(stored) > _LONGEST_TEXT or not isinstance(state, Mapping):
        raise LoadError(f"{path} lacks its architecture or its weights; it is damaged.")
    if arch is not None and arch != stored:
        raise OptionError(f"{path} is a checkpoint of {stored}, not of {arch}; leave --arch out.")
    require_repeated(stored, str(path), arch)
    kind, plan, licence = content.get("kind", "dense"), content.get("plan"), content.get("licence")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    require_plain_tensors(tensors, path)
    try:
        mean, std = (tuple(map(float, _listed(content, key))) or None for key in ("mean", "std"))
        classes = tuple(str(name).encode().decode() for name in _listed(content, "classes"))
        shape = tuple(map(int, _listed(content, "input_shape"))) or None
    except (TypeError, ValueError, OverflowError) as error:
        raise LoadError(f"{path} is damaged: mean, std, classes or input_shape is not a list ({error}).") from error
    if kind not in ("dense", "factors") or not isinstance(plan, Mapping | None):
        raise LoadError(f"{path} is damaged: its kind or its plan is not one that this program writes.")
    if not all(map(isfinite, (*(mean or ()), *(std or ())))) or not all(value > 0 for value in std or ()):
        raise LoadError(f"{path} is damaged: mean and std must be finite, std above 0.")
    if shape is not None and not (min(shape) > 0 and prod(shape) <= _MOST_ELEMENTS):
        raise LoadError(
            f"{path}: input_shape {str(list(shape))[:80]} is not the size of an image; give it with --shape."
        )
    return Checkpoint(
        stored,
        tensors,
        kind == "factors",
        plan,
        shape,
        mean,
        std,
        classes,
        licence if isinstance(licence, str) else None,
    )


def _listed(content: Mapping[str, Any], key: str) -> Sequence[Any]:
    """The list in a field, empty where there is none. Raises TypeError for anything else."""
    values = content.get(key)
    if not isinstance(values, list | tuple | None):
        raise TypeError(f"{key} is a {type(values).__name__}")
    return values or ()


def load_checkpoint(path: Path, content: Mapping[str, Any], options: LoadOptions) -> Source:
    """The network as ONNX. Raises LoadError for a damaged checkpoint, OptionError where options contradict it."""
    from trp_export.graph.metadata import LICENCE_KEYS  # It needs onnx_ir, which training does not.

    checkpoint = parse_checkpoint(content, path, options.arch)
    tensors = checkpoint.tensors
    if checkpoint.factored:
        choices = parse_plan(checkpoint.plan, f"the plan inside {path}").layers
        tensors = _multiply_out(tensors, checkpoint.arch, choices, path)
    inputs = options.inputs.or_shape(checkpoint.input_shape)
    source = load_state(path, checkpoint.arch, tensors, replace(options, inputs=inputs))
    if checkpoint.licence is not None:
        source.model.metadata_props[LICENCE_KEYS[0]] = checkpoint.licence
    plan = checkpoint.plan if options.iterations is None else _without_unused(checkpoint.plan, source)
    return replace(source, mean=checkpoint.mean, std=checkpoint.std, classes=checkpoint.classes, plan=plan)


def _without_unused(plan: Mapping[str, Any] | None, source: Source) -> Mapping[str, Any] | None:
    """A plan without the layers that are not in the graph: a single iteration has no gates."""
    layers = (plan or {}).get("layers")
    if plan is None or not isinstance(layers, list):
        return plan  # It is refused where it is read.
    weights = source.model.graph.initializers
    unused = [isinstance(layer, Mapping) and f"{layer.get('name')}.weight" not in weights for layer in layers]
    return {**plan, "layers": [layer for layer, left_out in zip(layers, unused, strict=True) if not left_out]}


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
