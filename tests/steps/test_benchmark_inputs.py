"""What an export's benchmark feeds the files: the user's inputs or a calibration sample, in the types of the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import build

from trp_export import Benchmark, Calibration, InputOptions, Options, Rank, bench, compress
from trp_export.errors import UnsupportedError

Arrays = Mapping[str, np.ndarray]
UINT8_NET = """<ir_version: 8, opset_import: ["" : 17]> net (uint8[N, 3, 12, 12] x) => (float[N, 8, 12, 12] y)
<float[8, 3, 3, 3] w> { a = Cast <to = 1> (x)  y = Conv <pads = [1, 1, 1, 1]> (a, w) }"""


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[Arrays | None]:
    """What each benchmark is fed; nothing is timed."""
    seen: list[Arrays | None] = []

    def compare(files: object, *, inputs: Arrays | None, **_: object) -> None:
        seen.append(inputs)
        raise UnsupportedError("nothing is timed in this test")

    monkeypatch.setattr(bench, "compare", compare)
    return seen


def export(folder: Path, model: onnx.ModelProto, **options: object) -> None:
    onnx.save(model, folder / "net.onnx")
    benchmark = Benchmark(keep_slow_pairs=True)
    compress(folder / "net.onnx", Options(Rank(3), benchmark=benchmark, output=folder / "small.onnx", **options))  # type: ignore[arg-type]


def test_benchmark_feeds_a_calibration_sample(fed: list[Arrays | None], tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), np.uint8)
    np.savez(tmp_path / "photos.npz", images=images)
    export(tmp_path, build(UINT8_NET), calibration=Calibration(tmp_path / "photos.npz"))
    (sample,) = fed
    assert sample is not None
    assert sample["x"].dtype == np.uint8
    assert any(np.array_equal(sample["x"][0], image.transpose(2, 0, 1)) for image in images)


def test_benchmark_feeds_the_inputs_of_the_user(fed: list[Arrays | None], tmp_path: Path) -> None:
    wanted = np.full((1, 3, 12, 12), 7, np.uint8)
    np.savez(tmp_path / "in.npz", x=wanted)
    inputs = InputOptions(file=tmp_path / "in.npz")
    export(tmp_path, build(UINT8_NET), inputs=inputs, calibration=Calibration("none"))
    (sample,) = fed
    assert sample is not None
    np.testing.assert_array_equal(sample["x"], wanted)


def test_benchmark_without_samples_leaves_the_inputs_to_trp_bench(fed: list[Arrays | None], tmp_path: Path) -> None:
    export(tmp_path, build(UINT8_NET), calibration=Calibration("none"))
    assert fed == [None]
