"""Programs that this one starts do not outlive it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from trp_export.system.processes import ending_with_us


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv of util-linux")
def test_a_child_is_killed_with_its_parent() -> None:
    program = (
        "import os, subprocess, sys\n"
        "from trp_export.system.processes import ending_with_us\n"
        "argv = [sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)']\n"
        "child = subprocess.Popen(ending_with_us(argv), stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    try:
        child = psutil.Process(int(done.stdout))
        gone, _ = psutil.wait_procs([child], timeout=20)
        assert gone or child.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return


def test_the_command_stays_the_same_where_the_system_cannot_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert ending_with_us(["a", "b"]) == ["a", "b"]


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
@pytest.mark.parametrize("script", ["echo unrecognized option --pdeathsig >&2; exit 1", None])
def test_the_command_stays_the_same_where_setpriv_cannot_do_it(
    script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of util-linux before 2.33 fails; a file that is no program does not even start."""
    old = tmp_path / "setpriv"
    old.write_text(f"#!/bin/sh\n{script}\n" if script else "\0")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ending_with_us(["a", "b"]) == ["a", "b"]
