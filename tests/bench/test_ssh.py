"""A board over ssh: a real sshd on loopback with keys and a port of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from trp_export.bench import Comparison, Settings, compare
from trp_export.bench.devices import open_device
from trp_export.bench.devices.arm import guest_python, missing_arm, qemu_command
from trp_export.bench.devices.base import Start, cached
from trp_export.bench.devices.local import PipeRunner
from trp_export.bench.devices.ssh import parse_target
from trp_export.bench.models import read_cases
from trp_export.bench.profile import profile_and_time
from trp_export.cli.bench import run
from trp_export.errors import DeviceError

from .conftest import free_port, runners_below

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
pytestmark = pytest.mark.skipif(
    not (Path(SSHD).exists() and shutil.which("ssh") and hasattr(os, "geteuid")),
    reason="needs sshd and ssh: apt-get install openssh-server openssh-client",
)


@dataclass(frozen=True)
class Board:
    """A running sshd, the specification that reaches it, and the folder its TMPDIR points to."""

    spec: str
    settings: Settings
    tmp: Path
    sshd: subprocess.Popen[bytes]

    def leftovers(self) -> list[str]:
        deadline = time.monotonic() + 10
        while (names := [path.name for path in self.tmp.glob("trp-bench.*")]) and time.monotonic() < deadline:
            time.sleep(0.05)
        return names


def start_sshd(folder: Path, force: str = "") -> Board:
    """`force` is a shell prefix for every command, a board's peculiarity."""
    try:
        Path("/run/sshd").mkdir(exist_ok=True)
    except OSError as error:
        pytest.skip(f"sshd wants a folder /run/sshd, which cannot be made here: {error.strerror}")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    tmp = folder / "tmp"
    tmp.mkdir()
    prefix = f"export TMPDIR={shlex.quote(str(tmp))}; {force}"
    (folder / "forced").write_text(f'#!/bin/sh\n{prefix}\neval "$SSH_ORIGINAL_COMMAND"\n')
    (folder / "forced").chmod(0o755)
    (folder / "sshd_config").write_text(
        f"""ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
ForceCommand {folder}/forced
"""
    )
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user\nIdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile {folder}/known\n"
    )
    sshd, port = listening_sshd(folder)
    settings = Settings(ssh_config=folder / "ssh_config", remote_python=sys.executable, timeout_s=30)
    user = psutil.Process().username()
    return Board(f"ssh:{user}@127.0.0.1:{port}", settings, tmp, sshd)


def listening_sshd(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Started with the configuration in `folder`, and the port where it listens."""
    log = folder / "sshd.log"
    for _ in range(3):
        port = free_port()
        argv = [SSHD, "-D", "-e", "-p", str(port), "-f", str(folder / "sshd_config")]
        with log.open("wb") as stream:
            sshd = subprocess.Popen(argv, stderr=stream, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while sshd.poll() is None and time.monotonic() < deadline:
            if "Server listening" in log.read_text():
                return sshd, port
            time.sleep(0.05)
        if sshd.poll() is None:
            stop(sshd)
            pytest.fail(f"sshd does not listen after 30 s: {log.read_text()[-200:]}")
        if "in use" not in log.read_text():
            pytest.skip(f"sshd does not start here: {log.read_text()[-200:]}")
    pytest.fail("sshd got none of three ports")


def stop(sshd: subprocess.Popen[bytes]) -> None:
    sshd.terminate()
    sshd.wait(10)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    started = start_sshd(tmp_path_factory.mktemp("sshd"))
    yield started
    stop(started.sshd)


def test_measures_and_leaves_nothing(board: Board, conv_net: Path, no_process_left: None) -> None:
    found = compare([conv_net, conv_net], device=board.spec, settings=board.settings, budget_s=0.5, processes=2)
    assert found.environment.device == board.spec
    assert found.environment.unit == "ns"
    for one in found.measurements:
        assert len(one.processes) == 2
        assert one.deviation is not None
        assert one.deviation.relative_l2 <= one.deviation.limit
    assert board.leftovers() == []


def test_a_board_is_profiled_layer_by_layer(board: Board, conv_net: Path, no_process_left: None) -> None:
    (case,) = read_cases([conv_net])
    with open_device(board.spec, board.settings) as device:
        device.stage([case])
        found, total_ms = profile_and_time(device, 0, case, Start(1, (), "CPUExecutionProvider", 30.0), 1e7)
    assert {layer.name for layer in found.layers} >= {"conv1", "fc"}
    assert all(layer.ms > 0 for layer in found.layers)
    assert total_ms > 0
    assert board.leftovers() == []


def test_hostile_names_stay_here(board: Board, conv_net: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(conv_net, tmp_path / "$(touch pwned) '; touch pwned; '.onnx"))
    found = compare([model], device=board.spec, settings=board.settings, budget_s=0.2, processes=1)
    assert found.measurements[0].model == model.name
    settings = replace(board.settings, remote_python="python3; touch /tmp/pwned-by-test #")
    with pytest.raises(DeviceError, match="ended with status 127"):
        compare([conv_net], device=board.spec, settings=settings, budget_s=0.2, processes=1)
    assert not Path("/tmp/pwned-by-test").exists()
    assert board.leftovers() == []


@pytest.mark.parametrize(
    "target", ["", "-oProxyCommand=x", "a@-b", "pi@host:port", "pi@ho st", "pi;x@host", "pi@h:22:3"]
)
def test_hostile_targets_are_refused(target: str, conv_net: Path) -> None:
    with pytest.raises(DeviceError, match="not a place ssh can go to"):
        parse_target(target)


def test_targets() -> None:
    assert parse_target("pi@raspberrypi.local") == ("pi", "raspberrypi.local", "")
    assert parse_target("me@[::1]:2222") == ("me", "::1", "2222")
    assert parse_target("alias") == ("", "alias", "")


def test_nobody_there(conv_net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(conv_net), "--device", "ssh:nobody@127.0.0.1:1", "--timeout", "20"]) == 8
    assert "Connection refused" in capsys.readouterr().err


def test_a_board_without_onnxruntime(board: Board, conv_net: Path, tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(DeviceError, match="Install it on the device"):
        compare([conv_net], device=board.spec, settings=replace(board.settings, remote_python=str(bare)))
    assert board.leftovers() == []


def test_a_full_disk(tmp_path: Path, conv_net: Path) -> None:
    full = start_sshd(tmp_path, force="ulimit -f 4")
    try:
        with pytest.raises(DeviceError, match="Free some space"):
            compare([conv_net], device=full.spec, settings=full.settings)
        assert full.leftovers() == []
    finally:
        stop(full.sshd)


def test_the_board_goes_away(tmp_path: Path, conv_net: Path, no_process_left: None) -> None:
    frail = start_sshd(tmp_path)
    seen: list[Comparison] = []

    def pull_the_plug(share: float) -> None:
        for process in [*psutil.Process(frail.sshd.pid).children(), psutil.Process(frail.sshd.pid)]:
            process.kill()

    with pytest.raises(DeviceError):
        compare(
            [conv_net],
            device=frail.spec,
            settings=frail.settings,
            budget_s=30,
            progress=pull_the_plug,
            checkpoint=seen.append,
        )
    frail.sshd.wait()
    assert seen[-1].measurements[0].samples
    assert frail.leftovers() == []


@pytest.mark.slow
def test_a_hung_runner_is_killed_there(board: Board, conv_net: Path, tmp_path: Path) -> None:
    with open_device(board.spec, board.settings) as device:
        device.stage(read_cases([conv_net]))
        runner = device.start(0, Start(1, (), "CPUExecutionProvider", 60))
        assert isinstance(runner, PipeRunner)
        runner._start = replace(runner._start, timeout_s=2)
        remote = runners_below(board.tmp, "../runner.py")
        assert remote
        for process in remote:
            process.suspend()
        with pytest.raises(DeviceError, match="gave no answer"):
            runner.run(1, 1)
        runner.close()
    _, alive = psutil.wait_procs(remote, timeout=10)
    assert not alive
    assert board.leftovers() == []


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_arm(Settings())), reason=f"arm is not set up: {missing_arm(Settings())}")
def test_a_board_with_another_processor(board: Board, conv_net: Path, tmp_path: Path) -> None:
    """The whole way to a Raspberry Pi, with an emulated Python at its end; its times mean nothing."""
    home = cached("arm")
    python = tmp_path / "python3"
    command = [*qemu_command(home, "cortex-a72", None), guest_python(home, "cortex-a72")]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    python.chmod(0o755)
    settings = replace(board.settings, remote_python=str(python), timeout_s=120)
    found = compare([conv_net], device=board.spec, settings=settings, budget_s=1, processes=1)
    assert found.environment.machine == "aarch64"
    assert found.environment.cpu == "ARM part 0xd08"
    assert found.measurements[0].deviation is not None
    assert found.measurements[0].deviation.relative_l2 < 1e-5
