"""A real network on real images: int8 keeps what low rank kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from trp_export import Benchmark, Images, Options, compress
from trp_export.options import Calibration

ZOO = Path(__file__).parents[2] / "models_zoo"


@pytest.mark.slow
def test_a_network_trained_for_low_rank_keeps_its_accuracy_in_8_bits(tmp_path: Path) -> None:
    images = ZOO / "images" / "cifar10-256.npz"
    report = compress(
        ZOO / "weights" / "resnet20-trp-spatial-2.84x.pt",
        Options(
            images=Images(images),
            calibration=Calibration(images, count=None),
            benchmark=Benchmark(run=False),
            precision="int8",
            output=tmp_path / "small.onnx",
        ),
    )
    assert report.forms is not None
    assert report.forms.rejected_because is None
    fp32, int8 = report.forms.variants
    assert fp32.judged is not None
    assert int8.judged is not None
    assert int8.parity is not None
    assert int8.parity.divergence < 0.02
    assert abs(int8.judged.after - fp32.judged.after) <= 0.012  # Three of 256 images.
    assert int8.parity.agreement is not None
    assert int8.parity.agreement > 0.97
