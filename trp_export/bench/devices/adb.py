"""An Android phone over adb, running the native runner with a libonnxruntime.so that the user provides."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from trp_export.bench.devices.base import Device, Settings, Start, cached
from trp_export.bench.devices.pipe import run_bounded
from trp_export.bench.devices.replies import MOST_LINE_BYTES
from trp_export.bench.devices.shell import ShellDevice
from trp_export.bench.environment import Machine
from trp_export.errors import DeviceError

RUNNER, LIBRARY = "trp-runner", "libonnxruntime.so"
ABI_OF_ELF = {183: "arm64-v8a", 62: "x86_64", 40: "armeabi-v7a", 3: "x86"}


class AdbDevice(ShellDevice):
    """See the module. `native` holds the runner and the library."""

    parent = '"${TRP_BENCH_PARENT:-/data/local/tmp}"'

    def __init__(self, serial: str, settings: Settings, native: Path) -> None:
        super().__init__(settings)
        self._serial, self._native = serial, native
        self.name = f"adb:{serial}"

    def argv(self, command: str) -> list[str]:
        """See ShellDevice."""
        return ["adb", "-s", self._serial, "shell", "-T", command]

    def install(self) -> None:
        """See ShellDevice. Refuses files built for another processor."""
        abi = self.shell("getprop ro.product.cpu.abi").decode(errors="replace").strip()
        for name in (RUNNER, LIBRARY):
            built_for = abi_of(self._native / name)
            if abi and built_for != abi:
                raise DeviceError(
                    f"{self._native / name} is built for {built_for}, {self.name} runs {abi}.\n"
                    f"Build the runner for it with tools/build_native_runner.sh, take the library of that ABI."
                )
            self.put(self._native / name, name)
        self.shell(f"chmod 700 {self.folder}/{RUNNER}")

    def put(self, file: Path, name: str) -> None:
        """See ShellDevice; by adb's own file transfer."""
        limit_s = self.settings.timeout_s + file.stat().st_size / 1e6
        argv = ["adb", "-s", self._serial, "push", str(file.absolute()), f"{self.folder}/{name}"]
        try:
            done = run_bounded(argv, what=self.name, timeout_s=limit_s, most_bytes=MOST_LINE_BYTES)
        except DeviceError as error:
            raise DeviceError(self._no_copy(file, error)) from error
        if done.status:
            lines = done.output.decode(errors="replace").splitlines() + done.errors.split(" | ")
            said = [line for line in lines if "error" in line] or lines  # Its last line is about speed.
            raise DeviceError(self._no_copy(file, DeviceError(f"{self.name}: {' | '.join(said[-3:])}")))

    def runner_command(self, arguments: Sequence[str], start: Start | None) -> str:
        """See ShellDevice."""
        if start is None:
            return shlex.join([f"./{RUNNER}", "probe", f"./{LIBRARY}"])
        if start.provider != "CPUExecutionProvider":
            raise DeviceError(f"{self.name}: the native runner has the CPU provider only, not {start.provider}.")
        action, *files = arguments
        words = [f"../{RUNNER}", action, f"../{LIBRARY}", *files, str(start.threads)]
        return shlex.join([*words, ",".join(map(str, start.cores))] if start.cores else words)

    def probe(self) -> Machine:
        """See base.Device; with the name that Android gives the chip."""
        names = self.shell("getprop ro.product.model; getprop ro.soc.model").decode(errors="replace").split("\n")
        known = ", ".join(name.strip() for name in names if name.strip())
        machine = super().probe()
        return replace(machine, cpu=known or machine.cpu)


def abi_of(file: Path) -> str:
    """Android's name for the processor an ELF file is built for. Raises DeviceError for other files."""
    try:
        with file.open("rb") as stream:
            header = stream.read(20)
    except OSError as error:
        raise DeviceError(f"cannot read {file}: {error.strerror or error}; --native names its folder.") from error
    if header[:4] != b"\x7fELF":
        raise DeviceError(f"{file} is no program or library for Android (not an ELF file).")
    machine = int.from_bytes(header[18:20], "little")
    return ABI_OF_ELF.get(machine, f"processor type {machine}")


def devices() -> dict[str, str]:
    """Serial numbers that adb knows, with their state (`device`, `offline`, `unauthorized`). Raises DeviceError."""
    try:
        done = run_bounded(["adb", "devices"], what="adb", timeout_s=30, most_bytes=MOST_LINE_BYTES)
    except DeviceError as error:
        raise DeviceError(f"adb does not work: {error}") from error
    rows = [line.split("\t") for line in done.output.decode(errors="replace").splitlines() if "\t" in line]
    return {row[0]: row[1] for row in rows}


def choose(serial: str) -> str:
    """`serial`, or the only phone there is. Raises DeviceError where there is none, several, or it is not ready."""
    known = devices()
    if not serial:
        ready = [name for name, state in known.items() if state == "device"]
        if len(ready) > 1:
            raise DeviceError(f"several phones are connected: {', '.join(ready)}. Name one: adb:{ready[0]}")
        serial = ready[0] if ready else next(iter(known), "")
    if serial not in known:
        there = f"adb sees {', '.join(known)}" if known else "adb sees none; connect one and enable USB debugging"
        raise DeviceError(f"no phone {serial!r}: {there}." if serial else f"no phone: {there}.")
    if known[serial] != "device":
        raise DeviceError(f"phone {serial} is {known[serial]}; unlock it, accept this computer's key, or reconnect it.")
    return serial


def missing_adb(settings: Settings) -> str:
    """What to install before phones can be used."""
    if not shutil.which("adb"):
        return "no adb program; install it (apt-get install adb, or Android's platform tools)"
    native = settings.native or cached("native")
    absent = [name for name in (RUNNER, LIBRARY) if not (native / name).is_file()]
    return f"no {' and '.join(absent)} in {native}; see docs/guide/devices.md, then --native DIR" if absent else ""


@contextmanager
def open_adb(argument: str, settings: Settings) -> Iterator[Device]:
    """The phone with serial number `argument`, or the only one. Raises DeviceError."""
    with AdbDevice(choose(argument), settings, settings.native or cached("native")) as device:
        yield device
