"""What trp-train leaves goes straight into the exporter, is cut at the plan's ranks, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from test_run import options_for

from training.checkpoint import load_network
from training.loop import TrainingRun
from trp_export.options import Benchmark, LoadOptions, Options
from trp_export.pipeline import compress


@pytest.mark.slow
@pytest.mark.parametrize("factors", [0, 1])
def test_a_trained_network_is_cut_without_loss(stripes: Path, tmp_path: Path, factors: int) -> None:
    folder, arch = tmp_path / "run", "tiny_networks:tiny"
    folder.mkdir()
    options = options_for(stripes, folder, epochs=2, factors=factors, nuclear=0.0, period=20)
    TrainingRun(options, lambda record: None).train()
    result = tmp_path / "small.onnx"
    export = Options(load=LoadOptions(arch=arch), output=result, benchmark=Benchmark(run=False))
    report = compress(folder / "model.pt", export)
    assert report.after is not None
    assert report.before.macs / report.after.macs >= 1.6
    assert {change.site.name for change in report.plan.changed} <= {"conv1", "conv2"}

    module = load_network(folder / "model.pt", arch).module.eval()
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(result, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = module(x).numpy()
    assert np.linalg.norm(outputs - expected) <= 1e-4 * np.linalg.norm(expected)
