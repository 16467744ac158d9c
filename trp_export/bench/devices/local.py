"""This computer: fresh processes of this Python, with onnxruntime as the user's own program would have it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from trp_export.bench.devices.base import Device, Settings, Start, Turn
from trp_export.bench.devices.pipe import Pipe
from trp_export.bench.devices.replies import (
    KernelTime,
    decode,
    read_kernel_times,
    read_machine,
    read_output_files,
    read_ready,
    read_turn,
)
from trp_export.bench.devices.staging import MANIFEST, write_inputs
from trp_export.bench.environment import Machine
from trp_export.bench.models import BenchModel
from trp_export.bench.runners import python_runner
from trp_export.errors import DeviceError, LoadError
from trp_export.system.files import read_bounded
from trp_export.system.json_fields import Fields
from trp_export.system.scratch import Scratch

RUNNER = Path(python_runner.__file__)
PROBE_TIMEOUT_S = 60.0
MOST_OUTPUT_BYTES = 1 << 31
MOST_PROFILE_BYTES = 1 << 28
ROUNDS = (8, 20)  # the range of fewer than 8 values holds their median in less than 99 % of cases


class PipeRunner:
    """A runner behind a pipe, wherever that leads.

    `fetch(name, most_bytes)` returns a file of its scratch folder.
    """

    def __init__(self, pipe: Pipe, start: Start, fetch: Callable[[str, int], bytes]) -> None:
        self._pipe, self._start, self._fetch = pipe, start, fetch
        try:
            self.ready = read_ready(pipe.receive(start.timeout_s), start, pipe.what)
        except BaseException:
            pipe.close()
            raise

    def run(self, samples: int, inner: int) -> Turn:
        """See base.Runner."""
        return read_turn(self.ask(f"run {samples} {inner}"), samples, self._pipe.what)

    def outputs(self, most_bytes: int = MOST_OUTPUT_BYTES) -> list[np.ndarray | None]:
        """See base.Runner."""
        files = read_output_files(self.ask("outputs"), most_bytes, self._pipe.what)
        return [None if file is None else decode(self._fetch(file.name, file.size_bytes), file) for file in files]

    def kernel_times(self) -> list[KernelTime]:
        """The kernels that ran since the start, by onnxruntime's profile; what runs after is not profiled."""
        reply = self.ask("profile")
        name = Fields(reply, f"the reply of {self._pipe.what}", DeviceError).text("file")
        return read_kernel_times(self._fetch(name, MOST_PROFILE_BYTES), self._pipe.what)

    def ask(self, command: str) -> dict[str, Any]:
        """See base.Runner."""
        return self._pipe.ask(command, self._start.timeout_s)

    def close(self) -> None:
        """See base.Runner."""
        self._pipe.close()


def fetch_below(folder: Path) -> Callable[[str, int], bytes]:
    """How a runner on this computer hands over a file of its scratch folder."""

    def fetch(name: str, most_bytes: int) -> bytes:
        try:
            return read_bounded(folder / name, most_bytes)
        except LoadError as error:
            raise DeviceError(str(error)) from error

    return fetch


def serve_arguments(start: Start) -> list[str]:
    """The options of a runner, the same for the Python and the native one, which knows no profile."""
    cores = ["--cores", ",".join(map(str, start.cores))] if start.cores else []
    profile = ["--profile", start.profile] if start.profile else []
    return ["--threads", str(start.threads), "--provider", start.provider, *cores, *profile]


class LocalDevice:
    """See the module. `folder` is a temporary folder that lives as long as the device is open."""

    name = "local"
    unit = "ns"
    shortest_sample_ns = 1e5
    warm_window_ns = 5e7
    rounds = ROUNDS

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cases: tuple[BenchModel, ...] = ()

    def probe(self) -> Machine:
        """See base.Device."""
        pipe = Pipe([sys.executable, str(RUNNER), "probe"], what="the local probe")
        try:
            return read_machine(pipe.receive(PROBE_TIMEOUT_S), pipe.what)
        finally:
            pipe.close()

    def stage(self, cases: Sequence[BenchModel]) -> None:
        """See base.Device."""
        self._cases = tuple(cases)
        for index, case in enumerate(cases):
            write_inputs(case, self._folder / str(index))

    def start(self, index: int, start: Start) -> PipeRunner:
        """See base.Device."""
        case, folder = self._cases[index], self._folder / str(index)
        argv = [sys.executable, str(RUNNER), "serve", str(case.path.absolute()), str(folder / MANIFEST)]
        argv += [*serve_arguments(start), "--scratch", str(folder)]
        pipe = Pipe(argv, what=f"the process that runs {case.label}")
        return PipeRunner(pipe, start, fetch_below(folder))


@contextmanager
def open_local(argument: str, settings: Settings) -> Iterator[Device]:
    """This computer as a device. Raises DeviceError for an argument, of which it takes none."""
    if argument:
        raise DeviceError(f"the local device takes no argument, got {argument!r}.")
    with Scratch() as scratch:
        yield LocalDevice(scratch.folder)
