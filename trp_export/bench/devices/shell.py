"""A device behind a shell (ssh, adb): a leased folder, files, processes, and a clean-up that survives a lost line.

The lease is one remote shell that makes the folder and then waits for the end of its input. However the connection
ends, it kills the runners whose ids lie in the folder and removes it. Names on the device are all our own; whatever
else is put into a command goes through shlex.quote.
"""

from __future__ import annotations

import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Self

from trp_export.bench.devices.base import Settings, Start
from trp_export.bench.devices.local import PROBE_TIMEOUT_S, ROUNDS, PipeRunner
from trp_export.bench.devices.pipe import Pipe, run_bounded
from trp_export.bench.devices.replies import MOST_LINE_BYTES, read_machine
from trp_export.bench.devices.staging import MANIFEST, portable_files, write_inputs
from trp_export.bench.environment import Machine
from trp_export.bench.models import BenchModel
from trp_export.errors import DeviceError
from trp_export.system.scratch import Scratch

SLOWEST_BYTES_PER_S = 200_000  # a transfer slower than this counts as hung
# First folders are removed that a lost lease left (a board that lost power): ours, over a day old, no shell behind.
# At the end, a runner may have ended long ago and its number be another's: what works elsewhere, by /proc, stays.
LEASE = """umask 077
for o in {parent}/trp-bench.*; do
  [ -n "$(find "$o" -prune -type d -user "$(id -u)" -mtime +0 2>/dev/null)" ] || continue
  kill -0 "$(cat "$o/lease" 2>/dev/null)" 2>/dev/null || rm -rf "$o"
done
d=$(mktemp -d {parent}/trp-bench.XXXXXX) || exit 1
r=$(cd "$d" && pwd -P)
trap 'for f in "$d"/*.pid; do
  p=$(cat "$f") && case $(readlink "/proc/$p/cwd" || echo "$r/") in "$r"/*) kill -9 "$p";; esac
done 2>/dev/null; rm -rf "$d"' EXIT
trap 'exit 1' HUP INT TERM PIPE
echo $$ >"$d/lease"
printf '{{"folder": "%s"}}\\n' "$d"
cat >/dev/null
"""


class ShellDevice(ABC):
    """What ssh and adb share. A context manager: entering takes the lease, leaving gives it back."""

    name: str
    unit = "ns"
    shortest_sample_ns = 1e5
    warm_window_ns = 5e7
    rounds = ROUNDS
    parent: str  # a shell expression for the folder to make ours in

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._cases: tuple[BenchModel, ...] = ()
        self._started = 0

    @abstractmethod
    def argv(self, command: str) -> list[str]:
        """The local program and arguments that run `command` in the device's shell."""

    @abstractmethod
    def runner_command(self, arguments: Sequence[str], start: Start | None) -> str:
        """The quoted command for `probe` (no `start`) or `serve MODEL INPUTS SCRATCH`, run inside a case's folder."""

    @abstractmethod
    def install(self) -> None:
        """Bring the runner to the leased folder. Raises DeviceError."""

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._local = undo.enter_context(Scratch()).folder
            self._lease = Pipe(self.argv(LEASE.format(parent=self.parent)), what=self.name)
            undo.callback(self._lease.close)
            self.folder = self._leased()
            self.install()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    def _leased(self) -> str:
        folder = str(self._lease.receive(self.settings.timeout_s).get("folder"))
        if not re.fullmatch(r"/[\w./-]*/trp-bench\.\w+", folder):
            raise DeviceError(f"{self.name} made an unexpected folder: {folder!r}.")
        return folder

    def shell(
        self, command: str, *, stdin: IO[bytes] | None = None, size_bytes: int = 0, most_bytes: int = MOST_LINE_BYTES
    ) -> bytes:
        """Run `command` there, return its output of at most `most_bytes`.

        Raises DeviceError when it fails, prints more, or takes too long for the `size_bytes` that it transfers.
        """
        limit_s = self.settings.timeout_s + size_bytes / SLOWEST_BYTES_PER_S
        done = run_bounded(self.argv(command), what=self.name, timeout_s=limit_s, most_bytes=most_bytes, stdin=stdin)
        if done.status:
            raise DeviceError(f"{self.name}: {done.errors or 'a command'} (status {done.status}).")
        return done.output

    def put(self, file: Path, name: str) -> None:
        """Copy a local file to `name` in the leased folder. Raises DeviceError, also on a full disk there."""
        size = file.stat().st_size
        with file.open("rb") as stream:
            try:
                self.shell(f"cat >{shlex.quote(f'{self.folder}/{name}')}", stdin=stream, size_bytes=size)
            except DeviceError as error:
                raise DeviceError(self._no_copy(file, error)) from error

    def get(self, name: str, most_bytes: int) -> bytes:
        """The content of `name` in the leased folder. Raises DeviceError for more than `most_bytes`."""
        command = f"cat {shlex.quote(f'{self.folder}/{name}')}"
        return self.shell(command, size_bytes=most_bytes, most_bytes=most_bytes)

    def probe(self) -> Machine:
        """See base.Device."""
        pipe = Pipe(self.argv(f"cd {self.folder} && {self.runner_command(['probe'], None)}"), what=self.name)
        try:
            return read_machine(pipe.receive(max(PROBE_TIMEOUT_S, self.settings.timeout_s)), self.name)
        finally:
            pipe.close()

    def stage(self, cases: Sequence[BenchModel]) -> None:
        """See base.Device."""
        self._cases = tuple(cases)
        for index, case in enumerate(cases):
            local = self._local / str(index)
            files = [*portable_files(case, local), *((file, file.name) for file in write_inputs(case, local))]
            self.shell(f"mkdir {self.folder}/{index}")
            for file, name in files:
                self.put(file, f"{index}/{name}")

    def start(self, index: int, start: Start) -> PipeRunner:
        """See base.Device."""
        self._started += 1
        serve = self.runner_command(["serve", "model.onnx", MANIFEST, "."], start)
        command = f"cd {self.folder}/{index} && echo $$ >../{self._started}.pid && exec {serve}"
        pipe = Pipe(self.argv(command), what=f"the runner of {self._cases[index].label} on {self.name}")
        return PipeRunner(pipe, start, lambda name, most_bytes: self.get(f"{index}/{name}", most_bytes))

    def _no_copy(self, file: Path, error: DeviceError) -> str:
        size = file.stat().st_size / 1e6
        return f"cannot copy {file.name} ({size:.1f} MB) there: {error}\nIs its disk full? Free some space."
