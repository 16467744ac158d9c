"""MACs inside loops and branches that values decide are those of the user's data; a note says where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import build, save

from trp_export import Benchmark, Energy, Options, compress
from trp_export.inputs.options import InputOptions
from trp_export.options import Calibration
from trp_export.runtime.data_dependent import data_dependent

CONV = "<pads = [1, 1, 1, 1]>"
HEAD = '<ir_version: 8, opset_import: ["": 17]> net (float[n, 8, 16, 16] x) => (float[n, 8, 16, 16] y)'
WEIGHTS = "float[8, 8, 3, 3] w, int64 few = {3}, bool yes = {1}, float zero = {0}, int64 one = {1}"
MACS = 8 * 8 * 9 * 16 * 16


def loop(trips: str, condition: str, before: str = "", own: str = "c2 = Identity (c)") -> onnx.ModelProto:
    body = (
        "b (int64 i, bool c, float[n, 8, 16, 16] s) => (bool c2, float[n, 8, 16, 16] s2) "
        f"{{ {own}  s2 = Conv {CONV} (s, w) }}"
    )
    return build(f"{HEAD} <{WEIGHTS}> {{ {before} y = Loop <body = {body}> ({trips}, {condition}, x) }}")


def branch(condition: str) -> onnx.ModelProto:
    then, other = f"t () => (a) {{ a = Conv {CONV} (x, w) }}", "f () => (b) { b = Identity (x) }"
    return build(f"{HEAD} <{WEIGHTS}> {{ {condition} y = If <then_branch = {then}, else_branch = {other}> (q) }}")


LARGEST = "m = ReduceMax <keepdims = 0> (x)"
BY_VALUES = loop("trips", "yes", f"{LARGEST}  trips = Cast <to = 7> (m)")
BY_CONDITION = loop("few", "go", f"{LARGEST}  go = Greater (m, zero)")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (loop("few", "yes"), 0),
        (loop("few", "yes", own="c2 = Less (i, few)"), 0),
        (loop("trips", "yes", "s0 = Shape (x)  trips = Gather <axis = 0> (s0, one)"), 0),
        (BY_VALUES, 1),
        (BY_CONDITION, 1),
        (loop("few", "yes", own="z = ReduceMax <keepdims = 0> (s)  c2 = Greater (z, zero)"), 1),
        (branch("k = Shape (x)  k0 = Gather <axis = 0> (k, one)  q = Equal (k0, one)"), 0),
        (branch(f"{LARGEST}  q = Greater (m, zero)"), 1),
    ],
)
def test_data_dependent_names_what_values_decide(model: onnx.ModelProto, expected: int) -> None:
    assert len(data_dependent(ir.from_proto(model))) == expected


@pytest.mark.parametrize("given", ["nothing", "input", "calib"])
def test_trips_are_those_of_the_users_data(given: str, tmp_path: Path) -> None:
    """Five trips on the data, where noise takes two to four."""
    file, data = save(BY_VALUES, tmp_path / "m.onnx"), tmp_path / "x.npz"
    images = np.random.default_rng(0).uniform(0, 5, (20, 8, 16, 16)).astype(np.float32)
    images[:, 0, 0, 0] = 5.5
    np.savez(data, x=images[:1] if given == "input" else images)
    report = compress(
        file,
        Options(
            Energy(0.5),
            output=tmp_path / "r.onnx",
            benchmark=Benchmark(run=False),
            inputs=InputOptions(file=data) if given == "input" else InputOptions(),
            calibration=Calibration(data if given == "calib" else "none"),
        ),
    )
    (note,) = [note for note in report.notes if "depends on the data" in note]
    assert report.before.macs % MACS == 0
    trips = report.before.macs // MACS
    assert (trips < 5, "noise; --calib or --input FILE.npz" in note) == ((given == "nothing"),) * 2
    assert trips == 5 or given == "nothing"
    words = {"input": "the inputs of --input", "calib": "the first calibration sample", "nothing": "noise; "}
    assert f"MACs are those on {words[given]}" in note
