"""onnxsim in a process forked from one that has imported it, which takes a second; many tests export."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")


def start() -> None:
    """Start the process that all others are forked from."""
    from multiprocessing import forkserver

    _CONTEXT.set_forkserver_preload(["preloaded_onnxsim"])
    with pytest.MonkeyPatch.context() as patch:  # Up to Python 3.13 it does not take over sys.path.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        forkserver.ensure_running()


def ask(source: bytes) -> subprocess.CompletedProcess[bytes]:
    """What `trp_export.graph.simplify.ask_worker` answers. Raises TimeoutExpired."""
    from trp_export.graph import simplify

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("in", "out", "err")]
        with files[0].open("wb") as given:  # A test may take `write_bytes` away.
            given.write(source)
        process = _CONTEXT.Process(target=_work, args=(files,))
        process.start()
        process.join(simplify._TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired("onnxsim", simplify._TIMEOUT_S)
        return subprocess.CompletedProcess([], process.exitcode, *(file.read_bytes() for file in files[1:]))


def _work(files: list[Path]) -> None:
    """The worker's program on these files in the place of stdin, stdout and stderr."""
    from trp_export.graph.simplify_worker import main

    for place, (file, mode) in enumerate(zip(files, (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT] * 2), strict=True)):
        os.dup2(os.open(file, mode), place)
    sys.stdin, sys.stderr = open(0), open(2, "w")  # noqa: SIM115 - they stay for the life of the process
    main()
    sys.stderr.flush()
