"""A phone over adb: the real adb client against a daemon of our own, since no phone is at hand."""

from __future__ import annotations

import glob
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from onnx import parser

from trp_export.bench import Comparison, Settings, compare
from trp_export.bench.devices.adb import abi_of, choose
from trp_export.bench.devices.pipe import Pipe
from trp_export.bench.devices.staging import MANIFEST, write_inputs
from trp_export.bench.models import read_cases
from trp_export.bench.runners import python_runner
from trp_export.cli.bench import run
from trp_export.errors import DeviceError

from .conftest import free_port, runners_below

DAEMON = Path(__file__).with_name("adb_daemon.py")
SOURCE = Path(python_runner.__file__).with_name("native_runner.c")
LIBRARIES = glob.glob(str(Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime.so*"))  # noqa: PTH207
GATHER = """<ir_version: 8, opset_import: ["" : 17]>
net (float[2, 4] x, int64[1] index) => (float[1, 4] y) { y = Gather(x, index) }"""
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.skipif(not shutil.which("adb"), reason="needs the adb client: apt-get install adb"),
    pytest.mark.skipif(not COMPILER, reason="needs a C compiler for the native runner: apt-get install gcc"),
    pytest.mark.skipif(not LIBRARIES, reason="this onnxruntime wheel holds no libonnxruntime.so to push"),
]


@dataclass(frozen=True)
class Phone:
    """A running daemon: its serial, the settings to reach it, and the folder where it keeps its files."""

    serial: str
    settings: Settings
    folder: Path
    daemon: subprocess.Popen[bytes]

    def leftovers(self) -> list[str]:
        deadline = time.monotonic() + 10
        while (names := [path.name for path in self.folder.glob("trp-bench.*")]) and time.monotonic() < deadline:
            time.sleep(0.05)
        return names


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native runner, built for this computer, beside onnxruntime's library."""
    folder = tmp_path_factory.mktemp("native")
    assert COMPILER
    command = [COMPILER, "-std=gnu11", "-O2", "-Wall", "-Werror", str(SOURCE), "-o", str(folder / "trp-runner")]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    (folder / "libonnxruntime.so").symlink_to(LIBRARIES[0])
    return folder


@pytest.fixture(scope="module")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An adb server of our own: neither the user's keys nor a running server on the usual port are touched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for _ in range(3):
            patch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
            with suppress(subprocess.CalledProcessError, subprocess.TimeoutExpired):
                subprocess.run(["adb", "start-server"], check=True, capture_output=True, timeout=30)
                break
        else:
            pytest.fail("adb's server starts on none of three ports")
        yield
        subprocess.run(["adb", "kill-server"], check=True, capture_output=True, timeout=30)


def test_a_failure_in_the_middle_of_a_reply_is_told(native: Path, tmp_path: Path) -> None:
    """An index beyond the rows: onnxruntime notices in the first inference."""
    onnx.save(parser.parse_model(GATHER), tmp_path / "net.onnx")
    rows, index = np.zeros((2, 4), np.float32), np.array([7])
    write_inputs(replace(read_cases([tmp_path / "net.onnx"])[0], feeds=(rows, index)), tmp_path)
    runner, library = native / "trp-runner", native / "libonnxruntime.so"
    argv = [runner, "serve", library, tmp_path / "net.onnx", tmp_path / MANIFEST, tmp_path, "1"]
    pipe = Pipe([*map(str, argv)], what="the runner")
    assert pipe.receive(30)["provider"] == "CPUExecutionProvider"
    with pytest.raises(DeviceError, match=r"the runner: run: .*out of data bounds"):
        pipe.ask("run 3 1", 30)
    pipe.close()


def start_phone(folder: Path, native: Path, *options: str, abi: str = "x86_64") -> Phone:
    (folder / "bin").mkdir()
    getprop = folder / "bin" / "getprop"
    getprop.write_text(f'#!/bin/sh\ncase "$1" in *abi) echo {abi};; *model) echo "Test Phone";; esac\n')
    getprop.chmod(0o755)
    daemon = subprocess.Popen([sys.executable, str(DAEMON), str(folder), *options], stdout=subprocess.PIPE)
    assert daemon.stdout
    serial = f"127.0.0.1:{int(daemon.stdout.readline())}"
    subprocess.run(["adb", "connect", serial], check=True, capture_output=True, timeout=20)
    return Phone(serial, Settings(native=native, timeout_s=30), folder, daemon)


def stop(phone: Phone) -> None:
    subprocess.run(["adb", "disconnect", phone.serial], capture_output=True, timeout=20)
    phone.daemon.kill()
    phone.daemon.wait()
    assert phone.daemon.stdout
    phone.daemon.stdout.close()


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory, native: Path, adb_server: None) -> Iterator[Phone]:
    started = start_phone(tmp_path_factory.mktemp("phone"), native)
    yield started
    stop(started)


def test_measures_and_leaves_nothing(phone: Phone, conv_net: Path, no_process_left: None) -> None:
    spec = f"adb:{phone.serial}"
    found = compare([conv_net, conv_net], device=spec, settings=phone.settings, budget_s=0.5, processes=2)
    assert found.environment.device == spec
    assert "Test Phone" in found.environment.cpu
    for one in found.measurements:
        assert len(one.processes) == 2
        assert one.deviation is not None
        assert one.deviation.relative_l2 <= one.deviation.limit
        assert all(process.peak_bytes > process.base_bytes > 0 for process in one.processes)
    assert phone.leftovers() == []


def test_any_type_of_input(phone: Phone, any_types: Path) -> None:
    shapes = {"h": (2, 5), "x": (2, 4)}
    found = compare([any_types], device="adb", settings=phone.settings, budget_s=0.2, processes=1, shapes=shapes)
    assert found.measurements[0].deviation is not None
    assert found.measurements[0].deviation.relative_l2 <= 1e-6


def test_the_only_phone_needs_no_name(phone: Phone) -> None:
    assert choose("") == phone.serial
    with pytest.raises(DeviceError, match=r"no phone 'R58': adb sees 127\.0\.0\.1"):
        choose("R58")


def test_hostile_names_stay_here(phone: Phone, conv_net: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(conv_net, tmp_path / "$(touch pwned) '; touch pwned; '.onnx"))
    compare([model], device="adb", settings=phone.settings, budget_s=0.2, processes=1)
    assert not (phone.folder / "pwned").exists()
    with pytest.raises(DeviceError, match="no phone"):
        compare([conv_net], device="adb:x; touch pwned", settings=phone.settings)


def test_a_runner_for_another_processor(
    tmp_path: Path, native: Path, conv_net: Path, adb_server: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = start_phone(tmp_path, native, abi="arm64-v8a")
    try:
        assert run([str(conv_net), "--device", f"adb:{arm.serial}", "--native", str(native)]) == 8
        message = capsys.readouterr().err
        assert "built for x86_64" in message
        assert "runs arm64-v8a" in message
        assert arm.leftovers() == []
    finally:
        stop(arm)


def test_a_folder_whose_name_begins_with_a_dash(
    phone: Phone, native: Path, conv_net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an option of adb."""
    (tmp_path / "-a").symlink_to(native)
    monkeypatch.chdir(tmp_path)
    settings = replace(phone.settings, native=Path("-a"))
    assert compare([conv_net], device="adb", settings=settings, budget_s=0.2, processes=1).measurements[0].samples


def test_a_full_disk(tmp_path: Path, native: Path, conv_net: Path, adb_server: None) -> None:
    full = start_phone(tmp_path, native, "--full-after", "1000000")
    try:
        with pytest.raises(DeviceError, match=r"(?s)No space left on device.*Free some space"):
            compare([conv_net], device=f"adb:{full.serial}", settings=full.settings)
        assert full.leftovers() == []
    finally:
        stop(full)


def test_the_phone_goes_away(
    tmp_path: Path, native: Path, conv_net: Path, adb_server: None, no_process_left: None
) -> None:
    frail = start_phone(tmp_path, native)
    seen: list[Comparison] = []

    def unplug(share: float) -> None:
        frail.daemon.kill()

    spec = f"adb:{frail.serial}"
    with pytest.raises(DeviceError):
        compare([conv_net], device=spec, settings=frail.settings, budget_s=30, progress=unplug, checkpoint=seen.append)
    stop(frail)
    assert seen[-1].measurements[0].samples
    assert frail.leftovers() == []


def test_a_runner_of_another_version(phone: Phone, native: Path, conv_net: Path, tmp_path: Path) -> None:
    (tmp_path / "libonnxruntime.so").symlink_to(LIBRARIES[0])
    source = SOURCE.read_text().replace("PROTOCOL = 1", "PROTOCOL = 77")
    (tmp_path / "old.c").write_text(source)
    assert COMPILER
    command = [COMPILER, "-std=gnu11", str(tmp_path / "old.c"), "-o", str(tmp_path / "trp-runner")]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    with pytest.raises(DeviceError, match=r"(?s)speaks protocol 77, this version 1.*Rebuild it"):
        compare([conv_net], device="adb", settings=replace(phone.settings, native=tmp_path))
    assert phone.leftovers() == []


def test_other_files_are_no_runners(tmp_path: Path, conv_net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trp-runner").write_text("#!/bin/sh\n")
    with pytest.raises(DeviceError, match="not an ELF file"):
        abi_of(tmp_path / "trp-runner")
    assert run([str(conv_net), "--device", "adb", "--native", str(tmp_path)]) == 8
    assert f"no libonnxruntime.so in {tmp_path}" in capsys.readouterr().err


def test_a_hung_runner_is_killed_there(phone: Phone, conv_net: Path) -> None:
    from trp_export.bench.devices import open_device
    from trp_export.bench.devices.base import Start
    from trp_export.bench.devices.local import PipeRunner

    with open_device("adb", phone.settings) as device:
        device.stage(read_cases([conv_net]))
        runner = device.start(0, Start(1, (), "CPUExecutionProvider", 60))
        assert isinstance(runner, PipeRunner)
        runner._start = replace(runner._start, timeout_s=2)
        remote = runners_below(phone.folder, "../trp-runner")
        assert remote
        for process in remote:
            process.suspend()
        with pytest.raises(DeviceError, match="gave no answer"):
            runner.run(1, 1)
        runner.close()
    _, alive = psutil.wait_procs(remote, timeout=10)
    assert not alive
    assert phone.leftovers() == []
