"""This computer: fresh processes of this Python, with onnxruntime as the user's own program would have it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from trp_export.bench.devices.base import Device, Ready, Settings, Start, Turn
from trp_export.bench.devices.pipe import Pipe
from trp_export.bench.devices.staging import MANIFEST, write_inputs
from trp_export.bench.environment import Machine
from trp_export.bench.models import BenchModel
from trp_export.bench.runners import python_runner
from trp_export.errors import DeviceError

RUNNER = Path(python_runner.__file__)
PROBE_TIMEOUT_S = 60.0
ROUNDS = (8, 20)  # the range of fewer than 8 values holds their median in less than 99 % of cases


class PipeRunner:
    """A runner behind a pipe, wherever that leads. `fetch(name)` returns a file of its scratch folder."""

    def __init__(self, pipe: Pipe, start: Start, fetch: Callable[[str], bytes]) -> None:
        self._pipe, self._start, self._fetch = pipe, start, fetch
        try:
            said = pipe.receive(start.timeout_s)
            self.ready = check_ready(said, start, pipe.what)
        except BaseException:
            pipe.close()
            raise

    def run(self, samples: int, inner: int) -> Turn:
        """See base.Runner."""
        reply = self.ask(f"run {samples} {inner}")
        return Turn(tuple(int(sample) for sample in reply["samples"]), int(reply["peak_bytes"]), {})

    def outputs(self) -> list[np.ndarray | None]:
        """See base.Runner."""
        return [self._read_output(value) for value in self.ask("outputs")["outputs"]]

    def events(self) -> list[dict[str, Any]]:
        """The kernels that ran since the start, by onnxruntime's own profile; what runs after is not profiled."""
        events = json.loads(self._fetch(self.ask("profile")["file"]))
        return [event for event in events if event.get("cat") == "Node"]

    def ask(self, command: str) -> dict[str, Any]:
        """See base.Runner."""
        return self._pipe.ask(command, self._start.timeout_s)

    def close(self) -> None:
        """See base.Runner."""
        self._pipe.close()

    def _read_output(self, described: dict[str, Any]) -> np.ndarray | None:
        if "skipped" in described:
            return None
        data = self._fetch(described["file"])
        return decode(data, described["element"], described["shape"])


def decode(data: bytes, element: int, shape: Sequence[int]) -> np.ndarray:
    """Raw bytes of an output as an array. Raises DeviceError when they are too few or too many."""
    dtype = np.dtype(python_runner.ELEMENTS[element])
    if len(data) != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise DeviceError(f"an output came back cut short: {len(data)} bytes for {dtype} {list(shape)}.")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def check_ready(said: dict[str, Any], start: Start, what: str) -> Ready:
    """The runner's first line as a value. Raises DeviceError where it is not what was asked for."""
    if said.get("protocol") != python_runner.PROTOCOL:
        raise DeviceError(
            f"{what} speaks protocol {said.get('protocol')}, this version {python_runner.PROTOCOL}.\n"
            f"Rebuild it: tools/build_native_runner.sh"
        )
    if said["provider"] != start.provider:
        raise DeviceError(f"{what} used {said['provider']} although {start.provider} was asked for.")
    affinity = tuple(said.get("affinity") or ())
    if start.cores and affinity and affinity != start.cores:
        raise DeviceError(f"{what} runs on cores {affinity} although {start.cores} were asked for.")
    return Ready(
        load_ms=float(said["load_ms"]),
        base_bytes=int(said["base_bytes"]),
        onnxruntime=str(said["onnxruntime"]),
        provider=str(said["provider"]),
        threads=int(said.get("threads", start.threads)),
    )


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
            return Machine.from_probe(pipe.receive(PROBE_TIMEOUT_S))
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
        argv = [sys.executable, str(RUNNER), "serve", str(case.path.resolve()), str(folder / MANIFEST)]
        argv += [*serve_arguments(start), "--scratch", str(folder)]
        pipe = Pipe(argv, what=f"the process that runs {case.label}")
        return PipeRunner(pipe, start, lambda name: (folder / name).read_bytes())


@contextmanager
def open_local(argument: str, settings: Settings) -> Iterator[Device]:
    """This computer as a device. Raises DeviceError for an argument, of which it takes none."""
    if argument:
        raise DeviceError(f"the local device takes no argument, got {argument!r}.")
    with tempfile.TemporaryDirectory(prefix="trp-bench.") as folder:
        yield LocalDevice(Path(folder))
