"""`--align auto` rounds ranks up to what the device computes at once, not this computer."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from models import build

from trp_export import Benchmark, Calibration, Energy, Options, Selection, compress
from trp_export.latency import device


@pytest.mark.parametrize("block", [4, 8])
def test_ranks_are_rounded_up_to_the_block_of_the_device(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def channel_block(specification: str) -> int:
        asked.append(specification)
        return block

    monkeypatch.setattr(device, "channel_block", channel_block)
    onnx.save(build(), tmp_path / "net.onnx")
    options = Options(
        Energy(0.5),
        calibration=Calibration("none"),
        selection=Selection(align="auto", only=("*conv2*",)),
        benchmark=Benchmark(run=False, device="ssh:pi@board", keep_slow_pairs=True),
        output=tmp_path / "small.onnx",
    )
    report = compress(tmp_path / "net.onnx", options)
    assert asked == ["ssh:pi@board"]
    ranks = [branch.rank for change in report.plan.changed for branch in change.branches]
    assert ranks
    assert all(rank % block == 0 for rank in ranks)
