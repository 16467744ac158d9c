"""A model that has been exported can be quantised by a second export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from command import Command
from models import build, operators, save


def test_a_result_in_floats_is_quantised_later(trp: Command, tmp_path: Path) -> None:
    save(build(), tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).standard_normal((64, 3, 12, 12)).astype(np.float32))
    assert trp("model.onnx", "--rank", "2", "--no-bench", "-o", "small.onnx").code == 0
    outcome = trp(
        *("small.onnx", "--no-bench", "--calib", "images.npy"),
        *("--precision", "int8", "-o", "small8.onnx"),
    )
    assert outcome.code == 0, outcome.err
    assert "QuantizeLinear" in operators(tmp_path / "small8.onnx")
