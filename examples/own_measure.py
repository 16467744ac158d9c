"""A detector, made small under a measure of your own.

    python examples/own_measure.py out/

The detector is built here: it answers with a map whose maximum lies on a blurred spot. The measure is the share of
spots that it finds within two pixels. `compress` calls it with the path of every network that it tries.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from trp_export import Benchmark, Calibration, MaxDrop, Options, compress

SIZE, SPOTS = 48, 200
DETECTOR = """
<ir_version: 8, opset_import: ["" : 18]>
detector (float[batch, 1, 48, 48] image) => (float[batch, 1, 48, 48] map) {
    blurred = Conv<pads = [4, 4, 4, 4]>(image, blur)
    active = Relu(blurred)
    map = Conv<pads = [2, 2, 2, 2]>(active, gather)
}
"""


def make_detector(path: Path) -> None:
    """16 noisy copies of the spot's shape as filters, added up again: much of it is redundant."""
    rng = np.random.default_rng(0)
    blur = spot(9, 4, 4)[None, None] + 0.05 * rng.standard_normal((16, 1, 9, 9))
    gather = 0.2 + 0.05 * rng.standard_normal((1, 16, 5, 5))
    model = onnx.parser.parse_model(DETECTOR)
    for name, values in (("blur", blur), ("gather", gather)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(model, path)


def spot(size: int, row: float, column: float) -> NDArray[np.float64]:
    """A blurred spot (size, size) with its middle at (row, column)."""
    rows, columns = np.mgrid[:size, :size]
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8)


def make_images(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images (count, 1, SIZE, SIZE) with one spot in noise, and where it lies (count, 2)."""
    rng = np.random.default_rng(seed)
    places = rng.integers(6, SIZE - 6, (count, 2))
    images = np.stack([spot(SIZE, *place) for place in places])[:, None] + 0.3 * rng.standard_normal(
        (count, 1, SIZE, SIZE)
    )
    return images.astype(np.float32), places


def share_found(path: Path) -> float:
    """The measure: a number between 0 and 1, more for better."""
    images, places = make_images(SPOTS, seed=1)
    maps = np.asarray(ort.InferenceSession(path).run(None, {"image": images})[0])
    found = np.stack(np.unravel_index(maps.reshape(len(maps), -1).argmax(axis=1), (SIZE, SIZE)), axis=1)
    return float((np.abs(found - places).max(axis=1) <= 2).mean())


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    make_detector(folder / "detector.onnx")
    np.save(folder / "calibration.npy", make_images(128, seed=2)[0])  # floats are fed as they are
    report = compress(
        folder / "detector.onnx",
        Options(
            rule=MaxDrop(1.0),
            evaluate=share_found,
            calibration=Calibration(folder / "calibration.npy"),
            benchmark=Benchmark(run=False),
            output=folder / "small.onnx",
        ),
    )
    assert report.after is not None
    print(f"multiply-adds: {report.before.macs:,} -> {report.after.macs:,}")
    print(f"spots found: {share_found(folder / 'detector.onnx'):.1%} -> {share_found(folder / 'small.onnx'):.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
