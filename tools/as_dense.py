"""Train networks of one architecture as the same dense network, so that one compiled program serves them all.

A pair of factors is multiplied out in each step, which gives the same outputs. A GPU computes one dense conv of 16 to
64 channels faster than two narrower ones, and the layers of all ranks have the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Program = Callable[[Mapping[str, Tensor], Tensor], Tensor]


def program_of(dense: nn.Module, device: torch.device) -> Program:
    """The forward pass in training with given tensors in place of those of `dense`, compiled on a GPU."""
    module: nn.Module = dense.to(device).train()
    names = tuple(_tensors(module))

    def run(tensors: dict[str, Tensor], pixels: Tensor) -> Tensor:
        output: Tensor = functional_call(module, tensors, (pixels,))
        return output

    compiled: Any = torch.compile(run, dynamic=False) if device.type == "cuda" else run
    # In one order, since a dictionary of another order would be compiled anew.
    return lambda tensors, pixels: compiled({name: tensors[name] for name in names}, pixels)


class AsDense(nn.Module):
    """A network, some of whose convs may be spatial-wise pairs, that runs as a dense one.

    The factors of layers of one shape are stacked, and filled up with zeros to the largest of their ranks: `expand`
    (layers, n kw, rank) and `reduce` (layers, rank, c kh). While it trains, these hold the weights of the pairs, and
    `finish` returns the network with them.
    """

    def __init__(self, network: nn.Module, program: Program) -> None:
        super().__init__()
        self.network = network
        self._program = program
        pairs = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, nn.Sequential) and hasattr(module, "reduce")
        }
        self._shapes: dict[tuple[int, ...], list[str]] = {}
        for name, pair in pairs.items():
            expand, reduce = _weights(pair)
            shape = (expand.shape[0], reduce.shape[1], reduce.shape[2], expand.shape[3])
            self._shapes.setdefault(shape, []).append(name)
        stacks = [_stacked([_weights(pairs[name]) for name in names]) for names in self._shapes.values()]
        self.expand = nn.ParameterList(expand for expand, _ in stacks)
        self.reduce = nn.ParameterList(reduce for _, reduce in stacks)
        for pair in pairs.values():
            pair.requires_grad_(False)
        parts = tuple(f"{name}." for name in pairs)
        self._others = [name for name in _tensors(network) if not name.startswith(parts)]

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits, by the products of the factors."""
        own = _tensors(self.network)
        tensors = {name: own[name] for name in self._others} | self._products()
        return self._program(tensors, pixels)

    @torch.no_grad()
    def finish(self) -> nn.Module:
        """The network with the weights of now, which trains as it is."""
        for names, expands, reduces in zip(self._shapes.values(), self.expand, self.reduce, strict=True):
            for name, left, right in zip(names, expands, reduces, strict=True):
                expand, reduce = _weights(self.network.get_submodule(name))
                n, rank, _, width = expand.shape
                expand.copy_(left[:, :rank].reshape(n, width, rank, 1).permute(0, 2, 3, 1))
                reduce.copy_(right[:rank].reshape(reduce.shape))
        return self.network.requires_grad_(True)

    def _products(self) -> dict[str, Tensor]:
        """The dense kernel (n, c, kh, kw) of each pair, in channels-last memory."""
        found: dict[str, Tensor] = {}
        for (shape, names), expand, reduce in zip(self._shapes.items(), self.expand, self.reduce, strict=True):
            n, c, height, width = shape
            with torch.autocast(expand.device.type, enabled=False):
                product = (expand @ reduce).reshape(-1, n, width, c, height)
            kernels = product.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 4, 2, 3)
            found |= {f"{name}.weight": kernel for name, kernel in zip(names, kernels, strict=True)}
        return found


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _weights(pair: nn.Module) -> tuple[Tensor, Tensor]:
    """The kernels (n, rank, 1, kw) and (rank, c, kh, 1). Raises ValueError for a pair that is not spatial-wise."""
    expand, reduce = (pair.get_submodule(name).get_parameter("weight") for name in ("expand", "reduce"))
    if expand.ndim != 4 or expand.shape[2] != 1 or reduce.shape[3] != 1 or expand.shape[1] != reduce.shape[0]:
        raise ValueError(f"kernels {tuple(reduce.shape)} and {tuple(expand.shape)} are not a spatial-wise pair")
    return expand, reduce


def _stacked(pairs: list[tuple[Tensor, Tensor]]) -> tuple[nn.Parameter, nn.Parameter]:
    """The factors as matrices of one rank: (layers, n kw, rank) and (layers, rank, c kh)."""
    most = max(len(reduce) for _, reduce in pairs)
    lefts, rights = [], []
    for expand, reduce in pairs:
        rank = len(reduce)
        left = expand.detach().permute(0, 3, 1, 2).reshape(-1, rank)
        lefts.append(nn.functional.pad(left, (0, most - rank)))
        rights.append(nn.functional.pad(reduce.detach().reshape(rank, -1), (0, 0, 0, most - rank)))
    return nn.Parameter(torch.stack(lefts)), nn.Parameter(torch.stack(rights))
