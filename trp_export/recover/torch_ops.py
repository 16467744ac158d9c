"""What each ONNX operator computes, as a torch function of the node and its inputs.

Operators and forms of them that are missing here raise UnsupportedError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from trp_export.errors import UnsupportedError

Inputs = list[Any]


def channels_last(tensor: Tensor) -> Tensor:
    """Images in the layout in which convs of few channels take half the time; other tensors as they are."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _opset(node: ir.Node) -> int:
    """The opset that says what the node means."""
    imports = node.graph.opset_imports if node.graph is not None else {}
    return imports.get(node.domain, imports.get("", 1))


def _ints(value: Any) -> list[int]:
    return [int(number) for number in value.reshape(-1).tolist()]


def _axes(node: ir.Node, given: Inputs, index: int) -> list[int] | None:
    """The axes of a node: an attribute in older opsets, an input in newer ones."""
    if len(given) > index and given[index] is not None:
        return _ints(given[index])
    axes = node.attributes.get_ints("axes", [])
    return list(axes) or None


def _padded(node: ir.Node, x: Tensor, kernel: Sequence[int], fill: float = 0.0) -> Tensor:
    """The input of a conv or pooling with its padding made explicit."""
    axes = len(kernel)
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        return x
    pads = list(node.attributes.get_ints("pads", [])) or [0] * (2 * axes)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        strides, dilations = _strides(node, axes), _dilations(node, axes)
        for axis, size in enumerate(x.shape[2:]):
            wanted = (-(-size // strides[axis]) - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - size
            small, large = max(wanted, 0) // 2, max(wanted, 0) - max(wanted, 0) // 2
            pads[axis], pads[axes + axis] = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    if not any(pads):
        return x
    return functional.pad(
        x, [pad for axis in reversed(range(axes)) for pad in (pads[axis], pads[axes + axis])], value=fill
    )


def _strides(node: ir.Node, axes: int) -> list[int]:
    return list(node.attributes.get_ints("strides", [])) or [1] * axes


def _dilations(node: ir.Node, axes: int) -> list[int]:
    return list(node.attributes.get_ints("dilations", [])) or [1] * axes


def _conv(node: ir.Node, given: Inputs) -> Tensor:
    x, weight, bias = (*given, None)[:3]
    axes = weight.ndim - 2
    run: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
    group = node.attributes.get_int("group", 1)
    if group > 1 and weight.shape[1] == 1:
        # In bfloat16 the gradient of a depthwise kernel takes five times as long as in float32.
        run, x = torch.autocast("cpu", enabled=False)(run), x.float()
    strides, dilations = _strides(node, axes), _dilations(node, axes)
    pads = list(node.attributes.get_ints("pads", [])) or [0] * (2 * axes)
    plain = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "") and pads[:axes] == pads[axes:]
    if plain:
        return run(x, weight, bias, strides, pads[:axes], dilations, group)  # type: ignore[no-any-return]
    return run(_padded(node, x, weight.shape[2:]), weight, bias, strides, 0, dilations, group)  # type: ignore[no-any-return]


def _gemm(node: ir.Node, given: Inputs) -> Tensor:
    a, b, c = (*given, None)[:3]
    a = a.T if node.attributes.get_int("transA", 0) else a
    b = b.T if node.attributes.get_int("transB", 0) else b
    out = node.attributes.get_float("alpha", 1.0) * (a @ b)
    return out if c is None else out + node.attributes.get_float("beta", 1.0) * c  # type: ignore[no-any-return]


def _batch_norm(node: ir.Node, given: Inputs) -> Tensor:
    x, gamma, beta, mean, variance = given[:5]
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return functional.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


def _max_pool(node: ir.Node, given: Inputs) -> Tensor:
    kernel = list(node.attributes.get_ints("kernel_shape", []))
    run: Any = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    x = _padded(node, given[0], kernel, float("-inf"))
    strides, dilations = _strides(node, len(kernel)), _dilations(node, len(kernel))
    ceil = bool(node.attributes.get_int("ceil_mode", 0))
    pooled = run(x, kernel, strides, 0, dilations, ceil)
    return _begun_inside(node, pooled, given[0]) if ceil else pooled


def _begun_inside(node: ir.Node, pooled: Tensor, x: Tensor) -> Tensor:
    """Each window begins in the image or before it, never in what is added behind it."""
    axes = x.ndim - 2
    strides = _strides(node, axes)
    for axis, pad in enumerate(list(node.attributes.get_ints("pads", []))[:axes]):
        inside = -(-(x.shape[2 + axis] + pad) // strides[axis])
        pooled = pooled.narrow(2 + axis, 0, min(pooled.shape[2 + axis], inside))
    return pooled


def _average_pool(node: ir.Node, given: Inputs) -> Tensor:
    x, kernel = given[0], list(node.attributes.get_ints("kernel_shape", []))
    axes, strides = len(kernel), _strides(node, len(kernel))
    _require_averages(node, kernel, strides)
    run: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[axes - 1]
    ceil = bool(node.attributes.get_int("ceil_mode", 0))
    counted = bool(node.attributes.get_int("count_include_pad", 0))
    pads = list(node.attributes.get_ints("pads", [])) or [0] * (2 * axes)
    even = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "") and pads[:axes] == pads[axes:]
    if even and all(2 * pad <= size for pad, size in zip(pads[:axes], kernel, strict=True)):  # More torch does not pad.
        return run(x, kernel, strides, pads[:axes], ceil, counted)  # type: ignore[no-any-return]
    pooled = run(_padded(node, x, kernel), kernel, strides, 0, ceil)
    if not counted:
        pooled = pooled / run(_padded(node, torch.ones_like(x[:1, :1]), kernel), kernel, strides, 0, ceil)
    return _begun_inside(node, pooled, x) if ceil else pooled


def _require_averages(node: ir.Node, kernel: Sequence[int], strides: Sequence[int]) -> None:
    """Raises UnsupportedError for dilations, and where onnxruntime finds less than no padding: it crops or refuses."""
    if max(_dilations(node, len(kernel))) > 1:
        raise UnsupportedError(f"AveragePool with dilations ({node.name}) cannot be run in torch.")
    gaps = any(size + 1 < stride for size, stride in zip(kernel, strides, strict=True))
    if gaps and node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME"):
        raise UnsupportedError(f"AveragePool with gaps and automatic padding ({node.name}) cannot be run in torch.")


def _clip(node: ir.Node, given: Inputs) -> Tensor:
    low, high = (*given[1:3], None, None)[:2]
    low = float(low) if low is not None else node.attributes.get_float("min", -torch.inf)
    high = float(high) if high is not None else node.attributes.get_float("max", torch.inf)
    x: Tensor = given[0]
    # The backward pass of hardtanh is one operation, that of clamp five.
    return functional.hardtanh(x, low, high) if x.is_floating_point() and low < high else x.clamp(low, high)


def _reshape(node: ir.Node, given: Inputs) -> Tensor:
    x, shape = given[0], _ints(given[1])
    if not node.attributes.get_int("allowzero", 0):
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return x.reshape(shape)  # type: ignore[no-any-return]


def _shape(node: ir.Node, given: Inputs) -> Tensor:
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", given[0].ndim)
    return torch.tensor(given[0].shape[start:end])


def _slice(node: ir.Node, given: Inputs) -> Tensor:
    if len(given) > 1:
        starts, ends = _ints(given[1]), _ints(given[2])
    else:
        starts, ends = list(node.attributes.get_ints("starts", [])), list(node.attributes.get_ints("ends", []))
    axes = _axes(node, given, 3) or list(range(len(starts)))
    steps = _ints(given[4]) if len(given) > 4 and given[4] is not None else [1] * len(starts)
    x = given[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        own: slice | Tensor = slice(start, end, step)
        if step < 0:  # torch slices forward only.
            own = torch.tensor(range(*slice(start, end, step).indices(x.shape[axis])), dtype=torch.long)
        x = x[(slice(None),) * (axis % x.ndim) + (own,)]
    return x  # type: ignore[no-any-return]


def _pad(node: ir.Node, given: Inputs) -> Tensor:
    x = given[0]
    pads = _ints(given[1]) if len(given) > 1 else list(node.attributes.get_ints("pads", []))
    axes = _axes(node, given, 3) or list(range(x.ndim))
    full = {axis % x.ndim: (pads[i], pads[len(axes) + i]) for i, axis in enumerate(axes)}
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        node.attributes.get_string("mode", "constant")
    ]
    amounts = [pad for axis in reversed(range(x.ndim)) for pad in full.get(axis, (0, 0))]
    least = 0 if mode == "constant" else 2 * (x.ndim - 2)  # Of other modes torch wants all axes of the image.
    while len(amounts) > least and amounts[-2:] == [0, 0]:
        amounts = amounts[:-2]
    value = float(given[2]) if len(given) > 2 and given[2] is not None else node.attributes.get_float("value", 0.0)
    return functional.pad(x, amounts, mode, value if mode == "constant" else None) if amounts else x


def _squeeze(node: ir.Node, given: Inputs) -> Tensor:
    axes = _axes(node, given, 1)
    return given[0].squeeze() if axes is None else given[0].squeeze(tuple(axes))  # type: ignore[no-any-return]


def _unsqueeze(node: ir.Node, given: Inputs) -> Tensor:
    axes = _axes(node, given, 1) or []
    rank = given[0].ndim + len(axes)
    x = given[0]
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x  # type: ignore[no-any-return]


def _flatten(node: ir.Node, given: Inputs) -> Tensor:
    x, axis = given[0], node.attributes.get_int("axis", 1)
    return x.reshape(int(np.prod(x.shape[:axis])) if axis else 1, -1)  # type: ignore[no-any-return]


def _transpose(node: ir.Node, given: Inputs) -> Tensor:
    order = list(node.attributes.get_ints("perm", [])) or list(range(given[0].ndim))[::-1]
    return given[0].permute(order)  # type: ignore[no-any-return]


def _gather(node: ir.Node, given: Inputs) -> Tensor:
    x, index, axis = given[0], given[1].long(), node.attributes.get_int("axis", 0)
    taken = x.index_select(axis, index.reshape(-1) % x.shape[axis])
    return taken.reshape([*x.shape[:axis], *index.shape, *x.shape[axis:][1:]])  # type: ignore[no-any-return]


def _split(node: ir.Node, given: Inputs) -> Sequence[Tensor]:
    axis = node.attributes.get_int("axis", 0)
    told = len(given) > 1 and given[1] is not None
    sizes = _ints(given[1]) if told else list(node.attributes.get_ints("split", []))
    if not sizes:
        whole, size = given[0].shape[axis], -(-given[0].shape[axis] // len(node.outputs))
        sizes = [min(size, max(whole - start * size, 0)) for start in range(len(node.outputs))]
    return given[0].split(sizes, dim=axis)  # type: ignore[no-any-return]


def _cast(node: ir.Node, given: Inputs) -> Tensor:
    kind = ir.DataType(node.attributes.get_int("to", 1))
    if kind.is_floating_point():
        return given[0].float()  # type: ignore[no-any-return]
    return given[0].bool() if kind == ir.DataType.BOOL else given[0].long()  # type: ignore[no-any-return]


def _divide(_: ir.Node, given: Inputs) -> Tensor:
    """Whole numbers stay whole, as where a graph computes a size."""
    return torch.div(*given, rounding_mode=None if given[0].is_floating_point() else "trunc")


def _softmax(run: Callable[..., Tensor]) -> Callable[[ir.Node, Inputs], Tensor]:
    """Over one axis, by default the last; before opset 13 over all axes from one on, by default the second."""

    def softmax(node: ir.Node, given: Inputs) -> Tensor:
        x = given[0]
        if _opset(node) >= 13:
            return run(x, dim=node.attributes.get_int("axis", -1))
        return run(x.flatten(node.attributes.get_int("axis", 1)), dim=-1).reshape(x.shape)

    return softmax


def _elementwise(function: Callable[..., Tensor]) -> Callable[[ir.Node, Inputs], Tensor]:
    return lambda _, given: function(*given)


def _hard_sigmoid(node: ir.Node, given: Inputs) -> Tensor:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return (given[0] * alpha + beta).clamp(0, 1)  # type: ignore[no-any-return]


def _gelu(node: ir.Node, given: Inputs) -> Tensor:
    return functional.gelu(given[0], approximate=node.attributes.get_string("approximate", "none"))


def _layer_norm(node: ir.Node, given: Inputs) -> Tensor:
    x, scale, bias = (*given, None)[:3]
    shape = x.shape[node.attributes.get_int("axis", -1) % x.ndim :]
    scale, bias = (one if one is None else one.expand(shape) for one in (scale, bias))
    return functional.layer_norm(x, shape, scale, bias, node.attributes.get_float("epsilon", 1e-5))


def _conv_transpose(node: ir.Node, given: Inputs) -> Tensor:
    x, weight, bias = (*given, None)[:3]
    axes = weight.ndim - 2
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "") or "output_shape" in node.attributes:
        raise UnsupportedError(f"ConvTranspose with automatic padding ({node.name}) cannot be run in torch.")
    run: Any = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[axes - 1]
    pads = list(node.attributes.get_ints("pads", [])) or [0] * (2 * axes)
    extra = list(node.attributes.get_ints("output_padding", [])) or [0] * axes
    group = node.attributes.get_int("group", 1)
    # What torch crops is the same on both sides: the rest of an uneven padding is cut off afterwards.
    whole = run(x, weight, bias, _strides(node, axes), 0, extra, group, _dilations(node, axes))
    for axis in range(axes):
        size = whole.shape[2 + axis]
        whole = whole.narrow(2 + axis, pads[axis], size - pads[axis] - pads[axes + axis])
    return whole  # type: ignore[no-any-return]


def _resize(node: ir.Node, given: Inputs) -> Tensor:
    """Nearest and linear interpolation, axis by axis."""
    x, mode = given[0], node.attributes.get_string("mode", "nearest")
    if mode not in ("nearest", "linear") or node.attributes.get_int("antialias", 0) != 0:
        raise UnsupportedError(f"Resize of mode {mode} ({node.name}) cannot be run in torch.")
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedError(f"Resize that keeps the aspect ratio ({node.name}) cannot be run in torch.")
    sizes, scales = _resized(node, given)
    for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
        if size != x.shape[axis] or scale != 1:
            at = _coordinates(node, x.shape[axis], size, scale)
            x = _nearest(node, x, axis, at, scale) if mode == "nearest" else _linear(x, axis, at)
    return x  # type: ignore[no-any-return]


def _is_simple(node: ir.Node) -> bool:
    """True for Upsample and for Resize as it first was: scales follow the input, and there is one way to resize."""
    return _opset(node) < 11


def _resized(node: ir.Node, given: Inputs) -> tuple[list[int], list[float]]:
    """The size of each axis, and the scale that leads there."""
    x, axes = given[0], list(node.attributes.get_ints("axes", [])) or list(range(given[0].ndim))
    scales_at, sizes_at = (1, 2) if _is_simple(node) else (2, 3)
    asked, extents = (*given, None, None, None)[scales_at], (*given, None, None, None)[sizes_at]
    if "scales" in node.attributes:  # In opset 7.
        asked = torch.tensor(node.attributes.get_floats("scales", []))
    sizes, scales = list(x.shape), [1.0] * x.ndim
    if asked is not None and asked.numel():
        for axis, scale in zip(axes, asked, strict=True):
            sizes[axis], scales[axis] = int(x.shape[axis] * scale.float()), float(scale)  # In float32, as everywhere.
    else:
        for axis, size in zip(axes, _ints(extents), strict=True):
            sizes[axis], scales[axis] = size, size / x.shape[axis]
    return sizes, scales


def _coordinates(node: ir.Node, before: int, after: int, scale: float) -> Tensor:
    """Where each place of the result lies in the input."""
    at = torch.arange(after, dtype=torch.float64)
    mode = node.attributes.get_string(
        "coordinate_transformation_mode", "asymmetric" if _is_simple(node) else "half_pixel"
    )
    if mode == "asymmetric":
        return at / scale
    if mode == "align_corners":
        return at * ((before - 1) / max(after - 1, 1))
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and after > 1):
        return (at + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return at * 0
    raise UnsupportedError(f"Resize of {mode} coordinates ({node.name}) cannot be run in torch.")


def _nearest(node: ir.Node, x: Tensor, axis: int, at: Tensor, scale: float) -> Tensor:
    usual = ("floor" if scale >= 1 else "ceil") if _is_simple(node) else "round_prefer_floor"
    rounded = {
        "floor": at.floor(),
        "ceil": at.ceil(),
        "round_prefer_floor": (at - 0.5).ceil(),
        "round_prefer_ceil": (at + 0.5).floor(),
    }[node.attributes.get_string("nearest_mode", usual)]
    return x.index_select(axis, rounded.clamp(0, x.shape[axis] - 1).long())


def _linear(x: Tensor, axis: int, at: Tensor) -> Tensor:
    at = at.clamp(0, x.shape[axis] - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    share = (at - low).to(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share


def _depth_to_space(node: ir.Node, given: Inputs) -> Tensor:
    x, size = given[0], node.attributes.get_int("blocksize", 1)
    n, c, h, w = x.shape
    if node.attributes.get_string("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, size)
    x = x.reshape(n, size, size, c // size**2, h, w)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(n, c // size**2, h * size, w * size)  # type: ignore[no-any-return]


def _space_to_depth(node: ir.Node, given: Inputs) -> Tensor:
    x, size = given[0], node.attributes.get_int("blocksize", 1)
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // size, size, w // size, size)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(n, c * size**2, h // size, w // size)  # type: ignore[no-any-return]


def _reduce(run: Callable[..., Tensor]) -> Callable[[ir.Node, Inputs], Tensor]:
    def reduce(node: ir.Node, given: Inputs) -> Tensor:
        axes = _axes(node, given, 1)
        if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
            return given[0]  # type: ignore[no-any-return]
        axes = axes or list(range(given[0].ndim))
        return run(given[0], dim=axes, keepdim=bool(node.attributes.get_int("keepdims", 1)))

    return reduce


def _variadic(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[ir.Node, Inputs], Tensor]:
    def folded(_: ir.Node, given: Inputs) -> Tensor:
        result = given[0]
        for value in given[1:]:
            result = run(result, value)
        return result  # type: ignore[no-any-return]

    return folded


def _instance_norm(node: ir.Node, given: Inputs) -> Tensor:
    x, scale, bias = given
    return functional.instance_norm(x, weight=scale, bias=bias, eps=node.attributes.get_float("epsilon", 1e-5))


def _constant_of_shape(node: ir.Node, given: Inputs) -> Tensor:
    value = node.attributes.get_tensor("value", None)
    fill = torch.zeros(1) if value is None else torch.from_numpy(np.array(value.numpy()))
    return fill.reshape(()).expand(_ints(given[0])).clone()


def _lstm(node: ir.Node, given: Inputs) -> Sequence[Tensor]:
    """Y (steps, directions, n, hidden), and the last hidden and cell states. Gates are input, output, forget, cell."""
    x, weights, recurrent, bias, lengths, hidden, cell, peepholes = (*given, *[None] * 8)[:8]
    plain = {"direction", "hidden_size"} >= {name for name in node.attributes if node.attributes[name].value}
    if not plain or lengths is not None or peepholes is not None:
        raise UnsupportedError(f"this form of LSTM ({node.name}) cannot be run in torch.")
    directions, size = recurrent.shape[0], recurrent.shape[2]
    if node.attributes.get_string("direction", "forward") == "reverse":
        raise UnsupportedError(f"a backward LSTM ({node.name}) cannot be run in torch.")
    order = torch.cat([torch.arange(gate * size, (gate + 1) * size) for gate in (0, 2, 3, 1)])
    biases = torch.zeros(directions, 8 * size) if bias is None else bias
    parameters = []
    for way in range(directions):
        matrices = [weights[way][order], recurrent[way][order]]
        parameters += [*matrices, *(part[order] for part in biases[way].split(4 * size))]
    start = [torch.zeros(directions, x.shape[1], size) if state is None else state for state in (hidden, cell)]
    y, *last = torch.lstm(x, start, parameters, True, 1, 0.0, False, directions == 2, False)
    return [y.reshape(*y.shape[:2], directions, size).transpose(1, 2), *last]


RULES: dict[str, Callable[[ir.Node, Inputs], Any]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _elementwise(torch.matmul),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "Relu": _elementwise(functional.relu),
    "LeakyRelu": lambda node, given: functional.leaky_relu(given[0], node.attributes.get_float("alpha", 0.01)),
    "PRelu": lambda _, given: torch.where(given[0] > 0, given[0], given[0] * given[1]),
    "Elu": lambda node, given: functional.elu(given[0], node.attributes.get_float("alpha", 1.0)),
    "Clip": _clip,
    "Sigmoid": _elementwise(torch.sigmoid),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _elementwise(functional.hardswish),
    "Tanh": _elementwise(torch.tanh),
    "Erf": _elementwise(torch.erf),
    "Gelu": _gelu,
    "LogSoftmax": _softmax(torch.log_softmax),
    "Softmax": _softmax(torch.softmax),
    "Add": _elementwise(torch.add),
    "Sub": _elementwise(torch.sub),
    "Mul": _elementwise(torch.mul),
    "Div": _divide,
    "Sum": _variadic(torch.add),
    "Equal": _elementwise(torch.eq),
    "Greater": _elementwise(torch.gt),
    "Less": _elementwise(torch.lt),
    "Not": _elementwise(torch.logical_not),
    "Where": _elementwise(torch.where),
    "Floor": _elementwise(torch.floor),
    "Ceil": _elementwise(torch.ceil),
    "Reciprocal": _elementwise(torch.reciprocal),
    "Mish": _elementwise(functional.mish),
    "Sin": _elementwise(torch.sin),
    "Cos": _elementwise(torch.cos),
    "Pow": _elementwise(torch.pow),
    "Sqrt": _elementwise(torch.sqrt),
    "Exp": _elementwise(torch.exp),
    "Log": _elementwise(torch.log),
    "Neg": _elementwise(torch.neg),
    "Abs": _elementwise(torch.abs),
    "Softplus": _elementwise(functional.softplus),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda _, given: given[0].mean(dim=list(range(2, given[0].ndim)), keepdim=True),
    "GlobalMaxPool": lambda _, given: given[0].amax(dim=list(range(2, given[0].ndim)), keepdim=True),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceL2": _reduce(torch.linalg.vector_norm),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": lambda node, given: torch.cat(given, dim=node.attributes.get_int("axis", 0)),
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "Shape": _shape,
    "ConstantOfShape": _constant_of_shape,
    "Range": lambda _, given: torch.arange(*(value.item() for value in given), dtype=given[0].dtype),
    "Tile": lambda _, given: given[0].repeat(_ints(given[1])),
    "LSTM": _lstm,
    "Cast": _cast,
    "Expand": lambda _, given: given[0] * torch.ones(_ints(given[1]), dtype=given[0].dtype),
    "Identity": lambda _, given: given[0],
    "Dropout": lambda _, given: given[0],
}
