"""Which channels of a torch network belong together, found by following the channels of every value through it.

Each filter starts a channel. What works on channels one by one (activations, pooling, batch norm, depthwise convs)
hands its channel on. What combines two values channel by channel (sums, products) ties their channels together.
Padding, slices and concatenation move channels. Anything else fixes the channels that it reads, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from training.channels.nodes import (
    OF_ZERO_IS_ZERO,
    ONE_BY_ONE,
    PAIRWISE,
    PARTS,
    REDUCTIONS,
    RESHAPES,
    SHAPES,
    dim_of,
    has_tensor_keywords,
    is_plain_slice,
    name_of,
    reduces_extents_only,
    shape_of,
    tensors_of,
    works_in_place,
)
from training.layers import evaluating
from trp_export.errors import OptionError, first_line

# The channel of a value that is zero whatever the input, as padded channels are.
ZERO = -1

Channels = tuple[int, ...]
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, slots=True)
class Rows:
    """The channel of each row of a module's parameters: the filters of a layer, or the entries of a batch norm."""

    name: str
    module: nn.Module
    channels: Channels


@dataclass(frozen=True, slots=True)
class Ties:
    """The channels of a network.

    `rows` are in the order of execution. `reads` holds the input channels of each conv and Linear layer where they are
    known, `positions` the place in the order of execution of the value that it reads. `places` counts, for each
    channel, in which values it occurs. `fixed` says why a channel must stay as it is.
    """

    rows: tuple[Rows, ...]
    reads: Mapping[str, Channels]
    positions: Mapping[str, int]
    places: Mapping[int, Mapping[int, int]]
    fixed: Mapping[int, str]


def find_ties(model: nn.Module, input_shape: Sequence[int]) -> Ties:
    """The channels of `model`, which runs once on zeros of (2, c, *extents); its state does not change.

    Raises OptionError where torch.fx cannot trace the model.
    """
    first = next(model.parameters())
    zeros = torch.zeros((2, *input_shape[1:]), device=first.device, dtype=first.dtype)
    try:
        with evaluating(model), torch.no_grad():
            graph = fx.Tracer().trace(model)
            ShapeProp(fx.GraphModule(model, graph)).propagate(zeros)
    except Exception as error:  # Tracing runs the user's own code.
        raise OptionError(
            f"torch.fx cannot trace this network, so its channels are unknown: {first_line(error)}"
        ) from error
    return _Walk(model, graph).ties()


class _Walk:
    """Follows channels through the nodes of a graph, in order. A channel is a number; `_parent` ties it to another."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self._modules = dict(model.named_modules())
        self._parent: list[int] = []
        self._reasons: dict[int, str] = {}
        self._values: dict[fx.Node, Any] = {}
        self._rows: dict[str, Channels] = {}
        self._reads: dict[str, Channels] = {}
        self._positions: dict[str, int] = {}
        self._blind: set[str] = set()
        self._order = {node: index for index, node in enumerate(graph.nodes)}
        owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
        self._shared = {key for key, count in owners.items() if count > 1}
        for node in graph.nodes:
            self._values[node] = self._value(node)

    def ties(self) -> Ties:
        places: dict[int, Counter[int]] = {}
        for node, value in self._values.items():
            for part in value if isinstance(value, list) else [value]:
                for channel in filter(lambda channel: channel != ZERO, self._roots(part or ())):
                    places.setdefault(channel, Counter())[self._order[node]] += 1
        fixed: dict[int, str] = {}
        for channel, reason in self._reasons.items():
            fixed.setdefault(self._root(channel), reason)
        rows = (Rows(name, self._modules[name], self._roots(channels)) for name, channels in self._rows.items())
        reads = {name: self._roots(channels) for name, channels in self._reads.items()}
        return Ties(tuple(rows), reads, self._positions, places, fixed)

    # Nodes

    def _value(self, node: fx.Node) -> Any:
        """The channels of a node's value: a tuple, a list of tuples for several tensors, None where unknown."""
        if node.op == "placeholder":
            shape = shape_of(node)
            return self._new(shape[1], "it is an input of the network") if len(shape) > 1 else None
        if node.op == "output":
            self._fix(node, "it is tied to an output of the network")
            return None
        if node.op == "get_attr":
            return None
        if node.op == "call_module":
            return self._module(node, str(node.target))
        value = self._function(node, name_of(node))
        if works_in_place(node):
            self._values[node.args[0]] = value  # type: ignore[index]
        return value

    def _module(self, node: fx.Node, name: str) -> Any:
        module = self._modules[name]
        kind, x = type(module), self._input(node)
        is_hooked = bool(module._forward_hooks or module._forward_pre_hooks)
        is_plain = all(isinstance(p, nn.Parameter) for p in (getattr(module, "weight", None),) if p is not None)
        if is_hooked or not is_plain or any(id(p) in self._shared for p in module.parameters(recurse=False)):
            return self._unknown(node, f"{name} has hooks, or shares its weight")
        if kind in _CONVS or (kind is nn.Linear and len(shape_of(node)) == 2):
            return self._layer(node, name, module, x)
        if kind in _NORMS or (kind is nn.PReLU and module.weight.numel() > 1):
            return self._scaled(name, x)
        if kind is nn.PReLU or (kind.__name__ in ONE_BY_ONE and kind.__module__.startswith("torch.nn")):
            return self._one_by_one(node, kind.__name__, x)
        if kind is nn.Flatten:
            return self._reshape(node, x)
        return self._unknown(node, f"{name} ({kind.__name__}) reads it")

    def _layer(self, node: fx.Node, name: str, module: Any, x: Channels | None) -> Channels | None:
        """A conv or Linear layer: its filters make new channels; depthwise ones hand on those that they read."""
        groups, rows = getattr(module, "groups", 1), module.weight.shape[0]
        self._positions.setdefault(name, self._order[node.args[0]])
        if groups > 1 and not groups == rows == module.in_channels:
            return self._unknown(node, f"{name} is a grouped conv")
        if groups > 1:
            return self._scaled(name, x)
        if self._knows_all_inputs(name, x, self._reads) and x is not None:
            self._reads[name] = self._tied(self._reads.get(name, x), x)
        self._rows[name] = self._rows.get(name) or self._new(rows)
        return self._rows[name]

    def _scaled(self, name: str, x: Channels | None) -> Channels | None:
        """The channels after a module with one row of parameters for each."""
        if not self._knows_all_inputs(name, x, self._rows) or x is None:
            return x
        x = self._without_zeros(x)
        self._rows[name] = self._tied(self._rows.get(name, x), x)
        return x

    def _function(self, node: fx.Node, name: str | None) -> Any:
        if name in SHAPES:
            return None
        if has_tensor_keywords(node):
            return self._unknown(node, f"{name or node.target} takes it by keyword")
        x = self._input(node)
        if name in PAIRWISE:
            return self._pairwise(node, name)
        if name in ONE_BY_ONE and len(tensors_of(node)) == 1:
            return self._one_by_one(node, name, x)
        if name in RESHAPES:
            return self._reshape(node, x)
        if name in REDUCTIONS and reduces_extents_only(node):
            return x
        if name == "getitem":
            return self._getitem(node)
        special = {"cat": self._cat, "concat": self._cat, "pad": self._pad} | dict.fromkeys(PARTS, self._split)
        return special[name](node) if name in special else self._unknown(node, f"{name or node.target} reads it")

    def _one_by_one(self, node: fx.Node, name: str, x: Channels | None) -> Channels | None:
        if x is None:
            return None
        if shape_of(node)[1:2] != (len(x),):
            return self._unknown(node, f"{name} changes the number of channels")
        return x if name in OF_ZERO_IS_ZERO else self._without_zeros(x)

    def _pairwise(self, node: fx.Node, name: str) -> Channels | None:
        """A sum or product of two values, or of one and a number or a value with one channel."""
        shape, known = shape_of(node), []
        for source in tensors_of(node):
            there, value = shape_of(source), self._values[source]
            if isinstance(value, tuple) and len(there) == len(shape) and len(value) == shape[1]:
                known.append(value)
            elif prod(there) > 1 and not (len(there) == len(shape) and there[1] == 1):
                return self._unknown(node, f"{name} combines it with a value whose channels are unknown")
        if not known:
            return self._unknown(node, f"{name} reads it")
        if len(known) == 1:
            return known[0] if "mul" in name else self._without_zeros(known[0])
        return self._tied(*known)

    def _reshape(self, node: fx.Node, x: Channels | None) -> Channels | None:
        before, after = shape_of(tensors_of(node)[0]), shape_of(node)
        if x is not None and before[0] == after[0]:
            if len(after) == 2 and after[1] == prod(before[1:]):
                return tuple(channel for channel in x for _ in range(prod(before[2:])))
            if before[1] == after[1] and prod(before[2:]) == prod(after[2:]):
                return x
        return self._unknown(node, f"{name_of(node) or 'Flatten'} takes its channels apart")

    def _getitem(self, node: fx.Node) -> Any:
        source, index = node.args
        value = self._values.get(source) if isinstance(source, fx.Node) else None
        if isinstance(value, list) and isinstance(index, int):
            return value[index]
        if value is None:
            return None
        is_sliced = isinstance(index, tuple) and len(index) > 1 and all(is_plain_slice(part) for part in index)
        if is_sliced and index[0] == slice(None):  # type: ignore[index]
            return value[index[1]]  # type: ignore[index]
        return self._unknown(node, "an index takes it apart")

    def _cat(self, node: fx.Node) -> Channels | None:
        sources = tensors_of(node)
        if dim_of(node, 1, 0) % len(shape_of(node)) != 1 or list(node.args[0]) != sources:  # type: ignore[arg-type]
            return self._unknown(node, "it is joined to other values along another axis, or twice")
        parts = [self._values[source] or self._new(shape_of(source)[1], "unknown") for source in sources]
        return tuple(channel for part in parts for channel in part)

    def _split(self, node: fx.Node) -> Any:
        x = self._input(node)
        metas = node.meta["tensor_meta"]
        if x is None or dim_of(node, 2, 0) % len(metas[0].shape) != 1:
            return self._unknown(node, "it is split along another axis")
        ends, parts = 0, []
        for meta in metas:
            parts.append(x[ends : ends + meta.shape[1]])
            ends += meta.shape[1]
        return parts

    def _pad(self, node: fx.Node) -> Channels | None:
        x, shape = self._input(node), shape_of(tensors_of(node)[0])
        names = ("input", "pad", "mode", "value")
        options: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        pads, value = options["pad"], options.get("value")
        if x is None or not all(isinstance(pad, int) for pad in pads):
            return self._unknown(node, "padding changes it")
        at = 2 * (len(shape) - 2)
        before, after = (pads[at], pads[at + 1]) if len(pads) > at else (0, 0)
        is_plain = not any(pads[at + 2 :]) and min(before, after) >= 0
        if not is_plain or ((before or after) and value not in (None, 0)):
            return self._unknown(node, "padding changes it")
        inner: Channels = x if not value else self._without_zeros(x)
        return (ZERO,) * before + inner + (ZERO,) * after

    # Channels

    def _new(self, count: int, reason: str | None = None) -> Channels:
        channels = tuple(range(len(self._parent), len(self._parent) + count))
        self._parent.extend(channels)
        if reason is not None:
            self._fix_channels(channels, reason)
        return channels

    def _knows_all_inputs(self, name: str, x: Channels | None, known: dict[str, Channels]) -> bool:
        """Whether every value that a module reads has known channels; a module may run several times.

        What it reads beside a value of unknown channels is fixed, and leaves `known`.
        """
        if x is not None and name not in self._blind:
            return True
        self._blind.add(name)
        self._fix_channels((*known.pop(name, ()), *(x or ())), f"{name} also reads a value whose channels are unknown")
        return False

    def _tied(self, left: Channels, right: Channels) -> Channels:
        for a, b in zip(left, right, strict=True):
            if ZERO not in (a, b):
                self._parent[self._root(b)] = self._root(a)
        return tuple(b if a == ZERO else a for a, b in zip(left, right, strict=True))

    def _without_zeros(self, x: Channels) -> Channels:
        """The channels after a change that makes different constants of zeros."""
        return tuple(self._new(1, "it is constant")[0] if channel == ZERO else channel for channel in x)

    def _unknown(self, node: fx.Node, reason: str) -> Channels | None:
        """Fix all that the node reads. Its own channels are unknown."""
        self._fix(node, reason)
        return None

    def _fix(self, node: fx.Node, reason: str) -> None:
        for source in tensors_of(node):
            value = self._values[source]
            for part in value if isinstance(value, list) else [value]:
                self._fix_channels(part or (), reason)

    def _fix_channels(self, channels: Channels, reason: str) -> None:
        for channel in channels:
            if channel != ZERO:
                self._reasons.setdefault(channel, reason)

    def _input(self, node: fx.Node) -> Channels | None:
        sources = tensors_of(node)
        value = self._values[sources[0]] if sources else None
        return value if isinstance(value, tuple) else None

    def _root(self, channel: int) -> int:
        while self._parent[channel] != channel:
            self._parent[channel] = self._parent[self._parent[channel]]
            channel = self._parent[channel]
        return channel

    def _roots(self, channels: Channels) -> Channels:
        return tuple(channel if channel == ZERO else self._root(channel) for channel in channels)
