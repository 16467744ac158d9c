"""Work in threads: results and errors are those of the work, and a signal need not wait for it."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial

import pytest

from trp_export.system.threads import in_background, map_layers


def fail_at(wrong: int, value: int) -> int:
    if value == wrong:
        raise ValueError(value)
    return value


def test_results_are_in_order_and_progress_ends_at_one() -> None:
    shares: list[float] = []
    assert map_layers(lambda value: value**2, range(50), shares.append) == [value**2 for value in range(50)]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert map_layers(fail_at, [], shares.append) == []


def test_the_error_of_a_layer_ends_all_work() -> None:
    with pytest.raises(ValueError, match="3"):
        map_layers(partial(fail_at, 3), range(8), lambda share: None)
    assert threading.active_count() == 1 or not any("background" in thread.name for thread in threading.enumerate())


def test_work_in_the_background_returns_and_raises() -> None:
    assert in_background(lambda: 7) == 7
    with pytest.raises(ValueError, match="3"):
        in_background(lambda: fail_at(3, 3))


WAITING = """
import os, signal, threading
from trp_export.cli.start import call
from trp_export.cli.shared import run
from trp_export.system.threads import in_background, map_layers
import click

def forever():
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
    threading.Event().wait()

@click.command("x")
def command():
    {way}

@call
def main():
    raise SystemExit(run(command, [], interrupted="stopped", memory=""))
"""


@pytest.mark.parametrize(
    "way", ["in_background(forever)", "map_layers(lambda index: forever(), range(4), print)"], ids=["one", "many"]
)
def test_a_signal_does_not_wait_for_work_that_never_ends(way: str) -> None:
    ended = subprocess.run([sys.executable, "-c", WAITING.format(way=way)], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, "stopped\n")


DECOMPOSING = """
import os, signal, threading
import numpy as np
from trp_export.lowrank.unlocked import eigenvalues
from trp_export.system.threads import in_background

def work():
    threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT]).start()
    eigenvalues(np.asfortranarray(np.random.default_rng(0).standard_normal((1500, 1500))))
    print("decomposed", flush=True)

try:
    in_background(work)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    os._exit(0)  # As an interrupted command ends: at Python's own end BLAS may wait for its threads for ever.
"""


def test_a_signal_does_not_wait_for_lapack() -> None:
    ended = subprocess.run([sys.executable, "-c", DECOMPOSING], capture_output=True, text=True, timeout=60)
    assert ended.stdout.startswith("interrupted"), ended
