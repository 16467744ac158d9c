"""What many tests need: the command run in a folder of its own, and real models where they are at hand."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from command import Command, Outcome, files
from hypothesis import HealthCheck, settings

from trp_export.system.signals import ENDING

# How long an example takes is the machine's doing and no finding.
settings.register_profile("steady", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

# In the background of a shell interrupts are ignored, under nohup hang-ups, and all that is started here inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Copies of the data and networks of tools/data.py.
SHARED = Path(os.environ.get("TRP_DATA") or Path(__file__).parents[2] / "shared")


# Rules that choose ranks, which the command bases on synthetic images where nobody mentions any.
CHOOSING = ("--energy", "--threshold", "--rank", "--macs", "--params", "--speedup", "--max-drop")


def pytest_collection_finish() -> None:
    """Keep the garbage collector away from all that is imported: an export collects twice, which would take seconds."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _simplify_each_graph_once() -> Iterator[None]:
    """Many tests export the same few graphs."""
    import warm_simplify

    from trp_export.graph import simplify

    warm_simplify.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simplify, "ask_worker", cache(warm_simplify.ask))
        yield


@pytest.fixture(autouse=True)
def _same_signals() -> Iterator[None]:
    """An interrupted command leaves signals ignored, which would go on after its test."""
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def trp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `trp-export` with these arguments in `tmp_path`; without --calib the weights alone choose ranks."""
    from trp_export.cli.export import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        words = list(map(str, arguments))
        by_weights = "--calib" not in words and any(word in CHOOSING for word in words)
        monkeypatch.setattr(sys, "argv", ["trp-export", *words, *(("--calib", "none") if by_weights else ())])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return Outcome(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def few_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks on this machine start two fresh processes for each model, in place of eight or more.

    tests/bench starts all of them.
    """
    from trp_export.bench.devices.local import LocalDevice

    monkeypatch.setattr(LocalDevice, "rounds", (2, 2))


@pytest.fixture
def refuses(trp: Command, tmp_path: Path) -> Command:
    """Runs a command that must fail: in a few plain lines on stderr, without a trace of it left in the folder."""

    def run(code: int, *arguments: object) -> str:
        before = files(tmp_path)
        outcome = trp(*arguments)
        assert outcome.code == code, outcome.err
        assert outcome.out == ""
        assert outcome.err.startswith("error: ")
        assert "Traceback" not in outcome.err
        assert "internal error" not in outcome.err
        assert len(outcome.err.splitlines()) <= 3, outcome.err
        assert files(tmp_path) == before
        return outcome.err

    return run


@pytest.fixture
def shared() -> Path:
    """A folder of real models and data, beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no real models: {SHARED} is absent")
    return SHARED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    gc.collect()  # Weights that were read from there.
    subprocess.run(["umount", str(folder)], check=True)
