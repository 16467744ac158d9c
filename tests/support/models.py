"""Small models written as ONNX text, with weights of low rank, and ways to run and export them.

A weight w[n, c, *k] = sum of two products of vectors has rank at most 2 under every decomposition. An export at
rank 2 must therefore answer as the original does, whatever the scheme: an oracle that owes nothing to the exporter.
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, parser

from trp_export import Benchmark, Options, Rank, Selection, compress
from trp_export.options import Calibration
from trp_export.report.document import Report

CP_RANK = 2

CONV_NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 12, 12] image) => (float[N, 10] logits)
<float[16, 3, 3, 3] conv1__weight, float[16] bn1__weight, float[16] bn1__bias, float[16] bn1__mean, float[16] bn1__var,
 float[16, 16, 3, 3] conv2__weight, float[16] conv2__bias, float[10, 16] fc__weight, float[10] fc__bias>
{
    a = Conv <pads = [1, 1, 1, 1]> (image, conv1__weight)
    b = BatchNormalization (a, bn1__weight, bn1__bias, bn1__mean, bn1__var)
    c = Relu (b)
    d = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (c, conv2__weight, conv2__bias)
    e = Relu (d)
    f = GlobalAveragePool (e)
    g = Flatten (f)
    logits = Gemm <transB = 1> (g, fc__weight, fc__bias)
}
"""


def low_rank(shape: tuple[int, ...], rng: np.random.Generator, scale: float = 1.0) -> np.ndarray:
    """A tensor of canonical rank 2 and unit-sized answers; vectors are positive, as variances must be."""
    if len(shape) < 2:
        return rng.uniform(0.5, 1.5, shape)
    terms = (reduce(np.multiply.outer, (rng.standard_normal(size) for size in shape)) for _ in range(CP_RANK))
    return scale * np.asarray(sum(terms)) / np.sqrt(np.prod(shape[1:]))


def build(text: str = CONV_NET, seed: int = 0) -> onnx.ModelProto:
    """The model; what its text declares in `<...>` without a value becomes an initializer of low rank.

    The text knows no dots in names: `conv1__weight` stands for `conv1.weight`.
    """
    model = parser.parse_model(text)
    for node in model.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
    rng = np.random.default_rng(seed)
    given = {tensor.name for tensor in model.graph.initializer} | made_values(model.graph)
    for info in [info for info in model.graph.value_info if info.name not in given]:
        kind = info.type.tensor_type
        shape = tuple(dim.dim_value for dim in kind.shape.dim)
        array = low_rank(shape, rng).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        if info.name == "fc__weight":  # A softmax teaches nothing about what all classes have in common.
            array -= array.mean(axis=0)
        model.graph.initializer.append(numpy_helper.from_array(array, info.name.replace("__", ".")))
        model.graph.value_info.remove(info)
    return model


def made_values(graph: onnx.GraphProto) -> set[str]:
    return {name for node in graph.node for name in node.output}


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def noise(model: onnx.ModelProto, batch: int = 2, extent: int = 12) -> dict[str, np.ndarray]:
    """Inputs for a model, the same every time; open dimensions are `batch` first and `extent` elsewhere."""
    rng = np.random.default_rng(7)
    weights = {tensor.name for tensor in model.graph.initializer}
    made = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        shape = [dim.dim_value or (extent if axis else batch) for axis, dim in enumerate(kind.shape.dim)]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        drawn = rng.standard_normal(shape) if kind.elem_type in FLOATS else rng.integers(0, 2, shape)
        made[value.name] = np.asarray(drawn).astype(dtype)
    return made


FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def run(model: Path | onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, inputs)


def relative_l2(wanted: np.ndarray, got: np.ndarray) -> float:
    assert wanted.shape == got.shape
    size = float(np.linalg.norm(wanted.astype(np.float64)))
    apart = float(np.linalg.norm(wanted.astype(np.float64) - got.astype(np.float64)))
    return apart / size if size else apart


# Pairs at a rank that loses nothing are seldom faster.
KEEP_ALL = Benchmark(run=False, keep_slow_pairs=True)


def export(model: Path, scheme: str = "auto", rank: int = CP_RANK, output: Path | None = None) -> Report:
    """Export at a rank that loses nothing."""
    made = output or model.with_suffix(".trp.onnx")
    options = Options(
        rule=Rank(rank), selection=Selection(scheme), benchmark=KEEP_ALL, output=made, calibration=Calibration("none")
    )
    return compress(model, options)


def changed(report: Report) -> list[str]:
    return [change.site.name for change in report.plan.changed]


def operators(model: Path) -> list[str]:
    """Every operator in a file, also inside subgraphs."""
    return _operators(onnx.load(model, load_external_data=False).graph)


def _operators(graph: onnx.GraphProto) -> list[str]:
    found = []
    for node in graph.node:
        found.append(node.op_type)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found += _operators(inner)
    return found
