"""The layers of a torch network as planning needs them: a Site each, found by one forward pass on zeros."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trp_export.lowrank.site import Site, Use

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KINDS = (*_CONVS, nn.Linear)


@dataclass(frozen=True, slots=True)
class TorchLayer:
    """A conv or Linear with the site that describes it."""

    site: Site
    module: nn.Module

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def weight(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight


def kernel_of(model: nn.Module, name: str) -> nn.Parameter:
    """The weight of the layer called `name`."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def unwrapped(model: nn.Module) -> nn.Module:
    """The network without the wrappers of DistributedDataParallel and torch.compile."""
    while True:
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None
        inner = inner if inner is not None else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is in evaluation mode; afterwards each of its modules is as it was."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was_training.items():
            module.training = training


@torch.no_grad()
def output_on_zeros(model: nn.Module, input_shape: Sequence[int]) -> object:
    """What the model returns for zeros, in evaluation mode; its state does not change."""
    first = next(model.parameters())
    with evaluating(model):
        return model(torch.zeros(tuple(input_shape), device=first.device, dtype=first.dtype))


def find_layers(model: nn.Module, input_shape: Sequence[int]) -> tuple[TorchLayer, ...]:
    """Every Conv and Linear in the order in which it first runs; `input_shape` is (1, c, *extents).

    The model is run once on zeros in evaluation mode; its state does not change. Layers that share a weight, or do not
    apply a weight of their own as torch's layers do, are refused, with the reason in their site.
    """
    uses: dict[nn.Module, list[Use]] = {}
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules() if isinstance(module, _KINDS)}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        uses.setdefault(module, []).append(_use(module, inputs[0].shape, output.shape))

    hooks = [module.register_forward_hook(record) for module in names]
    try:
        output_on_zeros(model, input_shape)
    finally:
        for hook in hooks:
            hook.remove()
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    with evaluating(model), torch.no_grad():  # Under spectral norm, to read a weight in training changes its state.
        return tuple(
            TorchLayer(_site(names[module], module, tuple(calls), owners), module) for module, calls in uses.items()
        )


def total_macs(layers: Iterable[TorchLayer]) -> int:
    """Multiply-adds of all convs and Linear layers, dense, for one input."""
    return sum(layer.site.macs for layer in layers)


def _site(name: str, module: nn.Module, uses: tuple[Use, ...], owners: Mapping[int, int]) -> Site:
    op = "Conv" if isinstance(module, _CONVS) else "Gemm"
    weight = module.weight
    assert isinstance(weight, Tensor)
    return Site(name, op, tuple(weight.shape), getattr(module, "groups", 1), uses, _refusal(module, owners))


def _refusal(module: nn.Module, owners: Mapping[int, int]) -> str | None:
    """Why the weight of a layer may not be replaced; `owners` counts the modules that have each parameter, by its id.

    Under weight norm, spectral norm, pruning and the like `weight` is computed from other parameters in each pass.
    """
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed from other parameters"
    if owners[id(weight)] > 1:
        return "its weight is shared with another layer"
    (kind,) = (kind for kind in _KINDS if isinstance(module, kind))
    if any(getattr(type(module), name, None) is not getattr(kind, name, None) for name in ("forward", "_conv_forward")):
        return f"{type(module).__name__} computes its output in a way of its own"
    return None


def _use(module: nn.Module, in_shape: Sequence[int], out_shape: Sequence[int]) -> Use:
    if isinstance(module, nn.Linear):
        rows = 1
        for extent in out_shape[1:-1]:
            rows *= extent
        return Use(repeats=rows)
    assert isinstance(module, _CONVS)
    axes = len(module.kernel_size)
    extents_in, extents_out = tuple(in_shape[-axes:]), tuple(out_shape[-axes:])
    return Use(extents_in, extents_out, tuple(module.stride), _pads(module), tuple(module.dilation))


def _pads(module: nn.Module) -> tuple[int, ...]:
    """Begin pads, then end pads, as in ONNX. This attribute of torch also covers padding="same"."""
    twice: tuple[int, ...] = tuple(module._reversed_padding_repeated_twice)  # type: ignore[arg-type]
    return (*twice[-2::-2], *twice[-1::-2])
