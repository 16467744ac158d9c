"""A detector without training: random weights, a YOLOX head of three levels, and pictures that it finds things in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from models import build
from onnx import numpy_helper
from PIL import Image

SIDE, CLASSES = 64, 3
ATTRIBUTES = 5 + CLASSES
_LEVEL = """
    m{0} = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (f{0}, level{0}__weight)
    v{0} = Relu (m{0})
    h{0} = Conv (v{0}, box{0}__weight, box{0}__bias)
    o{0} = Conv (v{0}, score{0}__weight, score{0}__bias)
    s{0} = Sigmoid (o{0})
    j{0} = Concat <axis = 1> (h{0}, s{0})
    r{0} = Reshape (j{0}, rows)
"""
_TEXT = f"""<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, {SIDE}, {SIDE}] image) => (float[N, C, {ATTRIBUTES}] boxes)
<int64[3] rows = {{0, {ATTRIBUTES}, -1}}, float[8, 3, 8, 8] stem__weight,
 WEIGHTS>
{{
    f0 = Conv <kernel_shape = [8, 8], strides = [8, 8]> (image, stem__weight)
    f1 = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (f0)
    f2 = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (f1)
    LEVELS
    all = Concat <axis = 2> (r0, r1, r2)
    boxes = Transpose <perm = [0, 2, 1]> (all)
}}
"""


def make_detector() -> onnx.ModelProto:
    """(N, 3, 64, 64) -> (N, 84, 8): strides 8, 16 and 32."""
    weights = ", ".join(
        f"float[16, 8, 3, 3] level{level}__weight, float[4, 16, 1, 1] box{level}__weight, float[4] box{level}__bias, "
        f"float[{ATTRIBUTES - 4}, 16, 1, 1] score{level}__weight, float[{ATTRIBUTES - 4}] score{level}__bias"
        for level in range(3)
    )
    levels = "".join(_LEVEL.format(level) for level in range(3))
    proto = build(_TEXT.replace("WEIGHTS", weights).replace("LEVELS", levels))
    rng = np.random.default_rng(4)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            shape = tuple(tensor.dims)
            array = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else np.zeros(shape)
            times = 8.0 if tensor.name.startswith("score") else 0.5 if tensor.name.startswith("box") else 2.0
            tensor.CopyFrom(numpy_helper.from_array((times * array).astype(np.float32), tensor.name))
    return proto


def save_pictures(folder: Path, count: int = 12, seed: int = 5) -> Path:
    """Pictures of several sizes with bright blocks."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(count):
        height, width = (int(size) for size in rng.integers(60, 120, 2))
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for _ in range(3):
            top, left = int(rng.integers(0, height - 20)), int(rng.integers(0, width - 20))
            pixels[top : top + 20, left : left + 20] = rng.integers(100, 256, 3)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder
