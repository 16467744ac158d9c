"""Short runs of trp-train with fewer channels."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.loop import TrainingRun
from training.options import TrainOptions
from trp_export import Benchmark, InputOptions, LoadOptions, Options, compress
from trp_export.flags import build_value

TINY = "tiny_networks:tiny"


def options_for(data: Path, output: Path, **changes: Any) -> TrainOptions:
    """The options of a short run; `changes` are by the keys of flags."""
    values = {"data": f"npz:{data}", "output": output, "arch": TINY, "shape": (1, 3, 8, 8), "method": "csgd"}
    values |= {"widths": 0.5, "strength": 0.3, "epochs": 4, "batch": 16, "lr": 0.05, "validation": 64, "device": "cpu"}
    output.mkdir(exist_ok=True)
    options: TrainOptions = build_value(TrainOptions, values | changes)
    return options


def train(options: TrainOptions, progress: Callable[[dict[str, Any]], None] = lambda record: None) -> TrainingRun:
    run = TrainingRun(options, progress)
    run.train()
    return run


def require_exported_as_trained(run: TrainingRun, folder: Path) -> None:
    """The export of `folder`/run removes what the run says, and computes what the trained network computes."""
    options = Options(
        load=LoadOptions(arch=TINY),
        inputs=InputOptions.of(1, 3, 8, 8),
        benchmark=Benchmark(run=False),
        output=folder / "s.onnx",
    )
    report = compress(folder / "run" / "model.pt", options)
    assert report.after is not None
    assert report.before.macs == pytest.approx(report.after.macs * run.history[-1]["macs_ratio"], rel=1e-3)
    assert report.deviation is not None
    assert report.deviation.truncation is not None
    assert report.deviation.truncation.relative_l2 < 1e-5


def stop_at(epoch: int, step: int) -> Callable[[dict[str, Any]], None]:
    def stop(record: dict[str, Any]) -> None:
        if (record["epoch"], record.get("step")) == (epoch, step):
            signal.raise_signal(signal.SIGTERM)

    return stop
