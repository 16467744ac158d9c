"""A runner at the other end of a pipe: commands as lines to its stdin, JSON lines back, and an end in bounded time.

What comes back is bounded in bytes as well as in time: a reply is a line of at most 1 MiB, and of what a program says
on stderr the last 16 KiB are kept.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trp_export.bench.devices.replies import MOST_LINE_BYTES, read_reply
from trp_export.errors import DeviceError
from trp_export.system.processes import ending_with_us

GRACE_S = 2.0
_MOST_WAITING = 64
_KEPT_BYTES = 1 << 14
_BLOCK = 1 << 16
_LAST_LINES = 3


class Pipe:
    """A child process in a session of its own, so that Ctrl-C reaches the controller alone, which then ends it."""

    def __init__(self, argv: Sequence[str], *, what: str, folder: Path | None = None) -> None:
        self.what = what
        self._process = _start(argv, what, subprocess.PIPE, folder)
        self._errors = _Tail(self._process.stderr)
        self._replies: queue.Queue[bytes] = queue.Queue(_MOST_WAITING)
        self._reader = threading.Thread(target=_forward, args=(self._process.stdout, self._replies), daemon=True)
        self._reader.start()

    def ask(self, command: str, timeout_s: float) -> dict[str, Any]:
        """Send one line, wait for its reply. Raises DeviceError when none comes or the reply is an error."""
        assert self._process.stdin is not None
        self._require_silence()
        with contextlib.suppress(OSError):  # If it is gone, what it said last is the better message.
            self._process.stdin.write(command.encode() + b"\n")
            self._process.stdin.flush()
        return self.receive(timeout_s)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next reply. Raises DeviceError: silent too long, ended, said something else, or reported an error."""
        try:
            line = self._replies.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise DeviceError(
                f"{self.what} gave no answer for {timeout_s:.0f} s and was ended; --timeout allows it more."
            ) from None
        if not line:
            raise DeviceError(self._last_words())
        if len(line) > MOST_LINE_BYTES:
            self.close()
            raise DeviceError(f"{self.what} sent a line of more than {MOST_LINE_BYTES:,} bytes and was ended.")
        return read_reply(line, self.what)

    def close(self) -> None:
        """Ask it to leave, then end its whole process group. Never raises."""
        process = self._process
        if process.poll() is None:
            try:
                assert process.stdin is not None
                process.stdin.write(b"quit\n")
                process.stdin.close()
                process.wait(GRACE_S)
            except (OSError, ValueError, subprocess.TimeoutExpired):
                end_group(process)
        self._drain()
        self._errors.close()
        with contextlib.suppress(OSError, ValueError):
            if process.stdin is not None:
                process.stdin.close()

    def _drain(self) -> None:
        """Let the reader come to its end, which it does not while the queue is full."""
        deadline = time.monotonic() + GRACE_S
        while self._reader.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._replies.get_nowait()
            self._reader.join(0.01)

    def _require_silence(self) -> None:
        """Nothing may have been said since the last reply; the end of the process is for `receive` to report."""
        with contextlib.suppress(queue.Empty):
            line = self._replies.get_nowait()
            if line:
                self.close()
                raise DeviceError(f"{self.what} said {line[:80]!r} without being asked and was ended.")
            self._replies.put(line)

    def _last_words(self) -> str:
        try:
            status = self._process.wait(GRACE_S)
            ending = f"was killed by signal {-status} (out of memory?)" if status < 0 else f"ended with status {status}"
            self._errors.close()  # Its last words may still be on their way.
        except subprocess.TimeoutExpired:
            ending = "closed its output"
        last = _last_lines(self._errors.text())
        return f"{self.what} {ending}" + (f": {last}" if last else ".")


@dataclass(frozen=True, slots=True)
class Finished:
    """What a program that has ended left: its status, what it printed, and the last lines of what it complained of."""

    status: int
    output: bytes
    errors: str


def run_bounded(
    argv: Sequence[str], *, what: str, timeout_s: float, most_bytes: int, stdin: IO[bytes] | None = None
) -> Finished:
    """Run a program that prints at most `most_bytes` within `timeout_s`. Raises DeviceError, and ends it, otherwise."""
    process = _start(argv, what, stdin or subprocess.DEVNULL, None)
    errors, output = _Tail(process.stderr), _Head(process, most_bytes)
    try:
        status = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{what} gave no answer for {timeout_s:.0f} s.") from None
    finally:
        if process.poll() is None:
            end_group(process)
        printed = output.close()
        errors.close()
    if len(printed) > most_bytes:
        raise DeviceError(f"{what} sent more than {most_bytes:,} bytes and was ended.")
    return Finished(status, printed, _last_lines(errors.text()))


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a child that leads its own session with all its descendants, and wait for it."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _start(argv: Sequence[str], what: str, stdin: Any, folder: Path | None) -> subprocess.Popen[bytes]:
    apart: dict[str, Any] = (
        {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
        if os.name == "nt"
        else {"start_new_session": True}
    )
    if not shutil.which(argv[0]):
        raise DeviceError(f"cannot start {what}: there is no program {argv[0]}")
    try:
        return subprocess.Popen(
            ending_with_us(argv), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, **apart
        )
    except OSError as error:
        raise DeviceError(f"cannot start {what}: {argv[0]}: {error.strerror or error}") from error


class _Tail:
    """The last bytes of a stream, which is read to its end meanwhile."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        assert stream is not None
        self._stream, self._kept = stream, b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def text(self) -> str:
        """What was kept, without a character that was cut in two."""
        return self._kept.decode(errors="replace")

    def close(self) -> None:
        """Wait for the end, but not for a descendant that keeps the stream open."""
        self._reader.join(GRACE_S)

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._stream:
            while block := os.read(self._stream.fileno(), _BLOCK):
                self._kept = (self._kept + block)[-_KEPT_BYTES:]


class _Head:
    """What a process prints; one that prints more than `most_bytes` is ended."""

    def __init__(self, process: subprocess.Popen[bytes], most_bytes: int) -> None:
        self._process, self._most = process, most_bytes
        self._read_bytes = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> bytes:
        """All that was printed, or a byte more than is allowed."""
        self._reader.join(GRACE_S)
        return bytes(self._read_bytes)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError), self._process.stdout as stream:
            while block := os.read(stream.fileno(), _BLOCK):
                self._read_bytes += block[: self._most + 1 - len(self._read_bytes)]
                if len(self._read_bytes) > self._most:
                    end_group(self._process)
                    return


def _last_lines(text: str) -> str:
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-_LAST_LINES:])


def _forward(stream: IO[bytes] | None, replies: queue.Queue[bytes]) -> None:
    """Move lines to a queue, which unlike a pipe can be waited on for a bounded time everywhere; b"" is the end.

    A line that is too long is the last one that is read. While the queue is full, the sender has to wait.
    """
    assert stream is not None
    with contextlib.suppress(OSError, ValueError), stream:
        while line := stream.readline(MOST_LINE_BYTES + 1):
            replies.put(line)
            if len(line) > MOST_LINE_BYTES:
                return
    replies.put(b"")
