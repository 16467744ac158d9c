"""Small networks whose outputs hide what their layers do: the ends that make a wrong rewrite hard to see."""

from __future__ import annotations

import numpy as np
import onnx
from models import build
from onnx import numpy_helper

_HEAD = '<ir_version: 8, opset_import: ["" : 17]>\nnet (float[1, 3, 24, 24] image{inputs}) => ({outputs})\n'
_WEIGHTS = (
    "float[8, 3, 3, 3] stem__weight, float[8] bn__weight, float[8] bn__bias, float[8] bn__mean, float[8] bn__var, "
    "float[16, 8, 3, 3] conv2__weight, float[16] conv2__bias"
)
_BODY = """    a = Conv <pads = [1, 1, 1, 1]> (image, stem__weight)
    b = BatchNormalization (a, bn__weight, bn__bias, bn__mean, bn__var)
    c = Relu (b)
    d = Conv <pads = [1, 1, 0, 1], strides = [2, 1]> (c, conv2__weight, conv2__bias)
    e = Relu (d)
"""


def _network(outputs: str, weights: str, body: str, inputs: str = "") -> onnx.ModelProto:
    head = _HEAD.format(inputs=inputs, outputs=outputs)
    return build(f"{head}<{_WEIGHTS}{weights}>\n{{\n{_BODY}{body}\n}}\n")


def detector() -> onnx.ModelProto:
    """Boxes, and scores whose bias drives every sigmoid to about 1e-6."""
    return _network(
        "float[1, 4, 12, 24] boxes, float[1, 6, 12, 24] scores",
        ", float[4, 16, 1, 1] box__weight, float[6, 16, 1, 1] score__weight, "
        "float[6] low = {-14, -14, -14, -14, -14, -14}",
        """    boxes = Conv (e, box__weight)
    heat = Conv (e, score__weight, low)
    scores = Sigmoid (heat)""",
    )


def saturated_classifier() -> onnx.ModelProto:
    """Probabilities of a softmax over logits in the thousands: 0 and 1, whatever the layers do."""
    return _network(
        "float[1, 10] probabilities",
        ", float[10, 16] fc__weight, float gain = {30000}",
        """    f = GlobalAveragePool (e)
    g = Flatten (f)
    logits = Gemm <transB = 1> (g, fc__weight)
    large = Mul (logits, gain)
    probabilities = Softmax (large)""",
    )


def top_k() -> onnx.ModelProto:
    """The 500 best of 1,728 scores that lie close together, and where they are."""
    return _network(
        "float[1, 500] scores, int64[1, 500] places",
        ", float[6, 16, 1, 1] score__weight, int64[2] flat = {1, -1}, int64[1] most = {500}",
        """    heat = Conv (e, score__weight)
    chances = Sigmoid (heat)
    row = Reshape (chances, flat)
    scores, places = TopK (row, most)""",
    )


def non_maximum_suppression() -> onnx.ModelProto:
    """As many boxes as survive: their number follows from the image."""
    return _network(
        "float[kept, 4] boxes",
        ", float[4, 16, 1, 1] box__weight, float[6, 16, 1, 1] score__weight, int64[3] four = {1, 4, -1}, "
        "int64[3] six = {1, 6, -1}, int64[1] most = {100}, float[1] overlap = {0.5}, float[1] least = {0.5}, "
        "int64 two = {2}, int64[1] first = {0}",
        """    p = Conv (e, box__weight)
    q = Reshape (p, four)
    all_boxes = Transpose <perm = [0, 2, 1]> (q)
    heat = Conv (e, score__weight)
    chances = Sigmoid (heat)
    chance_rows = Reshape (chances, six)
    chosen = NonMaxSuppression (all_boxes, chance_rows, most, overlap, least)
    which = Gather <axis = 1> (chosen, two)
    rows = Squeeze (all_boxes, first)
    boxes = Gather <axis = 0> (rows, which)""",
    )


def branches() -> onnx.ModelProto:
    """A layer in each branch of an If."""
    model = _network(
        "float[1, 16, 12, 24] y",
        ", float[16, 16, 3, 3] near__weight, float[16, 16, 3, 3] far__weight",
        """    y = If (far) <
        then_branch = one () => (float[1, 16, 12, 24] y1) { y1 = Conv <pads = [1, 1, 1, 1]> (e, far__weight) },
        else_branch = two () => (float[1, 16, 12, 24] y2) { y2 = Conv <pads = [1, 1, 1, 1]> (e, near__weight) }>""",
        inputs=", bool far",
    )
    for attribute in model.graph.node[-1].attribute:
        (conv,) = attribute.g.node
        conv.input[1] = conv.input[1].replace("__", ".")
    return model


def recurrent() -> onnx.ModelProto:
    """A bidirectional LSTM behind the layers, as text recognition has it; its gates saturate."""
    model = _network(
        "float[24, 2, 1, 8] y",
        ", float[2, 32, 16] w, float[2, 32, 8] r, int64[1] rows = {2}",
        """    f = ReduceMax <axes = [2], keepdims = 0> (e)
    g = Transpose <perm = [2, 0, 1]> (f)
    y, h, s = LSTM <hidden_size = 8, direction = "bidirectional"> (g, w, r)""",
    )
    for tensor in model.graph.initializer:
        if tensor.name in ("w", "r"):
            tensor.CopyFrom(numpy_helper.from_array(20 * numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    return model


def twins() -> onnx.ModelProto:
    """A layer called twice on the same values, of which a simplifier keeps one call."""
    return _network(
        "float[1, 6, 12, 24] y, float[1, 6, 12, 24] z",
        ", float[6, 16, 1, 1] head__weight",
        """    again = Conv <pads = [1, 1, 0, 1], strides = [2, 1]> (c, conv2__weight, conv2__bias)
    negative = Neg (again)
    y = Conv (d, head__weight)
    z = Conv (negative, head__weight)""",
    )


ENDS = (detector, saturated_classifier, top_k, non_maximum_suppression, branches, recurrent)
