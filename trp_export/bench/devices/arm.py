"""ARM64 onnxruntime under qemu-user: what it computes, which kernels it picks, and how many instructions that takes.

Emulated time says nothing about a device, so samples are guest instructions per inference. They repeat to 0.2 %
(docs/guide/devices.md), need no quiet machine, and are a cost, not a latency: memory and pipelines do not show in them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trp_export.bench.devices.base import Device, Settings, Start, Turn, cached
from trp_export.bench.devices.local import MOST_OUTPUT_BYTES, RUNNER, PipeRunner, fetch_below, serve_arguments
from trp_export.bench.devices.pipe import Pipe
from trp_export.bench.devices.staging import MANIFEST, write_inputs
from trp_export.bench.environment import Machine
from trp_export.bench.models import BenchModel
from trp_export.errors import DeviceError
from trp_export.system.scratch import Scratch

# Processors by qemu's name, with the part number their /proc/cpuinfo must show: onnxruntime believes that number,
# and runs into illegal instructions when it promises more than qemu emulates.
CPUS = {"cortex-a53": "0xd03", "cortex-a72": "0xd08", "cortex-a76": "0xd0b"}
DEFAULT = "cortex-a76"
PLUGIN = "libicount.so"
SLOWER = 10  # an emulated inference may be silent for that many times the usual limit


class ArmRunner:
    """A guest process; its samples are what the plugin counted between marks."""

    def __init__(self, inner: PipeRunner, counts: Path) -> None:
        self._inner, self._counts = inner, counts
        self.ready = replace(inner.ready, base_bytes=0)

    def run(self, samples: int, inner: int) -> Turn:
        """See base.Runner; one inference per sample, as counts need no averaging."""
        self._inner.run(samples, 1)
        lines = self._counts.read_text(encoding="utf-8").splitlines()[-samples:]
        counts = [json.loads(line) for line in lines]
        return Turn(tuple(count["instructions"] for count in counts), 0, counts[-1])

    def outputs(self, most_bytes: int = MOST_OUTPUT_BYTES) -> list[np.ndarray | None]:
        """See base.Runner."""
        return self._inner.outputs(most_bytes)

    def ask(self, command: str) -> dict[str, Any]:
        """See base.Runner."""
        return self._inner.ask(command)

    def close(self) -> None:
        """See base.Runner."""
        self._inner.close()


class ArmDevice:
    """See the module. `home` is what tools/setup_arm.py made."""

    unit = "instructions"
    shortest_sample_ns = 0.0
    warm_window_ns = 0.0
    rounds = (2, 2)

    def __init__(self, cpu: str, home: Path, folder: Path) -> None:
        self.name = f"arm:{cpu}"
        self._cpu, self._home, self._folder = cpu, home, folder
        self._cases: tuple[BenchModel, ...] = ()
        self._started = 0

    def probe(self) -> Machine:
        """See base.Device. The guest has one core; how the host is doing does not matter."""
        version = subprocess.run(["qemu-aarch64", "--version"], capture_output=True, text=True).stdout.split("\n")[0]
        found = [path.name.split("-")[1] for path in (self._home / "site").glob("onnxruntime-*.dist-info")]
        return Machine(
            cpu=f"{self._cpu} (emulated)",
            machine="aarch64",
            system=version.strip(),
            logical_cores=1,
            cores=(),
            load=0.0,
            can_pin=False,
            onnxruntime=found[0] if found else "unknown",
            providers=("CPUExecutionProvider",),
        )

    def stage(self, cases: Sequence[BenchModel]) -> None:
        """See base.Device."""
        self._cases = tuple(cases)
        for index, case in enumerate(cases):
            write_inputs(case, self._folder / str(index))

    def start(self, index: int, start: Start) -> ArmRunner:
        """See base.Device."""
        self._started += 1
        case, folder = self._cases[index], self._folder / str(index)
        counts = self._folder / f"counts{self._started}.jsonl"
        argv = [*qemu_command(self._home, self._cpu, counts), guest_python(self._home, self._cpu), str(RUNNER)]
        argv += ["serve", str(case.path.absolute()), str(folder / MANIFEST), "--marks", "--scratch", str(folder)]
        start = replace(start, timeout_s=start.timeout_s * SLOWER)
        pipe = Pipe([*argv, *serve_arguments(start)], what=f"the emulated {self._cpu} that runs {case.label}")
        return ArmRunner(PipeRunner(pipe, start, fetch_below(folder)), counts)


def qemu_command(home: Path, cpu: str, counts: Path | None) -> list[str]:
    """qemu with its options, up to the guest program. `-L` puts the processor's root over the host's files.

    Raises DeviceError for folders with a comma, where qemu takes its options apart.
    """
    for path, variable in ((home, "TRP_BENCH_CACHE"), (counts, "TMPDIR")):
        if "," in str(path):
            raise DeviceError(f"qemu cannot use {path}, as there is a comma in it; name another folder in {variable}.")
    plugin = ["-plugin", f"{home / PLUGIN},out={counts}"] if counts else []
    root = home / "roots" / cpu
    environment = {"PYTHONHOME": str(root / "usr"), "PYTHONPATH": str(home / "site"), "PYTHONHASHSEED": "0"}
    settings = [word for key, value in environment.items() for word in ("-E", f"{key}={value}")]
    return ["qemu-aarch64", "-cpu", cpu, "-seed", "1", "-L", str(root), *settings, *plugin]


def guest_python(home: Path, cpu: str) -> str:
    """The guest's Python. Raises DeviceError where there is none."""
    found = sorted((home / "roots" / cpu / "usr" / "bin").glob("python3.*[0-9]"))
    if not found:
        raise DeviceError(f"no ARM64 Python in {home}; run tools/setup_arm.py --force.")
    return str(found[0])


def missing_arm(settings: Settings) -> str:
    """What to install before emulation can be used."""
    if not shutil.which("qemu-aarch64"):
        return "no qemu-aarch64 program; install it (apt-get install qemu-user), then run tools/setup_arm.py"
    home = settings.arm or cached("arm")
    return "" if (home / "ready").is_file() else f"nothing in {home}; run tools/setup_arm.py"


@contextmanager
def open_arm(argument: str, settings: Settings) -> Iterator[Device]:
    """The emulated processor `argument`, cortex-a76 where empty. Raises DeviceError."""
    cpu = argument or DEFAULT
    if cpu not in CPUS:
        raise DeviceError(f"no processor {cpu!r} to emulate; there are {', '.join(CPUS)}.")
    with Scratch() as scratch:
        yield ArmDevice(cpu, (settings.arm or cached("arm")).absolute(), scratch.folder)
