"""Networks at random, of all kinds of layers, whose weights have rank 2: an export at rank 2 answers as they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from models import low_rank
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
_FLOAT = TensorProto.FLOAT
_OPSET = 17


@dataclass
class Graph:
    """A graph as it grows; `value` is the one that the next layer reads, and `shape` its shape."""

    rng: np.random.Generator
    value: str = "x"
    shape: Shape = ()
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    shapes: list[onnx.ValueInfoProto] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    count: int = 0

    def name(self, start: str = "v") -> str:
        self.count += 1
        return f"{start}{self.count}"

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=self.name(op), **attributes))
        return names[0]

    def put(self, array: np.ndarray, start: str = "w") -> str:
        name = self.name(start)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        return self.put(low_rank(shape, self.rng).astype(np.float32))

    def bias(self, size: int) -> list[str]:
        return [self.put(self.rng.standard_normal(size).astype(np.float32))] if self.rng.random() < 0.5 else []

    def whole(self, *numbers: int) -> str:
        return self.put(np.array(numbers, np.int64), "n")

    def keep_shape(self) -> None:
        """Declare that the value has the shape of the one before: inference does not see through bodies."""
        self.shapes.append(helper.make_tensor_value_info(self.value, _FLOAT, list(self.shape)))

    def pick(self, *choices: object) -> object:
        return choices[self.rng.integers(len(choices))]

    def odds(self, share: float) -> bool:
        return bool(self.rng.random() < share)


def conv(g: Graph) -> None:
    """With stride, padding, dilation and groups at random, sometimes twice with one weight, or with a constant
    expression in the place of its weight."""
    channels, *extents = g.shape[1:]
    group = 2 if channels % 2 == 0 and g.odds(0.25) else 1
    kernel = [int(g.rng.integers(1, min(5, extent) + 1)) for extent in extents]
    many = 2 * int(g.rng.integers(3, 9))
    attributes: dict[str, object] = {"group": group}
    if g.odds(0.2):
        attributes["auto_pad"] = g.pick("SAME_UPPER", "SAME_LOWER", "VALID")
    else:
        attributes["pads"] = [int(g.rng.integers(0, size)) for _ in "ab" for size in kernel]
        attributes["dilations"] = [int(g.pick(1, 1, 2)) if (size - 1) * 2 < extent else 1
                                   for size, extent in zip(kernel, extents, strict=True)]  # fmt: skip
    attributes["strides"] = [int(g.pick(1, 1, 2)) for _ in kernel]
    weight = written(g, (many, channels // group, *kernel))
    g.value = g.add("Conv", g.value, weight, *g.bias(many), **attributes)
    settle(g)


def written(g: Graph, shape: Shape) -> str:
    """A weight, plain or at the end of an expression of constants."""
    kind = g.pick("plain", "plain", "plain", "scaled", "turned", "half", "packed", "shaped", "constant")
    array = low_rank(shape, g.rng).astype(np.float32)
    g.kinds.append(f"weight {kind}")
    if kind == "scaled":
        return g.add("Mul", g.put(array), g.put(np.float32([0.5])))
    if kind == "turned":
        order = list(range(len(shape)))[::-1]
        return g.add("Transpose", g.put(np.ascontiguousarray(array.T)), perm=order)
    if kind == "half":
        return g.add("Cast", g.put(array.astype(np.float16)), to=_FLOAT)
    if kind == "packed":
        scale = np.float32(np.abs(array).max() / 127)
        return g.add("DequantizeLinear", g.put(np.rint(array / scale).astype(np.int8)), g.put(scale))
    if kind == "shaped":
        return g.add("Reshape", g.put(array.reshape(-1)), g.whole(*shape))
    if kind == "constant":
        name = g.name()
        g.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        return name
    return g.put(array)


def twice(g: Graph) -> None:
    """One weight in two convs."""
    weight = g.weight(g.shape[1], g.shape[1], *[min(3, extent) for extent in g.shape[2:]])
    for _ in range(2):
        g.value = g.add("Conv", g.value, weight, auto_pad="SAME_UPPER")
        g.value = g.add("Relu", g.value)
    settle(g)


def transposed(g: Graph) -> None:
    channels, *extents = g.shape[1:]
    group = 2 if channels % 2 == 0 and g.odds(0.3) else 1
    kernel = [int(g.rng.integers(1, 5)) for _ in extents]
    strides = [int(g.rng.integers(1, 3)) for _ in extents]
    pads = [int(g.rng.integers(0, size)) // 2 for _ in "ab" for size in kernel]
    added = [int(g.rng.integers(0, stride)) for stride in strides]
    many = group * int(g.rng.integers(3, 7))
    weight = written(g, (channels, many // group, *kernel))
    g.value = g.add("ConvTranspose", g.value, weight, *g.bias(many), group=group, strides=strides, pads=pads,
                    output_padding=added)  # fmt: skip
    settle(g)


def depthwise(g: Graph) -> None:
    channels = g.shape[1]
    weight = g.weight(channels, 1, *[min(3, extent) for extent in g.shape[2:]])
    g.value = g.add("Conv", g.value, weight, group=channels, auto_pad="SAME_UPPER")
    settle(g)


def norm(g: Graph) -> None:
    size = g.shape[1]
    numbers = [g.put(g.rng.uniform(0.5, 1.5, size).astype(np.float32)) for _ in range(4)]
    g.value = g.add("BatchNormalization", g.value, *numbers)


def active(g: Graph) -> None:
    g.value = g.add(str(g.pick("Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Softplus")), g.value)


def pooled(g: Graph) -> None:
    g.value = g.add("MaxPool", g.value, kernel_shape=[min(2, extent) for extent in g.shape[2:]])
    settle(g)


def added(g: Graph) -> None:
    """A conv beside a shortcut."""
    weight = g.weight(g.shape[1], g.shape[1], *[min(3, extent) for extent in g.shape[2:]])
    side = g.add("Conv", g.value, weight, *g.bias(g.shape[1]), auto_pad="SAME_UPPER")
    g.value = g.add("Add", *(sorted((g.value, side)) if g.odds(0.5) else (side, g.value)))


def joined(g: Graph) -> None:
    sides = [g.add("Conv", g.value, g.weight(6, g.shape[1], *[1] * len(g.shape[2:]))) for _ in range(2)]
    g.value = g.add("Concat", *sides, axis=1)
    settle(g)


def larger(g: Graph) -> None:
    scales = g.put(np.array([1, 1, *[2] * len(g.shape[2:])], np.float32))
    g.value = g.add("Resize", g.value, "", scales, mode="nearest")
    settle(g)


def branched(g: Graph) -> None:
    """An If with a conv in both branches; the sum of the values decides."""
    weights = [g.weight(g.shape[1], g.shape[1], *[1] * len(g.shape[2:])) for _ in range(2)]
    total = g.add("ReduceSum", g.value, keepdims=0)
    zero = g.put(np.float32(g.pick(-1e9, 0, 1e9)))
    bodies = []
    for weight in weights:
        made = g.name()
        node = helper.make_node("Conv", [g.value, weight], [made], name=g.name("Conv"))
        bodies.append(
            helper.make_graph([node], g.name("body"), [], [helper.make_tensor_value_info(made, _FLOAT, None)])
        )
    g.value = g.add("If", g.add("Greater", total, zero), then_branch=bodies[0], else_branch=bodies[1])
    g.keep_shape()


def looped(g: Graph) -> None:
    weight = g.weight(g.shape[1], g.shape[1], *[1] * len(g.shape[2:]))
    state, made, going, number = g.name(), g.name(), g.name(), g.name()
    nodes = [
        helper.make_node("Conv", [state, weight], [mid := g.name()], name=g.name("Conv")),
        helper.make_node("Tanh", [mid], [made]),
        helper.make_node("Identity", [going], [on := g.name()]),
    ]
    body = helper.make_graph(
        nodes, g.name("body"),
        [helper.make_tensor_value_info(number, TensorProto.INT64, []),
         helper.make_tensor_value_info(going, TensorProto.BOOL, []),
         helper.make_tensor_value_info(state, _FLOAT, list(g.shape))],
        [helper.make_tensor_value_info(on, TensorProto.BOOL, []), helper.make_tensor_value_info(made, _FLOAT, None)],
    )  # fmt: skip
    times = g.put(np.array(3, np.int64), "n")
    g.value = g.add("Loop", times, g.put(np.array(True), "c"), g.value, body=body)
    g.keep_shape()


def called(g: Graph) -> None:
    """A conv in a function of the model's own."""
    name = g.name("Block")
    nodes = [
        helper.make_node("Conv", ["a", "b"], ["c"], auto_pad="SAME_UPPER"),
        helper.make_node("Relu", ["c"], ["d"]),
    ]
    g.functions.append(
        helper.make_function("own", name, ["a", "b"], ["d"], nodes, [helper.make_opsetid("", _OPSET)])
    )  # fmt: skip
    weight, made = g.weight(g.shape[1], g.shape[1], *[min(3, extent) for extent in g.shape[2:]]), g.name()
    g.nodes.append(helper.make_node(name, [g.value, weight], [made], domain="own", name=g.name("call")))
    g.value = made
    g.keep_shape()


LAYERS: tuple[Callable[[Graph], None], ...] = (
    *(conv, conv, conv, twice, transposed, depthwise, norm, active, active, pooled, added, joined, larger, branched),
    *(looped, called),
)


def classes(g: Graph) -> None:
    pool = g.add("GlobalAveragePool", g.value)
    g.value, g.shape = g.add("Flatten", pool), (g.shape[0], g.shape[1])
    hidden = int(g.rng.integers(6, 20))
    matrix(g, hidden)
    active(g)
    matrix(g, 7)
    if g.odds(0.5):
        g.value = g.add("Softmax", g.value, axis=1)
    if g.odds(0.2):
        g.value = g.add("ArgMax", g.value, axis=1)
    elif g.odds(0.2):
        g.value = g.add("TopK", g.value, g.whole(3), outputs=2)


def matrix(g: Graph, many: int) -> None:
    width = g.shape[-1]
    kind = g.pick("Gemm", "turned Gemm", "MatMul", "Einsum")
    if kind == "Gemm":
        g.value = g.add("Gemm", g.value, g.weight(width, many), *g.bias(many), alpha=float(g.pick(1.0, 0.5)))
    elif kind == "turned Gemm":
        g.value = g.add("Gemm", g.value, g.weight(many, width), *g.bias(many), transB=1)
    elif kind == "MatMul":
        g.value = g.add("MatMul", g.value, g.weight(width, many))
    else:
        g.value = g.add("Einsum", g.value, g.weight(many, width), equation="bi,oi->bo")
    g.kinds.append(str(kind))
    g.shape = (*g.shape[:-1], many)


def tokens(g: Graph) -> None:
    """Positions in a row, through a MatMul of a weight with two or three axes, or an LSTM."""
    rows = g.add("Reshape", g.value, g.whole(0, g.shape[1], -1))
    g.value = g.add("Transpose", rows, perm=[0, 2, 1])
    if g.odds(0.5):
        weight = g.weight(*[1] * g.odds(0.5), g.shape[1], 9)
        g.value = g.add("MatMul", g.value, weight)
        return
    steps = g.add("Transpose", g.value, perm=[1, 0, 2])
    inner = 5
    g.value = g.add(
        "LSTM", steps, g.weight(1, 4 * inner, g.shape[1]), g.weight(1, 4 * inner, inner), hidden_size=inner, outputs=1
    )


def boxes(g: Graph) -> None:
    """Boxes and scores, and what NonMaxSuppression keeps of them."""
    ones = [1] * len(g.shape[2:])
    place = g.add("Reshape", g.add("Conv", g.value, g.weight(4, g.shape[1], *ones)), g.whole(0, 4, -1))
    score = g.add("Sigmoid", g.add("Conv", g.value, g.weight(3, g.shape[1], *ones)))
    score = g.add("Reshape", score, g.whole(0, 3, -1))
    place = g.add("Transpose", place, perm=[0, 2, 1])
    half = g.put(np.float32([0.5]))
    g.value = g.add("NonMaxSuppression", place, score, g.whole(20), half, half)
    g.outputs.append(g.value)
    g.value = place


def nothing(g: Graph) -> None:
    """The picture itself is the answer."""


ENDS: tuple[Callable[[Graph], None], ...] = (classes, classes, tokens, boxes, nothing)


def settle(g: Graph) -> None:
    """The shape of the value by what onnx infers."""
    g.shape = _shape_of(g, g.value)


def _shape_of(g: Graph, value: str) -> Shape:
    model = _model(g, [value])
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found = {info.name: info for info in (*inferred.graph.value_info, *inferred.graph.output)}
    return tuple(dim.dim_value for dim in found[value].type.tensor_type.shape.dim)


def _model(g: Graph, outputs: list[str]) -> onnx.ModelProto:
    infos = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(g.nodes, "net", g.inputs, infos, g.weights, value_info=g.shapes)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=g.functions, ir_version=9)


def random_graph(seed: int) -> tuple[onnx.ModelProto, list[str]]:
    """A model, and the kinds of what it is made of."""
    g = Graph(np.random.default_rng(seed))
    axes = int(g.pick(2, 2, 2, 2, 1, 3))
    batch = int(g.pick(1, 1, 1, 8))
    extents = [int(g.rng.integers(6, 12)) for _ in range(axes)]
    if axes == 2 and g.odds(0.2):
        g.inputs.append(helper.make_tensor_value_info("x", TensorProto.UINT8, [batch, *extents, 3]))
        g.shape = (batch, 3, *extents)
        pixels = g.add("Mul", g.add("Cast", "x", to=_FLOAT), g.put(np.float32(1 / 255)))
        g.value = g.add("Transpose", pixels, perm=[0, 3, 1, 2])
        g.kinds.append("bytes")
    else:
        g.shape = (batch, int(g.rng.integers(2, 5)), *extents)
        g.inputs.append(helper.make_tensor_value_info("x", _FLOAT, list(g.shape)))
    conv(g)
    if g.odds(0.2):
        g.inputs.append(helper.make_tensor_value_info("z", _FLOAT, [batch, g.shape[1], *[1] * axes]))
        g.value = g.add("Add", g.value, "z")
        g.kinds.append("second input")
    if g.odds(0.15):
        g.inputs.append(helper.make_tensor_value_info("gain", _FLOAT, [1]))
        g.weights.append(numpy_helper.from_array(np.float32([1.5]), "gain"))
        g.value = g.add("Mul", g.value, "gain")
        g.kinds.append("optional input")
    for _ in range(int(g.rng.integers(2, 6))):
        layer = LAYERS[g.rng.integers(len(LAYERS))]
        if layer in (larger, transposed) and np.prod(g.shape[2:]) > 3000:
            continue
        if not all(g.shape):
            break
        g.kinds.append(layer.__name__)
        layer(g)
        if g.odds(0.1):
            g.outputs.append(g.value)
    end = ENDS[g.rng.integers(len(ENDS))]
    g.kinds.append(end.__name__)
    end(g)
    made = [name for node in g.nodes for name in node.output]
    model = _model(g, list(dict.fromkeys([*g.outputs, g.value])))
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    known = {info.name: info for info in (*inferred.graph.value_info, *inferred.graph.output)}
    for output in model.graph.output:
        output.CopyFrom(known.get(output.name, output))
    assert set(g.outputs) <= set(made)
    if g.odds(0.3):
        _leave_open(model, g)
    return model, g.kinds


def _leave_open(model: onnx.ModelProto, g: Graph) -> None:
    """Names in the place of the batch size, where onnxruntime does run the model so."""
    bodies = (attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g"))
    inner = (info for body in bodies for info in (*body.input, *body.value_info))
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info, *inner):
        dims = info.type.tensor_type.shape.dim
        if len(dims) > 1 and info.name != "gain":
            dims[0].dim_param = "n"
    g.kinds.append("open batch")
