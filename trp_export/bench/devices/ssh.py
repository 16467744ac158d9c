"""A board over ssh, with nothing on it but python3 and onnxruntime. The lease's connection carries all others."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trp_export.bench.devices.base import Device, Settings, Start
from trp_export.bench.devices.local import RUNNER, serve_arguments
from trp_export.bench.devices.shell import ShellDevice
from trp_export.errors import DeviceError
from trp_export.system.scratch import Scratch

HOST = re.compile(r"(?:([\w.][\w.-]*)@)?([\w.][\w.-]*|\[[0-9a-fA-F:]+\])(?::(\d{1,5}))?", re.ASCII)
OPTIONS = {
    "BatchMode": "yes",  # never ask for a password
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
}


class SshDevice(ShellDevice):
    """See the module. `control` is a short path for the socket that shares the first connection."""

    parent = '"${TMPDIR:-/tmp}"'

    def __init__(self, target: str, settings: Settings, control: Path) -> None:
        super().__init__(settings)
        user, host, port = parse_target(target)
        options = dict(OPTIONS)
        if os.name != "nt":  # OpenSSH for Windows cannot share connections
            options |= {"ControlMaster": "auto", "ControlPath": str(control / "s"), "ControlPersist": "no"}
        self._prefix = ["ssh", "-T", *(f"-o{key}={value}" for key, value in options.items())]
        self._prefix += ["-F", str(settings.ssh_config)] if settings.ssh_config else []
        self._prefix += ["-l", user] if user else []
        self._prefix += ["-p", port] if port else []
        self._prefix += ["--", host]
        self.name = f"ssh:{target}"

    def argv(self, command: str) -> list[str]:
        """See ShellDevice."""
        return [*self._prefix, command]

    def install(self) -> None:
        """See ShellDevice."""
        self.put(RUNNER, "runner.py")

    def runner_command(self, arguments: Sequence[str], start: Start | None) -> str:
        """See ShellDevice."""
        python = shlex.quote(self.settings.remote_python)
        if start is None:
            return f"{python} runner.py probe"
        action, model, manifest, scratch = arguments
        options = [*serve_arguments(start), "--scratch", scratch]
        return shlex.join([self.settings.remote_python, "../runner.py", action, model, manifest, *options])


def parse_target(target: str) -> tuple[str, str, str]:
    """User, host and port of `USER@HOST:PORT`, empty where not given. Raises DeviceError for anything else."""
    match = HOST.fullmatch(target)
    if not match:
        raise DeviceError(f"{target!r} is not a place ssh can go to; write ssh:USER@HOST or ssh:USER@HOST:PORT.")
    user, host, port = match.groups()
    return user or "", host.strip("[]"), port or ""


def missing_ssh(settings: Settings) -> str:
    """What to install before ssh devices can be used."""
    if not shutil.which("ssh"):
        return "no ssh program; install OpenSSH (apt-get install openssh-client)"
    if settings.ssh_config and not settings.ssh_config.is_file():
        return f"{settings.ssh_config} does not exist; --ssh-config names a file for ssh -F"
    return ""


@contextmanager
def open_ssh(argument: str, settings: Settings) -> Iterator[Device]:
    """The board at `argument`. Raises DeviceError."""
    # A socket's path may have 100-odd characters, so not below the user's own, perhaps long, TMPDIR.
    place = Path("/tmp") if os.access("/tmp", os.W_OK) else None
    with Scratch(place) as control, SshDevice(argument, settings, control.folder) as device:
        yield device
