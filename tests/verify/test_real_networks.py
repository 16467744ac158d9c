"""No sound export of a network as people ship it is refused, whatever is asked for.

Each network is exported under two rules, so that all of them together meet every rule in both precisions. With
TRP_ALL_RULES=1 in the environment each network meets every rule in both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trp_export import Benchmark, Energy, Macs, Options, compress
from trp_export.errors import TrpError, VerifyError
from trp_export.inputs.options import InputOptions
from trp_export.options import Calibration

RULES = (Energy(0.999), Energy(0.95), Energy(0.9), Macs(1.25), Macs(1.5), Macs(2))
PRECISIONS = ("fp32", "fp16")
# Where a file leaves sizes open, small ones: a rewrite is verified as well on them.
SMALL = InputOptions.of(1, 3, 96, 96)
NETWORKS = {
    "super_resolution_prepost_op18": InputOptions(),
    "ultraface_slim_320": InputOptions(),
    "real/ch_PP-OCRv4_det_infer": SMALL,
    "real/ch_ppocr_mobile_v2.0_cls_infer": InputOptions(),
    "real/efficientnet_lite0": InputOptions(),
    "real/realesr_animevideov3_x4": SMALL,
    "real/waifu2x_photo_x2": SMALL,
    "real/yolox_nano": InputOptions(),
}


def combinations() -> Iterator[tuple[str, Energy | Macs, str]]:
    """Network, rule and precision."""
    for place, network in enumerate(NETWORKS):
        for shift, precision in enumerate(PRECISIONS):
            few = [RULES[(place + shift * len(RULES) // 2) % len(RULES)]]
            for rule in RULES if os.environ.get("TRP_ALL_RULES") else few:
                yield network, rule, precision


@pytest.mark.slow
@pytest.mark.parametrize(("network", "rule", "precision"), list(combinations()), ids=str)
def test_no_sound_export_is_refused(
    network: str, rule: Energy | Macs, precision: str, shared: Path, tmp_path: Path
) -> None:
    options = Options(
        rule=rule,
        precision=precision,  # type: ignore[arg-type]
        inputs=NETWORKS[network],
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
