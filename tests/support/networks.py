"""Small networks for the tests: a residual one, one with groups and odd paddings, made from seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from trp_export.graph.prepare import prepare
from trp_export.graph.shapes import Shape, infer_shapes
from trp_export.graph.sites import LocatedSite, find_sites
from trp_export.inputs.description import describe_inputs
from trp_export.inputs.images import ImageSet
from trp_export.inputs.options import InputOptions
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.inputs.samples import Batch, Samples
from trp_export.precision.convert import Variant, convert

RESIDUAL = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 12, 12] x) => (float[N, 5] y)
{
    c0 = Conv <pads = [1, 1, 1, 1]> (x, stem_weight, stem_bias)
    r0 = Relu (c0)
    c1 = Conv <pads = [1, 1, 1, 1]> (r0, one_weight, one_bias)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, two_weight)
    s = Add (c2, r0)
    r2 = Relu (s)
    c3 = Conv <strides = [2, 1], pads = [0, 2, 1, 0], dilations = [2, 1], group = 2> (r2, grouped_weight, grouped_bias)
    r3 = Relu (c3)
    g = GlobalAveragePool (r3)
    f = Flatten (g)
    y = Gemm <transB = 1> (f, head_weight, head_bias)
}
"""

SHAPES = {
    "stem_weight": (8, 3, 3, 3),
    "stem_bias": (8,),
    "one_weight": (8, 8, 3, 3),
    "one_bias": (8,),
    "two_weight": (8, 8, 3, 3),
    "grouped_weight": (12, 4, 3, 3),
    "grouped_bias": (12,),
    "head_weight": (5, 12),
    "head_bias": (5,),
}


def make_network(
    text: str = RESIDUAL, seed: int = 0, given: Mapping[str, np.ndarray] | None = None
) -> tuple[ir.Model, tuple[LocatedSite, ...]]:
    """The network prepared, with weights of a decaying spectrum and those `given`, and its sites."""
    rng = np.random.default_rng(seed)
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        node.input[:] = [name.replace("_", ".") for name in node.input]
    for name, shape in SHAPES.items():
        array = rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 4))
        if name == "head_weight":  # A softmax teaches nothing about what all classes have in common.
            array -= array.mean(axis=0)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name.replace("_", ".")))
    for name, array in (given or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    model = prepare(ir.serde.deserialize_model(proto))
    return model, find_sites(model, infer_shapes(model, input_shapes(model)))


def input_shapes(model: ir.Model, sizes: Sequence[int] = ()) -> dict[str, Shape]:
    """The shapes that an export feeds, with `sizes` for the first input where they are given."""
    return describe_inputs(model, InputOptions().or_shape(tuple(sizes) or None)).completed().shapes


def make_images(count: int = 48, seed: int = 0) -> ImageSet:
    """Smooth random images, far from zero mean."""
    rng = np.random.default_rng(seed)
    rough = rng.standard_normal((count, 3, 14, 14))
    smooth = rough[:, :, :-2, :-2] + rough[:, :, 1:-1, 1:-1] + rough[:, :, 2:, 2:] + 0.5
    return ImageSet("made", smooth.astype(np.float32), None, Preprocessing(), 3, None, ())


def as_samples(images: ImageSet, name: str = "x", at_a_time: int | None = None) -> Samples:
    """Images as the samples of a network of one input."""
    return Samples(images.name, {name: images}, at_a_time)


def in_batches(*arrays: np.ndarray, name: str = "x", fixed: bool = False) -> list[Batch]:
    """Arrays as batches for a network of one input."""
    return [Batch({name: array}, fixed=fixed) for array in arrays]


def to_half(source: Path) -> Variant:
    """A model file in fp16, judged without images."""
    inputs = describe_inputs(ir.load(source)).completed()
    return convert("fp16", source, source.with_name("half.onnx"), inputs, (), False, lambda *_: None)
