"""Layers alone, for devices without a profiler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from trp_export.graph.model_files import save_model
from trp_export.latency.isolated import layer_alone
from trp_export.latency.search import plan_for_speedup, predicted_plan
from trp_export.latency.table import Table
from trp_export.lowrank.site import Site, Use
from trp_export.planning.budgets import lost_energy

from .fake import CONDITIONS
from .test_network import Bench, chain


@pytest.mark.parametrize(
    "site",
    [
        Site("c", "Conv", (8, 3, 3, 3), 2, (Use((9, 7), (5, 7), (2, 1), (1, 1, 1, 1), (1, 1), repeats=2),)),
        Site("m", "MatMul", (10, 6), 1, (Use(repeats=4), Use(repeats=1))),
        Site("g", "Gemm", (10, 6), 1, (Use(repeats=3),)),
        Site("t", "Conv", (4, 2, 5), 1, (Use((12,), (8,), (1,), (0, 0), (1,)),)),
    ],
)
def test_a_layer_alone_is_a_valid_model_of_the_same_work(site: Site, tmp_path: Path) -> None:
    import onnxruntime

    from trp_export.graph.cost import count_macs
    from trp_export.graph.shapes import infer_shapes

    model, shapes = layer_alone(site)
    assert count_macs(model, infer_shapes(model, shapes)) == site.macs
    save_model(model, tmp_path / "alone.onnx")
    onnx.checker.check_model(tmp_path / "alone.onnx", full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "alone.onnx", providers=["CPUExecutionProvider"])
    fed = {name: np.zeros([size or 1 for size in shape], np.float32) for name, shape in shapes.items()}
    for use, output in zip(site.uses, session.run(None, fed), strict=True):
        assert output.shape == (use.repeats, site.kernel_shape[0], *use.out_extents)


def test_predictions_from_layers_alone_are_exact_too(tmp_path: Path) -> None:
    bench = Bench(chain(tmp_path), tmp_path / "work")
    table = Table(CONDITIONS, None)
    latency, device = bench.measure(table, profiled=False)
    assert device.profiles == 0
    for ratio in (1.3, 2.0):
        plan = predicted_plan(bench.layers, latency, latency.original / ratio, ratio, lost_energy)
        assert latency.original / latency.predicted(plan) == pytest.approx(latency.measured(plan), rel=1e-3)
    plan = plan_for_speedup(bench.layers, latency, 1.5, lost_energy)
    assert latency.measured(plan) == pytest.approx(1.5, rel=0.05)
    _, device = bench.measure(table, profiled=False)
    assert device.comparisons == 0
