"""ARM64 under qemu: outputs as on x86, the kernels each processor should get, counts that repeat."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trp_export.bench import Settings, compare, load
from trp_export.bench.devices.arm import CPUS, missing_arm
from trp_export.cli.bench import run
from trp_export.errors import DeviceError, OptionError

MISSING = missing_arm(Settings())
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=f"arm is not set up: {MISSING}"), pytest.mark.timeout(600)]


@pytest.mark.slow
def test_counts_repeat_and_agree_with_arithmetic(
    conv_net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "s.json"
    assert run([str(conv_net), str(conv_net), "--device", "arm", "--processes", "1", "--save", str(saved)]) == 0
    out = capsys.readouterr().out
    assert "1e6 instructions" in out
    assert "1e6 multiply-adds" in out
    assert "ratio [range]" in out
    for word in (" ms", "99 %", "pinned", "thread", "governor"):
        assert word not in out
    found = load(saved)
    one, other = found.measurements
    assert found.environment.unit == "instructions"
    assert one.counts["macs"] == pytest.approx(other.counts["macs"], rel=1e-3)
    assert one.samples[0] == pytest.approx(other.samples[0], rel=0.005)
    assert out.splitlines()[2].split()[4:8] == ["1.00x", "[1.00,", "1.00]", "no"]
    macs = 16 * 16 * 9 * (3 * 8 + 8 * 8) + 80
    assert macs <= one.counts["macs"] <= 1.1 * macs  # kernels pad channels to whole vectors
    assert one.deviation is not None
    assert one.deviation.relative_l2 < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("cpu", sorted(CPUS))
def test_each_processor_gets_its_kernels(cpu: str, tmp_path: Path) -> None:
    """Half precision and dot products exist from Cortex-A76 on; float32 is the same everywhere."""
    float32, float16, int8 = (precision_net(tmp_path, kind) for kind in ("float32", "float16", "int8"))
    found = compare([float32, float16, int8], device=f"arm:{cpu}", processes=1)
    counts = [one.counts for one in found.measurements]
    modern = cpu == "cortex-a76"
    assert counts[0]["fmla.4s"] > 10_000
    assert (counts[1].get("fmla.8h", 0) > 5_000) is modern
    assert (counts[2].get("dot.16b", 0) > 1_000) is modern
    assert (counts[2].get("mlal.8h", 0) > 1_000) is not modern


def precision_net(folder: Path, kind: str) -> Path:
    """Two convolutions in float32, float16, or quantised to int8 by scales of 1/32."""
    rng = np.random.default_rng(0)
    dtype = np.float16 if kind == "float16" else np.float32
    element = TensorProto.FLOAT16 if kind == "float16" else TensorProto.FLOAT
    nodes, weights, last = [], [], "x"
    if kind == "int8":
        weights += [numpy_helper.from_array(np.float32(1 / 32), "s"), numpy_helper.from_array(np.uint8(128), "zu")]
        weights += [numpy_helper.from_array(np.int8(0), "zi")]
    for i in range(2):
        kernel = rng.standard_normal((16, 16, 3, 3)) / 12
        if kind == "int8":
            weights.append(numpy_helper.from_array(np.clip(kernel * 32, -127, 127).astype(np.int8), f"q{i}"))
            nodes.append(helper.make_node("QuantizeLinear", [last, "s", "zu"], [f"xq{i}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"xq{i}", "s", "zu"], [f"xd{i}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", "s", "zi"], [f"w{i}"]))
            last = f"xd{i}"
        else:
            weights.append(numpy_helper.from_array(kernel.astype(dtype), f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"y{i}"], pads=[1] * 4))
        last = f"y{i}"
    if kind == "int8":
        nodes.append(helper.make_node("QuantizeLinear", [last, "s", "zu"], ["yq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["yq", "s", "zu"], ["end"]))
        last = "end"
    values = [helper.make_tensor_value_info(name, element, [1, 16, 12, 12]) for name in ("x", last)]
    graph = helper.make_graph(nodes, kind, values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / f"{kind}.onnx")
    return folder / f"{kind}.onnx"


def test_what_it_cannot_do(conv_net: Path) -> None:
    with pytest.raises(DeviceError, match="no processor 'pentium' to emulate; there are cortex-a53"):
        compare([conv_net], device="arm:pentium")
    with pytest.raises(OptionError, match="ask for fewer"):
        compare([conv_net], device="arm", threads=2)


def test_a_folder_with_a_comma(conv_net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """qemu would read the rest of the path as another option of its plugin."""
    (tmp_path / "a,b").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a,b"))
    with pytest.raises(DeviceError, match=r"qemu cannot use .*a,b.*name another folder in TMPDIR"):
        compare([conv_net], device="arm", processes=1)


def test_set_up_twice_does_nothing() -> None:
    tool = Path(__file__).parents[2] / "tools" / "setup_arm.py"
    done = subprocess.run([sys.executable, str(tool)], capture_output=True, text=True, check=True)
    assert "is ready: onnxruntime" in done.stdout
