"""No sound export of a network as people ship it is refused, whatever is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from trp_export import Benchmark, Energy, Macs, Options, compress
from trp_export.errors import TrpError, VerifyError
from trp_export.options import Calibration

RULES = (Energy(0.999), Energy(0.95), Energy(0.9), Macs(1.25), Macs(1.5), Macs(2))
NETWORKS = (
    *("super_resolution_prepost_op18", "ultraface_slim_320", "real/ch_PP-OCRv4_det_infer"),
    *("real/ch_ppocr_mobile_v2.0_cls_infer", "real/efficientnet_lite0", "real/realesr_animevideov3_x4"),
    *("real/waifu2x_photo_x2", "real/yolox_nano"),
)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_no_sound_export_is_refused(
    network: str, rule: Energy | Macs, precision: str, shared: Path, tmp_path: Path
) -> None:
    options = Options(
        rule=rule,
        precision=precision,  # type: ignore[arg-type]
        benchmark=Benchmark(run=False),
        output=tmp_path / "small.onnx",
        calibration=Calibration("none"),
    )
    try:
        deviation = compress(shared / "models" / f"{network}.onnx", options).deviation
    except VerifyError:
        raise
    except TrpError as error:
        pytest.skip(f"refused for another reason: {error}")
    assert deviation is not None
    assert all(layer.excess < 1 for layer in deviation.layers)
    assert deviation.not_compared == ()
