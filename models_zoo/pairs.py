"""Factor pairs as modules: the two convs, or Linear layers, that replace a layer at a scheme and a rank.

A pair stands where the layer stood, as a Sequential of `reduce` and `expand`: `layer1.0.conv1.weight` becomes
`layer1.0.conv1.reduce.weight` and `layer1.0.conv1.expand.weight`, and a bias moves to `expand`. Where a layer becomes
several pairs they are numbered: `layer1.0.conv1.0.reduce.weight`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from trp_export.lowrank.schemes import Branches, PairShape, Scheme, pair_shape

_CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_Conv = nn.modules.conv._ConvNd


def pair_for(layer: nn.Module, scheme: Scheme, rank: int) -> nn.Sequential:
    """An untrained pair to replace a Conv or Linear; `rank` is that of each matrix.

    Raises TypeError for any other module, and for a Linear layer under a scheme of slices.
    """
    if isinstance(layer, nn.Linear):
        if scheme.input_slices != 1 or scheme.output_slices != 1:
            raise TypeError(f"a Linear layer has no {scheme.name} pair")
        reduce: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
        expand: nn.Module = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    elif isinstance(layer, _Conv) and not layer.transposed:
        kernel_shape = tuple(layer.weight.shape)
        if not scheme.divides(kernel_shape, layer.groups):
            raise TypeError(f"the channels of {kernel_shape} do not divide for {scheme.name}")
        shape = pair_shape(scheme, kernel_shape, layer.groups, rank)
        reduce, expand = _reduce_conv(layer, scheme, shape), _expand_conv(layer, scheme, shape)
    else:
        raise TypeError(f"a {type(layer).__name__} cannot become a factor pair")
    pair = nn.Sequential(OrderedDict(reduce=reduce, expand=expand))
    return pair.to(layer.weight.device, layer.weight.dtype).train(layer.training)


class Sum(nn.ModuleList):
    """Pairs whose outputs are added."""

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self[0](x)
        for pair in self[1:]:
            total = total + pair(x)
        return total


def branches_for(layer: nn.Module, branches: Branches) -> nn.Sequential | Sum:
    """Untrained pairs to replace a Conv or Linear: one, or a sum in which the first has the bias.

    Raises TypeError where the layer cannot be replaced.
    """
    first, *rest = (pair_for(layer, branch.scheme, branch.rank) for branch in branches)
    for pair in rest:
        pair.get_submodule("expand").register_parameter("bias", None)
    return Sum([first, *rest]) if rest else first


def with_pairs(model: nn.Module, choices: Iterable[tuple[str, Branches]]) -> nn.Module:
    """`model` with untrained pairs in place of the named layers, ready for the weights of a cut network.

    Raises KeyError where there is no such layer, TypeError where it cannot be replaced.
    """
    for name, branches in choices:
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            raise KeyError(name) from None
        replace_layer(model, name, branches_for(layer, branches))
    return model


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the module called `name` by `layer`, under all its names. Raises KeyError where there is none."""
    try:
        old = model.get_submodule(name)
    except AttributeError:
        raise KeyError(name) from None
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is old:
                setattr(parent, key, layer)


def _reduce_conv(layer: _Conv, scheme: Scheme, shape: PairShape) -> nn.Module:
    """The conv c -> r, with strides, pads and dilations on the axes of its kernel."""
    covered = [axis in scheme.reduce_axes for axis in range(len(layer.kernel_size))]
    return _conv(layer, shape.reduce[1] * shape.reduce_group, shape.reduce, shape.reduce_group, covered, bias=False)


def _expand_conv(layer: _Conv, scheme: Scheme, shape: PairShape) -> nn.Module:
    """The conv r -> n, with those of the other axes, and the bias."""
    covered = [axis not in scheme.reduce_axes for axis in range(len(layer.kernel_size))]
    in_channels = shape.expand[1] * shape.expand_group
    return _conv(layer, in_channels, shape.expand, shape.expand_group, covered, bias=layer.bias is not None)


def _conv(
    layer: _Conv,
    in_channels: int,
    kernel_shape: tuple[int, ...],
    group: int,
    covered: list[bool],
    *,
    bias: bool,
) -> nn.Module:
    def pick(values: tuple[int, ...], rest: int) -> tuple[int, ...]:
        return tuple(value if mine else rest for value, mine in zip(values, covered, strict=True))

    padding = layer.padding if isinstance(layer.padding, str) else pick(tuple(layer.padding), 0)
    conv: nn.Module = _CONVS[len(covered)](
        in_channels,
        kernel_shape[0],
        kernel_shape[2:],
        pick(layer.stride, 1),
        padding,
        pick(layer.dilation, 1),
        group,
        bias,
        layer.padding_mode,
    )
    return conv
