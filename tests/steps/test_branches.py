"""What a report says of layers in branches, and of outputs behind operators with steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ends import branches, non_maximum_suppression
from models import save

from trp_export import Benchmark, Calibration, Energy, InputOptions, Options, Rank, compress
from trp_export.options import Precision
from trp_export.report.wording import headline


@pytest.mark.parametrize("far", [None, True, False])
def test_the_branch_that_was_not_taken_is_named(far: bool | None, tmp_path: Path) -> None:
    inputs = InputOptions()
    if far is not None:
        image = np.random.default_rng(0).standard_normal((1, 3, 24, 24)).astype(np.float32)
        np.savez(tmp_path / "inputs.npz", image=image, far=np.array(far))
        inputs = InputOptions(file=tmp_path / "inputs.npz")
    report = compress(
        save(branches(), tmp_path / "model.onnx"),
        Options(
            rule=Rank(2),
            benchmark=Benchmark(run=False),
            output=tmp_path / "small.onnx",
            inputs=inputs,
            calibration=Calibration("none"),
        ),
    )
    assert report.deviation is not None
    (not_run,) = report.deviation.not_run
    assert far is None or not_run == ("near" if far else "far")
    fed = "noise" if far is None else "the given inputs"
    assert f"its outputs on {fed} moved" in headline(report)
    assert headline(report).endswith(f"where {not_run} did not run.")
    assert any(note.startswith(f"{not_run} did not run on {fed}") for note in report.notes)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_are_compared_in_front_of_rows_of_varying_number(precision: Precision, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.standard_normal((40, 3, 24, 24)).astype(np.float32))
    report = compress(
        save(non_maximum_suppression(), tmp_path / "model.onnx"),
        Options(
            rule=Energy(0.9),
            precision=precision,
            calibration=Calibration(tmp_path / "images.npy") if precision == "int8" else Calibration("none"),
            benchmark=Benchmark(run=False),
            output=tmp_path / "small.onnx",
        ),
    )
    assert report.precision == precision
    assert report.deviation is not None
    assert report.deviation.truncation is not None
    assert 0 < report.deviation.truncation.relative_l2 < 1
