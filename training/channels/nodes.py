"""Nodes of a torch.fx graph: which functions and modules do what to channels, and what their arguments say."""

from __future__ import annotations

import operator

from torch import fx

OF_ZERO_IS_ZERO = {
    *("ReLU", "ReLU6", "LeakyReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "Hardswish", "Hardtanh", "Tanh"),
    *("Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "Upsample", "ZeroPad1d", "ZeroPad2d", "ZeroPad3d"),
    *(f"{kind}Pool{axes}d" for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for axes in (1, 2, 3)),
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish", "hardtanh", "tanh", "clamp"),
    *(
        "dropout",
        "dropout2d",
        "stochastic_depth",
        "contiguous",
        "clone",
        "detach",
        "neg",
        "interpolate",
        "abs",
        "float",
    ),
    *(f"{kind}_pool{axes}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for axes in (1, 2, 3)),
}
ONE_BY_ONE = OF_ZERO_IS_ZERO | {"Sigmoid", "Hardsigmoid", "Softplus", "sigmoid", "hardsigmoid", "softplus", "exp"}
PAIRWISE = {"add", "add_", "iadd", "sub", "mul", "mul_", "imul", "truediv", "div"}
RESHAPES = {"flatten", "view", "reshape", "squeeze", "Flatten"}
REDUCTIONS = {"mean", "sum", "amax"}
SHAPES = {"getattr", "size", "dim"}
PARTS = {"chunk", "split"}
_HOMES = ("torch", "torchvision", "_operator", "builtins")


def name_of(node: fx.Node) -> str | None:
    """The name of a function of torch or a method of tensors; None for functions of other modules."""
    if isinstance(node.target, str):
        return node.target
    home = getattr(node.target, "__module__", None) or "torch"
    return getattr(node.target, "__name__", None) if home.split(".")[0] in _HOMES else None


def works_in_place(node: fx.Node) -> bool:
    name = name_of(node) or ""
    is_named_so = name.endswith("_") or node.target in (operator.iadd, operator.imul, operator.setitem)
    return (is_named_so or bool(node.kwargs.get("inplace"))) and isinstance(node.args[0], fx.Node)


def tensors_of(node: fx.Node) -> list[fx.Node]:
    """The nodes whose tensors a node reads; sizes and other numbers are left out."""
    return [source for source in node.all_input_nodes if "tensor_meta" in source.meta]


def has_tensor_keywords(node: fx.Node) -> bool:
    found: list[fx.Node] = []
    fx.map_arg(node.kwargs, found.append)
    return any("tensor_meta" in source.meta for source in found)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a tensor; () of anything else."""
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))


def dim_of(node: fx.Node, position: int, default: int) -> int:
    dim = node.kwargs.get("dim", node.args[position] if len(node.args) > position else default)
    return dim if isinstance(dim, int) else 0


def reduces_extents_only(node: fx.Node) -> bool:
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    axes = len(shape_of(node.all_input_nodes[0]))
    listed = [dims] if isinstance(dims, int) else list(dims or ())  # type: ignore[arg-type]
    return bool(listed) and all(isinstance(dim, int) and dim % axes > 1 for dim in listed)


def is_plain_slice(part: object) -> bool:
    return isinstance(part, slice) and all(isinstance(end, int | None) for end in (part.start, part.stop, part.step))
