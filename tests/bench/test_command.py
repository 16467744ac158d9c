"""The command as a user meets it: whole output, exit codes, files, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest

from trp_export.bench import session
from trp_export.cli.bench import run

from .conftest import save_conv_net

FAST = ["--budget", "0.3", "--processes", "2"]


def test_table_profile_picture_and_samples(
    conv_net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_process_left: None
) -> None:
    wide = save_conv_net(tmp_path / "wide.onnx", width=16)
    picture, samples = tmp_path / "p.svg", tmp_path / "s.json"
    files = ["--plot", str(picture), "--save", str(samples)]
    assert run([str(conv_net), str(wide), *FAST, "--profile", *files]) == 0
    out = capsys.readouterr().out
    for text in ("net.onnx", "wide.onnx", "1 (reference)", "conv1", "fc", "GMAC/s", "outputs within"):
        assert text in out
    assert picture.read_text().startswith("<?xml")
    assert len(json.loads(samples.read_text())["models"][1]["processes"]) == 2


def test_json_alone_on_stdout(conv_net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(conv_net), str(conv_net), *FAST, "--json", "--profile"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["models"][1]["ratio"]["processes"] == 2
    assert document["models"][0]["summary"]["p50_ms"] > 0
    layers = {layer["name"]: layer for layer in document["profiles"][0]["layers"]}
    assert layers["conv1"]["macs"] == 8 * 3 * 9 * 16 * 16
    assert layers["conv2"]["macs"] == 8 * 8 * 9 * 16 * 16
    assert layers["fc"]["macs"] == 80


def test_against_an_earlier_run(conv_net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = str(tmp_path / "s.json")
    assert run([str(conv_net), *FAST, "--save", saved]) == 0
    picture = tmp_path / "p.png"
    assert run([str(conv_net), *FAST, "--against", saved, "--json", "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    document = json.loads(out[out.index("\n{") :])
    assert [model["model"] for model in document["models"]] == ["net.onnx (earlier)", "net.onnx"]
    values = json.loads(Path(saved).read_text())
    values["environment"] |= {"cpu": "Another CPU", "threads": 2}
    Path(saved).write_text(json.dumps(values))
    assert run([str(conv_net), *FAST, "--against", saved]) == 9
    message = capsys.readouterr().err
    assert "\n       cpu: Another CPU / " in message
    assert "threads: 2 / 1" in message
    assert "Measure both files in one run" in message


def test_a_run_on_other_values_is_refused(conv_net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same shape and type; files of earlier versions do not tell, and are compared."""
    saved = tmp_path / "s.json"
    assert run([str(conv_net), *FAST, "--save", str(saved)]) == 0
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), np.float32))
    other = [str(conv_net), *FAST, "--against", str(saved), "--input", str(tmp_path / "x.npy")]
    capsys.readouterr()
    assert run(other) == 9
    shown, message = capsys.readouterr()
    assert shown == ""
    assert "\n       input_values: " in message
    values = json.loads(saved.read_text())
    del values["environment"]["input_values"]
    saved.write_text(json.dumps(values))
    assert run(other) == 0


def test_an_unlike_run_is_shown_before_it_is_refused(
    conv_net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only a runner knows, its onnxruntime say, is compared after the measurement."""
    saved = tmp_path / "s.json"
    assert run([str(conv_net), *FAST, "--save", str(saved)]) == 0
    values = json.loads(saved.read_text())
    values["environment"]["onnxruntime"] = "0.1"
    saved.write_text(json.dumps(values))
    capsys.readouterr()
    assert run([str(conv_net), *FAST, "--against", str(saved)]) == 9
    shown, message = capsys.readouterr()
    assert "1 (reference)" in shown
    assert "onnxruntime: 0.1 / " in message


def test_no_output_takes_the_place_of_what_is_needed(
    conv_net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heavy = tmp_path / "heavy.onnx"
    onnx.save(onnx.load(conv_net), heavy, save_as_external_data=True, location="heavy.svg", size_threshold=0)
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), np.float32))
    earlier = tmp_path / "s.json"
    earlier.write_text("{}")
    (tmp_path / "config").write_text("Host board")
    (tmp_path / "link").symlink_to(conv_net)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    models = [str(conv_net), str(heavy), "--input", str(tmp_path / "x.npy"), *FAST]
    for option, name in [
        ("--save", conv_net.name),
        ("--save", "link"),
        ("--save", "x.npy"),
        ("--plot", "heavy.svg"),
        ("--save", "s.json"),
        ("--save", "config"),
    ]:
        given = [option, str(tmp_path / name), "--ssh-config", str(tmp_path / "config")]
        assert run([*models, *given] + (["--against", str(earlier)] if name == "s.json" else [])) == 2, name
        assert f"is read and would be written over; choose another place with {option}" in capsys.readouterr().err
    assert run([*models, "--save", str(tmp_path / "p.svg"), "--plot", str(tmp_path / "p.svg")]) == 2
    assert "is the same file as another output (--save)" in capsys.readouterr().err
    assert run([*models, "--save", str(tmp_path)]) == 7
    assert "is a folder; name a file in it with --save" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_picture_that_cannot_be_drawn_costs_no_table(
    conv_net: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "full").write_bytes(bytes(39_000))
    assert run([str(conv_net), *FAST, "--plot", str(small_disk / "p.png")]) == 7
    shown, message = capsys.readouterr()
    assert "1 (reference)" in shown
    assert "Choose another place with --plot" in message
    assert [path.name for path in small_disk.iterdir()] == ["full"]


def test_times_of_one_process_are_said_to_tell_nothing(conv_net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(conv_net), str(conv_net), "--budget", "0.3", "--processes", "1"]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert "x [unknown]  unknown  " in row


def test_input_files(conv_net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), np.float32))
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 3, 16, 16), np.float32))
    for name in ("x.npy", "x.npz"):
        assert run([str(conv_net), *FAST, "--input", str(tmp_path / name)]) == 0
    archive = (tmp_path / "x.npz").read_bytes()
    middle = len(archive) // 2
    flipped = archive[:middle] + bytes([archive[middle] ^ 1]) + archive[middle + 1 :]
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as text:
        text.writestr("x", "no array")
    bad = {"bad.npy": b"no", "empty.npz": b"", "cut.npz": archive[:middle], "flipped.npz": flipped}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    told = dict.fromkeys(bad, "is not an .npy or .npz file, or a damaged one")
    told |= {"text.npz": "a damaged one", "missing.npz": "does not exist"}
    for name, why in told.items():
        assert run([str(conv_net), *FAST, "--input", str(tmp_path / name)]) == 3, name
        message = capsys.readouterr().err
        assert str(tmp_path / name) in message
        assert why in message


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.onnx"], 3, "missing.onnx does not exist"),
        ([], 2, "name at least one ONNX file"),
        (["NET", "--device", "toaster"], 8, "no device 'toaster'"),
        (["NET", "--threads", "0"], 2, "threads must be at least 1"),
        (["NET", "--cores", "a,b"], 2, "--cores takes whole numbers"),
        (["NET", "--shape", "x"], 2, "--shape takes NAME="),
        (["NET", "--shape", "x=1,5,16,16"], 2, "does not fit"),
        (["NET", "--plot", "p.pdf"], 2, "--plot draws .png or .svg"),
        (["NET", "--save", "no/where/s.json"], 7, "no folder"),
        (["NET", "--against", "nope.json"], 3, "nope.json cannot be read"),
        (["NET", "--timeout", "-5"], 2, "timeout must be above 0 s"),
        (["NET", "--timeout", "nan"], 2, "timeout must be above 0 s"),
        (["NET", "--timeout", "1e11"], 2, "at most 1,000,000 s, not 1e+11"),
        (["NET", "--shape", "typo=1,3,16,16"], 2, "no input 'typo' to give a shape to; there are x"),
        (["NET", "--budget", "0"], 2, "budget must be above 0"),
        (["NET", "--budget", "x"], 2, "not a valid float"),
        (["NET", "--processes", "1000000000"], 2, "is not in the range"),
        (["NET", "--provider", "CUDA"], 8, "CUDA is not in this onnxruntime"),
        (["NET", "--profile", "--device", "arm"], 2, "--profile works on the local device"),
        (["--nonsense"], 2, "No such option"),
    ],
)
def test_errors_are_a_line_with_a_code(
    arguments: list[str], code: int, message: str, conv_net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([str(conv_net) if word == "NET" else word for word in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_help_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "Examples:" in capsys.readouterr().out
    assert run(["--list-devices"]) == 0
    assert "local" in capsys.readouterr().out
    assert run(["--list-devices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        "device": "local",
        "description": "fresh processes on this computer",
        "missing": None,
    }


def test_importing_the_api_is_light() -> None:
    heavy = ("torch", "scipy", "matplotlib", "onnxruntime")
    program = f"import sys, trp_export.bench; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_samples_and_ends_all_processes(
    number: signal.Signals, conv_net: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "s.json"
    program = "from trp_export.cli.bench import main; main()"
    argv = [sys.executable, "-c", program, str(conv_net), "--budget", "120", "--processes", "60", "--save", str(saved)]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not saved.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    descendants = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(number)
    _, error = child.communicate(timeout=30)
    assert child.returncode == 130
    assert f"the samples so far are in {saved}" in error
    assert "Traceback" not in error
    assert json.loads(saved.read_text())["models"][0]["processes"]
    _, alive = psutil.wait_procs(descendants, timeout=30)
    assert not alive


def test_an_older_file_is_not_taken_for_this_runs(
    conv_net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    saved = tmp_path / "s.json"
    saved.write_text("older")
    monkeypatch.setattr(session, "reference_outputs", interrupt)
    assert run([str(conv_net), "--save", str(saved)]) == 130
    assert "no samples were saved" in capsys.readouterr().err
    assert saved.read_text() == "older"
