"""The course of a measurement on this computer: inputs, outputs, rounds, faults."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from trp_export.bench import Comparison, Settings, compare, load, ratio, save, to_json
from trp_export.bench.devices.pipe import Pipe
from trp_export.bench.models import read_cases
from trp_export.bench.outputs import Reference, check_outputs
from trp_export.errors import (
    DeviceError,
    EnvironmentMismatchError,
    LoadError,
    OptionError,
    OutputError,
    UnsupportedError,
    VerifyError,
)

from .conftest import save_conv_net


def test_two_models_side_by_side(conv_net: Path, tmp_path: Path, no_process_left: None) -> None:
    bigger = save_conv_net(tmp_path / "bigger.onnx", width=32, depth=3)
    shares: list[float] = []
    seen: list[Comparison] = []
    found = compare([conv_net, bigger], budget_s=2, seed=1, progress=shares.append, checkpoint=seen.append)
    assert [one.model for one in found.measurements] == ["net.onnx", "bigger.onnx"]
    for one in found.measurements:
        assert len(one.processes) >= 8
        assert all(process.samples and min(process.samples) > 0 for process in one.processes)
        assert all(process.peak_bytes > process.base_bytes > 0 for process in one.processes)
        assert one.deviation is not None
        assert one.deviation.relative_l2 == 0
    assert ratio(*found.measurements).verdict == "slower"
    assert found.environment.inputs == "float32[1,3,16,16]"
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(seen) == len(found.measurements[0].processes)


def test_json_there_and_back(conv_net: Path, tmp_path: Path) -> None:
    found = compare([conv_net, conv_net], budget_s=1, processes=3)
    assert [one.model for one in found.measurements] == [str(conv_net), f"{conv_net} #2"]
    save(found, tmp_path / "out.json")
    assert load(tmp_path / "out.json") == found
    brief = to_json(found, samples=False)
    assert json.loads(json.dumps(brief, allow_nan=False)) == brief
    assert "processes" not in brief["models"][0]
    with pytest.raises(OutputError, match="cannot be written"):
        save(found, tmp_path / "missing" / "out.json")


def test_any_type_and_shape_of_input(any_types: Path) -> None:
    with pytest.raises(OptionError, match=r"--shape h=1,N"):
        compare([any_types])
    found = compare([any_types], budget_s=0.5, processes=2, shapes={"h": (2, 5), "x": (2, 4)})
    assert found.environment.inputs == "float32[2,4], float16[2,5], int64[2], uint8[2,3], bool[], float64[1,4]"
    assert found.measurements[0].deviation is not None


def test_a_file_of_a_fixed_size_meets_its_result_at_another(conv_net: Path, tmp_path: Path) -> None:
    resized = onnx.load(conv_net)
    for dim, size in zip(resized.graph.input[0].type.tensor_type.shape.dim, (2, 3, 24, 32), strict=True):
        dim.dim_value = size
    del resized.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(resized, tmp_path / "other.onnx")
    models, shapes = [conv_net, tmp_path / "other.onnx"], {"x": (2, 3, 24, 32)}
    before = conv_net.read_bytes()
    found = compare(models, budget_s=0.5, processes=2, shapes=shapes)
    assert found.environment.inputs == "float32[2,3,24,32]"
    assert [one.model for one in found.measurements] == ["net.onnx", "other.onnx"]
    assert found.measurements[0].file_bytes == len(before)
    note = "net.onnx: the file fixes input x to (1, 3, 16, 16), and the network runs at x=2,3,24,32 as well"
    assert sum(line.startswith(note) for line in found.noise) == 1
    assert conv_net.read_bytes() == before
    with pytest.raises(OptionError, match="does not fit"):
        compare([conv_net], shapes={"x": (2, 4, 24, 32)})


def test_given_inputs_are_checked(conv_net: Path) -> None:
    with pytest.raises(OptionError, match=r"input 'x' is float32 \(1, 3, 16, 16\); got float64"):
        read_cases([conv_net], inputs={"x": np.zeros((1, 3, 16, 16))})
    with pytest.raises(OptionError, match="no data for input 'x'; the file holds z"):
        read_cases([conv_net], inputs={"z": np.zeros(1)})
    image = np.ones((1, 3, 16, 16), np.float32)
    assert np.array_equal(read_cases([conv_net], inputs={"": image})[0].feeds[0], image)


def test_batch_goes_to_dynamic_models_only(tmp_path: Path) -> None:
    dynamic = save_conv_net(tmp_path / "dynamic.onnx", batch="N")
    assert read_cases([dynamic], batch=4)[0].feeds[0].shape == (4, 3, 16, 16)
    with pytest.raises(OptionError, match="--batch 4 cannot change it"):
        read_cases([save_conv_net(tmp_path / "fixed.onnx")], batch=4)


def test_unequal_work_is_told(conv_net: Path, tmp_path: Path) -> None:
    pair = save_conv_net(tmp_path / "pair.onnx", batch=2)
    assert "different inputs" in compare([conv_net, pair], budget_s=0.1, processes=1).noise[-1]


def test_external_data_is_hashed_and_kept_inside_its_folder(conv_net: Path, tmp_path: Path) -> None:
    model = onnx.load(conv_net)
    path = tmp_path / "external" / "net.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="weights & more.bin", size_threshold=0)
    before = read_cases([path])[0]
    assert [file.name for file in before.files] == ["net.onnx", "weights & more.bin"]
    compare([path], budget_s=0.2, processes=1)
    data = path.parent / "weights & more.bin"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    assert read_cases([path])[0].sha256 != before.sha256
    data.unlink()
    with pytest.raises(LoadError, match=r"is missing|leads out of"):
        read_cases([path])
    loose = onnx.load(path, load_external_data=False)
    for tensor in loose.graph.initializer:
        tensor.external_data[0].value = "../../etc/passwd"
    onnx.save(loose, path)
    with pytest.raises(LoadError, match="outside the model's folder"):
        read_cases([path])


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"not a model at all", bytes(range(256))])
def test_files_that_are_no_models(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(LoadError, match=r"is not an ONNX model|is empty"):
        compare([tmp_path / "bad.onnx"])
    with pytest.raises(LoadError, match="does not exist"):
        compare([tmp_path / "missing.onnx"])
    with pytest.raises(LoadError, match="is a folder"):
        compare([tmp_path])


def test_text_inputs_are_refused(tmp_path: Path) -> None:
    text = helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [text],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [1])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "text.onnx")
    with pytest.raises(UnsupportedError, match="not a tensor of numbers"):
        compare([tmp_path / "text.onnx"])


def test_wrong_wishes(conv_net: Path) -> None:
    for wish, message in [
        ({"budget_s": 0}, "budget must be above 0"),
        ({"budget_s": math.inf}, "budget must be above 0 s and at most 1,000,000 s, not inf"),
        ({"settings": Settings(timeout_s=-5)}, "the timeout must be above 0 s and at most 1,000,000 s, not -5"),
        ({"settings": Settings(timeout_s=math.nan)}, "not nan"),
        ({"shapes": {"X": (1, 3, 16, 16)}}, "no input 'X' to give a shape to; there are x"),
        ({"threads": 0}, "at least 1"),
        ({"threads": 10_000}, "ask for fewer"),
        ({"cores": [10_000]}, "no core 10000"),
        ({"batch": 0}, "batch must be"),
    ]:
        with pytest.raises(OptionError, match=message):
            compare([conv_net], **wish)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match=r"XnnpackExecutionProvider is not in this onnxruntime"):
        compare([conv_net], provider="XnnpackExecutionProvider")
    with pytest.raises(DeviceError, match="--list-devices"):
        compare([conv_net], device="toaster")


def test_a_batch_that_fills_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="has more than 2,147,483,648 elements"):
        compare([save_conv_net(tmp_path / "open.onnx", batch="N")], batch=10**9)


def test_an_unlike_device_is_refused_before_it_is_measured(conv_net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trp_export.bench import session

    there = compare([conv_net], budget_s=0.1, processes=1).environment
    assert compare([conv_net], budget_s=0.1, processes=1, like=there).environment == there
    monkeypatch.setattr(session, "reference_outputs", None)  # the first step that runs a model
    for other in (replace(there, cpu="Another CPU"), replace(there, inputs="float32[9]")):
        with pytest.raises(EnvironmentMismatchError, match="Measure both files in one run"):
            compare([conv_net], like=other)


def test_other_outputs_are_an_error(conv_net: Path) -> None:
    case = read_cases([conv_net])[0]
    wanted = np.ones((1, 10), np.float32)
    assert check_outputs(case, [wanted], [wanted], None, "d").relative_l2 == 0
    for other in (wanted * 1.01, wanted * np.nan, wanted[:, :9], wanted.astype(np.float64)):
        with pytest.raises(VerifyError, match=r"net\.onnx: output 0"):
            check_outputs(case, [other], [wanted], None, "d")
    with pytest.raises(VerifyError, match="2 outputs"):
        check_outputs(case, [wanted, wanted], [wanted], None, "d")


def test_random_outputs_are_not_compared_and_the_others_are(tmp_path: Path, no_process_left: None) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[1, 64] x) => (float[1, 64] y, float[1, 64] z)
        { y = Relu (x)  n = RandomNormalLike (x)  z = Add (x, n) }"""
    )
    onnx.save(model, tmp_path / "random.onnx")
    found = compare([tmp_path / "random.onnx"], budget_s=0.1, processes=1)
    assert found.measurements[0].deviation is not None
    assert found.measurements[0].deviation.relative_l2 == 0
    assert "random.onnx gives other values in each run at output 1, which was not compared" in found.noise


def test_a_model_that_only_gives_random_numbers_is_timed_without_a_comparison(
    tmp_path: Path, no_process_left: None
) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[1, 64] x) => (float[1, 64] z)
        { n = RandomNormalLike (x)  z = Add (x, n) }"""
    )
    onnx.save(model, tmp_path / "random.onnx")
    found = compare([tmp_path / "random.onnx"], budget_s=0.1, processes=1)
    assert found.measurements[0].deviation is None
    assert found.measurements[0].samples


def test_links_into_a_folder_of_blobs_are_followed(tmp_path: Path, no_process_left: None) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    onnx.save(
        onnx.load(save_conv_net(tmp_path / "net.onnx")),
        tmp_path / "apart.onnx",
        save_as_external_data=True,
        location="apart.data",
        size_threshold=0,
    )
    for name in ("apart.onnx", "apart.data"):
        (tmp_path / name).rename(tmp_path / "blobs" / f"{name}.blob")
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{name}.blob")
    found = compare([tmp_path / "snapshot" / "apart.onnx"], budget_s=0.1, processes=1)
    assert found.measurements[0].file_bytes > (tmp_path / "net.onnx").stat().st_size - 1000
    (tmp_path / "blobs" / "apart.data.blob").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(LoadError, match=r"apart\.data is a Git LFS pointer"):
        read_cases([tmp_path / "snapshot" / "apart.onnx"])


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\0\0\0\0ORTM", "a model in ORT format"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(LoadError, match=f"is {what}"):
        read_cases([tmp_path / "model.onnx"])


def test_a_device_that_computes_something_else_is_not_timed(
    conv_net: Path, monkeypatch: pytest.MonkeyPatch, no_process_left: None
) -> None:
    from trp_export.bench import session

    monkeypatch.setattr(
        session, "reference_outputs", lambda cases, timeout_s: [Reference([np.ones((1, 10), np.float32)])]
    )
    seen: list[Comparison] = []
    with pytest.raises(VerifyError, match=r"(?s)output 0 on local differs.*Nothing was measured further"):
        compare([conv_net], checkpoint=seen.append)
    assert not seen


def test_interruption_keeps_the_samples_and_leaves_no_process(conv_net: Path, no_process_left: None) -> None:
    seen: list[Comparison] = []

    def stop(share: float) -> None:
        if share > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare([conv_net], budget_s=2, progress=stop, checkpoint=seen.append)
    assert seen[-1].measurements[0].samples


def fake(program: str) -> Pipe:
    return Pipe([sys.executable, "-c", program], what="the runner")


def test_a_runner_that_hangs_is_ended(no_process_left: None) -> None:
    pipe = fake("import time; time.sleep(1000)")
    with pytest.raises(DeviceError, match=r"gave no answer for 0 s"):
        pipe.receive(0.2)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit('it broke')", "ended with status 1: it broke"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("print('hello')", "said b'hello"),
        ('print(\'{"error": "no room"}\')', "the runner: no room"),
    ],
)
def test_runners_that_fail_are_quoted(program: str, message: str, no_process_left: None) -> None:
    pipe = fake(program)
    with pytest.raises(DeviceError, match=message):
        pipe.receive(10)
    pipe.close()


def test_a_program_that_is_missing() -> None:
    with pytest.raises(DeviceError, match="cannot start the runner: there is no program /nowhere/python"):
        Pipe(["/nowhere/python"], what="the runner")


def test_hostile_file_names(conv_net: Path, tmp_path: Path) -> None:
    names = ["-rf.onnx", "a b.onnx", "$(touch pwned).onnx", "'; touch pwned; '.onnx", "ünï.onnx"]
    paths = [Path(shutil.copy(conv_net, tmp_path / name)) for name in names]
    found = compare(paths, budget_s=0.1, processes=1)
    assert [one.model for one in found.measurements] == names
