"""The devices trp-bench can measure on, by the word before the colon of their specification."""

from __future__ import annotations

from contextlib import AbstractContextManager

from trp_export.bench.devices.adb import missing_adb, open_adb
from trp_export.bench.devices.arm import CPUS, missing_arm, open_arm
from trp_export.bench.devices.base import Device, Kind, Settings
from trp_export.bench.devices.local import open_local
from trp_export.bench.devices.ssh import missing_ssh, open_ssh
from trp_export.bench.devices.web import missing_web, open_web
from trp_export.errors import DeviceError

DEVICES: dict[str, Kind] = {
    "local": Kind("local", "fresh processes on this computer", lambda settings: "", open_local),
    "ssh": Kind("ssh:USER@HOST[:PORT]", "a board with python3 and onnxruntime", missing_ssh, open_ssh),
    "arm": Kind(
        f"arm[:{'|'.join(CPUS)}]", "ARM64 under qemu: outputs, instruction counts, never a time", missing_arm, open_arm
    ),
    "web": Kind("web[:node]", "WebAssembly in a headless Chromium, or in Node", missing_web, open_web),
    "adb": Kind("adb[:SERIAL]", "an Android phone, with a native runner", missing_adb, open_adb),
}


def open_device(specification: str, settings: Settings) -> AbstractContextManager[Device]:
    """The device that `specification` names, to be used in a `with`. Raises DeviceError."""
    word, _, argument = specification.partition(":")
    kind = DEVICES.get(word)
    if kind is None:
        known = ", ".join(kind.spelling for kind in DEVICES.values())
        raise DeviceError(
            f"no device {specification!r}. There are {known}; --list-devices shows which are usable here."
        )
    if missing := kind.missing(settings):
        raise DeviceError(f"device {word} is not usable here: {missing}")
    return kind.open(argument, settings)
