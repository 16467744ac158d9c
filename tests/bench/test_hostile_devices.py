"""A device that says anything at all: bounded in bytes and time, and refused with a DeviceError."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.bench.devices.base import Start
from trp_export.bench.devices.local import PipeRunner
from trp_export.bench.devices.pipe import Pipe, run_bounded
from trp_export.bench.devices.replies import (
    read_kernel_times,
    read_machine,
    read_output_files,
    read_ready,
    read_reply,
    read_turn,
)
from trp_export.bench.devices.shell import LEASE
from trp_export.bench.environment import Machine
from trp_export.bench.runners import python_runner
from trp_export.errors import DeviceError

START = Start(1, (), "CPUExecutionProvider", 5.0)
READY = {
    "protocol": python_runner.PROTOCOL,
    "load_ms": 1.5,
    "base_bytes": 10,
    "onnxruntime": "1.30",
    "provider": "CPUExecutionProvider",
    "affinity": [0],
}
TURN = {"samples": [5, 6], "peak_bytes": 7}
OUTPUTS = {"outputs": [{"file": "output0.bin", "element": 1, "shape": [1, 2]}, {"skipped": "list"}]}
CORE = {"core": 0, "siblings": "0", "capacity": 0, "governor": "", "max_khz": 0}
PROBE = {
    "cpu": "a",
    "machine": "b",
    "system": "c",
    "logical_cores": 1,
    "cores": [CORE],
    "load": 0.5,
    "can_pin": True,
    "onnxruntime": "1.30",
    "providers": ["CPUExecutionProvider"],
}
EVENT = {
    "cat": "Node",
    "name": "conv_kernel_time",
    "dur": 5,
    "args": {"op_name": "Conv", "node_index": "3", "output_type_shape": [{"float": [1, 2]}]},
}
READERS = {
    "ready": (READY, lambda reply: read_ready(reply, START, "the board")),
    "turn": (TURN, lambda reply: read_turn(reply, 2, "the board")),
    "outputs": (OUTPUTS, lambda reply: read_output_files(reply, 100, "the board")),
    "probe": (PROBE, lambda reply: read_machine(reply, "the board")),
    "profile": (EVENT, lambda event: read_kernel_times(json.dumps([event]).encode(), "the board")),
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def paths(value: Any) -> list[tuple[Any, ...]]:
    """Where values lie in a document."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key in keys for rest in paths(value[key]))]


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the document with another value there."""
    if not path:
        return value
    copy = json.loads(json.dumps(document))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


@pytest.mark.parametrize("kind", READERS)
def test_sound_replies_are_read(kind: str) -> None:
    reply, read = READERS[kind]
    assert read(reply)


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
def test_any_other_value_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    """The reply passes through a line of JSON, as it does on its way from a device."""
    reply, read = READERS[kind]
    spoiled = replaced(reply, data.draw(st.sampled_from(paths(reply))), data.draw(VALUES))
    try:
        read(read_reply(json.dumps(spoiled).encode(), "the board"))
    except DeviceError:
        return


@pytest.mark.parametrize("kind", READERS)
def test_a_missing_field_is_named(kind: str) -> None:
    reply, read = READERS[kind]
    for field in set(reply) - {"affinity", "cat", "protocol", "name"}:
        with pytest.raises(DeviceError, match=field):
            read({name: value for name, value in reply.items() if name != field})


@pytest.mark.parametrize(
    "line",
    [
        b"[1,2]",
        b"5",
        b"null",
        b'"error"',
        b"[" * 10_000,
        b"{",
        b"\xff",
        b"{}x",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a":1,"a":2}',
    ],
)
def test_a_line_that_is_not_an_object_is_refused(line: bytes) -> None:
    with pytest.raises(DeviceError, match="the board"):
        read_reply(line, "the board")


@pytest.mark.parametrize("samples", [[], [1], [1, 2, 3], [0, 1], [-5, 1], [1.5, 2], ["1", 2], [10**400, 1], [1, True]])
def test_samples_are_as_many_positive_whole_numbers_as_asked_for(samples: list[Any]) -> None:
    with pytest.raises(DeviceError):
        read_turn({"samples": samples, "peak_bytes": 1}, 2, "the board")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"file": "../x", "element": 1, "shape": [1]}, "not a plain name"),
        ({"file": "x; rm -rf /", "element": 1, "shape": [1]}, "not a plain name"),
        ({"file": "x", "element": 99, "shape": [1]}, "unknown type 99"),
        ({"file": "x", "element": 1, "shape": [26]}, "at most 100 were expected"),
        ({"file": "x", "element": 1, "shape": [10**18] * 60}, "at most 100 were expected"),
        ({"file": "x", "element": 1, "shape": [1] * 65}, "at most 64 values"),
    ],
)
def test_outputs_are_bounded_before_they_are_fetched(output: dict[str, Any], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        read_output_files({"outputs": [output]}, 100, "the board")


def test_all_outputs_together_are_bounded() -> None:
    output = {"file": "x", "element": 1, "shape": [10]}
    assert len(read_output_files({"outputs": [output] * 2}, 80, "the board")) == 2
    with pytest.raises(DeviceError, match="its outputs have 120 bytes; at most 80 were expected"):
        read_output_files({"outputs": [output] * 3}, 80, "the board")


def pipe(program: str) -> Pipe:
    return Pipe([sys.executable, "-c", f"import sys, time\n{program}"], what="the runner")


def memory() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("while True: sys.stdout.write('a' * 65536)", "sent a line of more than"),
        ("while True: sys.stderr.write('a' * 65536)", "gave no answer"),
        ("time.sleep(60)", "gave no answer"),
        ("import os; os.close(1); time.sleep(60)", "closed its output"),
        ("print('hello')", "instead of a reply"),
        ("print('{\"error\": \"' + 'x' * 100 + '\"}')", "the runner: xxx"),
        ("sys.exit('last words')", "ended with status 1: last words"),
    ],
)
def test_a_runner_is_bounded_in_bytes_and_time(program: str, message: str, no_process_left: None) -> None:
    runner, before = pipe(program), memory()
    try:
        with pytest.raises(DeviceError, match=re.escape(message)):
            runner.receive(2)
        assert memory() - before < 100_000_000
    finally:
        runner.close()


def test_a_flood_of_replies_is_not_kept(no_process_left: None) -> None:
    runner, before = pipe("while True: print('{\"a\": \"' + 'x' * 10_000 + '\"}')"), memory()
    runner.receive(10)
    time.sleep(1)
    assert memory() - before < 100_000_000
    with pytest.raises(DeviceError, match="without being asked"):
        runner.ask("run 1 1", 5)
    runner.close()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("while True: sys.stdout.write('a' * 65536)", "sent more than 1,000 bytes"),
        ("print('a' * 1000)", "sent more than 1,000 bytes"),
        ("time.sleep(60)", "gave no answer for 2 s"),
        ("while True: sys.stderr.write('a' * 65536)", "gave no answer for 2 s"),
    ],
)
def test_a_program_is_bounded_in_bytes_and_time(program: str, message: str, no_process_left: None) -> None:
    before = memory()
    argv = [sys.executable, "-c", f"import sys, time\n{program}"]
    with pytest.raises(DeviceError, match=message):
        run_bounded(argv, what="the board", timeout_s=2, most_bytes=1000)
    assert memory() - before < 100_000_000


def test_a_program_within_its_bounds_is_read() -> None:
    argv = [sys.executable, "-c", "import sys; print('x' * 999); sys.exit('one\\ntwo')"]
    done = run_bounded(argv, what="the board", timeout_s=30, most_bytes=1000)
    assert (done.status, done.output, done.errors) == (1, b"x" * 999 + b"\n", "one | two")


def test_a_runner_that_sends_too_much_is_refused(tmp_path: Path) -> None:
    ready, outputs = json.dumps(READY), json.dumps({"outputs": [{"file": "a", "element": 1, "shape": [1000]}]})
    runner = PipeRunner(
        pipe(f"print({ready!r}, flush=True); input(); print({outputs!r})"), START, lambda name, most: b""
    )
    with pytest.raises(DeviceError, match=r"4,000 bytes; at most 100 were expected"):
        runner.outputs(100)
    runner.close()


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_a_lease_removes_what_a_lost_lease_left(tmp_path: Path) -> None:
    """A board that lost power: its folder is removed by the next lease, if it is a day old and no shell holds it."""
    folders = {name: tmp_path / f"trp-bench.{name}" for name in ("lost", "held", "young")}
    other = tmp_path / "other"
    for folder in (*folders.values(), other):
        folder.mkdir()
    (folders["held"] / "lease").write_text(str(os.getpid()))
    for folder in (folders["lost"], folders["held"], other):
        os.utime(folder, (time.time() - 2 * 86400,) * 2)
    lease = Pipe(["sh", "-c", LEASE.format(parent=str(tmp_path))], what="the board")
    leased = Path(lease.receive(30)["folder"])
    assert sorted(tmp_path.iterdir()) == sorted([folders["held"], folders["young"], other, leased])
    lease.close()
    assert not leased.exists()


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs /proc")
def test_a_lease_ends_its_runners_and_no_process_that_took_over_a_number(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    lease = Pipe(["sh", "-c", LEASE.format(parent=str(tmp_path / "link"))], what="the board")
    leased = Path(lease.receive(30)["folder"])
    (leased / "0").mkdir()
    runner, other = (subprocess.Popen(["sleep", "60"], cwd=folder) for folder in (leased / "0", tmp_path / "real"))
    for number, process in enumerate((other, runner)):
        (leased / f"{number}.pid").write_text(f"{process.pid}\n")
    try:
        lease.close()
        assert runner.wait(10) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (runner, other):
            process.kill()
            process.wait()


def test_a_machine_without_a_build_is_read() -> None:
    """The native runner does not tell."""
    machine = read_machine(PROBE, "the phone")
    assert isinstance(machine, Machine)
    assert (machine.build, machine.features) == ("", "")
