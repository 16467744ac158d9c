"""Average pooling in torch against onnxruntime, over every way to pad."""

from __future__ import annotations

import warnings
from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from trp_export.errors import UnsupportedError
from trp_export.graph.prepare import prepare

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch

from trp_export.recover.torch_graph import TorchGraph

AUTO_PADS = [f'auto_pad = "{how}"' for how in ("VALID", "SAME_UPPER", "SAME_LOWER")]
PADS = [f"pads = {pads}" for pads in ([1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0])]
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 6, 9)).astype(np.float32)


def pooling(padding: str, kernel: list[int], strides: list[int], ceil: int, counted: int) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> net (float[N, 3, 6, 9] x) => (float[N, 3, h, w] y)
        {{ y = AveragePool <{padding}, kernel_shape = {kernel}, strides = {strides}, ceil_mode = {ceil},
            count_include_pad = {counted}> (x) }}"""
    )


@pytest.mark.parametrize("padding", [*PADS, "pads = [2, 2, 2, 2]", *AUTO_PADS])
def test_average_pooling_is_that_of_onnxruntime(padding: str) -> None:
    kernels, strides = [[3, 3], [4, 3]] if "2, 2" in padding else [[2, 2], [3, 2]], [[1, 1], [2, 2], [1, 2]]
    for case in product(kernels, strides, (0, 1), (0, 1)):
        proto = pooling(padding, *case)
        session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        graph = TorchGraph(prepare(ir.serde.deserialize_model(proto)))
        (got,) = graph(torch.from_numpy(IMAGES))
        np.testing.assert_allclose(got.numpy(), session.run(None, {"x": IMAGES})[0], atol=1e-5, err_msg=str(case))


def test_gaps_that_onnxruntime_pads_with_less_than_nothing_are_refused() -> None:
    graph = TorchGraph(prepare(ir.serde.deserialize_model(pooling(AUTO_PADS[1], [1, 1], [3, 3], 0, 0))))
    with pytest.raises(UnsupportedError, match=r"AveragePool with gaps .* cannot be run in torch"):
        graph(torch.from_numpy(IMAGES))
