"""Networks at random keep their answers and their interface at a rank that loses nothing, in every precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import KEEP_ALL, relative_l2, run, save
from random_graphs import random_graph

from trp_export import Options, Rank, compress
from trp_export.options import Calibration

# Weights that were rounded to 16 or 8 bits have a rank above 2, and int8 is coarse.
LEAST = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.6}
ROUNDED = {"weight half": 1e-2, "weight packed": 0.2}
# Rows that NonMaxSuppression keeps, and the largest class, jump with the last bit.
JUMPING = {"boxes", "classes"}


def feeds(model: onnx.ModelProto, seed: int, batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = {tensor.name for tensor in model.graph.initializer}
    made = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [dim.dim_value or batch for dim in kind.shape.dim]
        is_pixels = kind.elem_type == onnx.TensorProto.UINT8
        drawn = rng.integers(0, 256, shape) if is_pixels else rng.standard_normal(shape)
        if value.name not in weights:
            made[value.name] = drawn.astype(np.uint8 if is_pixels else np.float32)
    return made


def interface(model: onnx.ModelProto) -> tuple[list[bytes], list[str], set[str]]:
    inputs = [value.SerializeToString() for value in model.graph.input]
    defaults = {tensor.name for tensor in model.graph.initializer} & {value.name for value in model.graph.input}
    return inputs, [value.name for value in model.graph.output], defaults


def export_and_compare(seed: int, precision: str, folder: Path, *, calibrated: bool = False) -> None:
    model, kinds = random_graph(seed)
    path, result = save(model, folder / "model.onnx"), folder / "small.onnx"
    fed = feeds(model, 7)
    samples = [feeds(model, index, batch=8) for index in range(8)]
    np.savez(folder / "data.npz", **{name: np.concatenate([one[name] for one in samples]) for name in fed})  # type: ignore[arg-type]
    calibration = Calibration(folder / "data.npz" if calibrated else "none")
    options = Options(
        Rank(2), precision=precision, calibration=calibration, benchmark=KEEP_ALL, output=result  # type: ignore[arg-type]
    )  # fmt: skip
    report = compress(path, options)
    assert report.after is not None
    assert report.after.bytes == result.stat().st_size
    assert interface(onnx.load(result)) == interface(model)
    if JUMPING & set(kinds) and (precision != "fp32" or ROUNDED.keys() & set(kinds)):
        return
    limit = max(LEAST[precision], *(ROUNDED.get(kind, 0.0) for kind in kinds))
    for wanted, got in zip(run(path, fed), run(result, fed), strict=True):
        assert relative_l2(wanted, got) < limit, (seed, kinds)


# A sum with a second input at a batch size of 1; two loops; an optional input beside an If; an LSTM or a MatMul.
@pytest.mark.parametrize("seed", [2, 0, 1, 5])
def test_random_graphs_keep_their_answers(seed: int, tmp_path: Path) -> None:
    export_and_compare(seed, "fp32", tmp_path)


# A number for each channel is added to what a conv makes; batch norm behind a weight that is transposed.
@pytest.mark.parametrize(("seed", "precision"), [(205, "fp32"), (205, "int8"), (3, "fp16"), (309, "fp32")])
def test_calibrated_random_graphs_keep_their_answers(seed: int, precision: str, tmp_path: Path) -> None:
    export_and_compare(seed, precision, tmp_path, calibrated=True)


@pytest.mark.slow
@pytest.mark.parametrize("precision", LEAST)
def test_many_random_graphs_keep_their_answers(precision: str, tmp_path: Path) -> None:
    for seed in range(1000, 1100):
        export_and_compare(seed, precision, tmp_path, calibrated=precision == "int8" or seed % 2 == 0)
