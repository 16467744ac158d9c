"""A runner at the other end of a pipe: commands as lines to its stdin, JSON lines back, and a sure end."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from trp_export.errors import DeviceError

GRACE_S = 2.0


class Pipe:
    """A child process in a session of its own, so that Ctrl-C reaches the controller alone, which then ends it."""

    def __init__(self, argv: Sequence[str], *, what: str, folder: Path | None = None) -> None:
        self.what = what
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        apart: dict[str, Any] = (
            {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
            if os.name == "nt"
            else {"start_new_session": True}
        )
        try:
            self._process = subprocess.Popen(
                list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=folder, **apart
            )
        except OSError as error:
            self._log.close()
            raise DeviceError(f"cannot start {what}: {argv[0]}: {error.strerror or error}") from error
        self._replies: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=_forward, args=(self._process.stdout, self._replies), daemon=True)
        self._reader.start()

    def ask(self, command: str, timeout_s: float) -> dict[str, Any]:
        """Send one line, wait for its reply. Raises DeviceError when none comes or the reply is an error."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # if it is gone, what it said last is the better message
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
            raise DeviceError(self._epitaph())
        try:
            reply = json.loads(line)
        except ValueError:
            raise DeviceError(
                f"{self.what} said {line[:80]!r} instead of a reply; is another program in its place?"
            ) from None
        if "error" in reply:
            raise DeviceError(f"{self.what}: {reply['error']}")
        return dict(reply)

    def log(self) -> str:
        """What the process wrote on stderr so far."""
        if self._log.closed:
            return ""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

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
        self._reader.join(GRACE_S)
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None and not self._reader.is_alive():
                    stream.close()
        self._log.close()

    def _epitaph(self) -> str:
        try:
            status = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            status = 0
        last = [line.strip() for line in self.log().splitlines() if line.strip()][-3:]
        ending = f"was killed by signal {-status} (out of memory?)" if status < 0 else f"ended with status {status}"
        return f"{self.what} {ending}" + (": " + " | ".join(last) if last else ".")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a child that leads its own session with all its descendants, and wait for it."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _forward(stream: IO[bytes] | None, replies: queue.Queue[bytes]) -> None:
    """Move lines to a queue, which unlike a pipe can be waited on for a bounded time everywhere; b"" is the end."""
    assert stream is not None
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            replies.put(line)
    replies.put(b"")
