"""What installs the tests' programs says what failed; here all programs are stand-ins, so that nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "install_devices.sh"
THERE = ("qemu-aarch64", "adb", "ssh", "chromium", "node", "npm", "gcc")
NEEDED = ("sh", "dirname", "id", "tail")


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
@pytest.mark.parametrize(("status", "said"), [(0, "is ready"), (3, "note: tools/setup_{}.py failed")])
def test_a_part_that_fails_is_named(status: int, said: str, tmp_path: Path) -> None:
    for name in (*THERE, "python"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho working\necho is ready\nexit {status}\n")
        (tmp_path / name).chmod(0o755)
    for name in NEEDED:
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    command = ["sh", str(TOOL), str(tmp_path / "python")]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if "apt-get" not in line]  # Where there is no sshd.
    assert lines == [said.format(part) for part in ("arm", "web")]
    assert done.returncode == 0
