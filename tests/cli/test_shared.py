"""What all commands share: values read from an option, and signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import suppress

import click
import pytest

from trp_export.cli.shared import SCHEMES, numbers, run, shape
from trp_export.errors import INTERRUPTED, StoppedEarly, UnsupportedError
from trp_export.lowrank.names import SCHEME_CHOICES
from trp_export.system.signals import held_back, terminable

TERMINATING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


def run_briefly(command: click.Command, *arguments: str) -> int:
    return run(command, arguments, interrupted="interrupted.", memory="")


def test_schemes_go_by_the_names_that_planning_knows() -> None:
    assert SCHEMES == SCHEME_CHOICES


@click.command()
@click.option("--shape", callback=shape)
@click.option("--numbers", callback=numbers)
def echo(shape: tuple[int, ...] | None, numbers: tuple[float, ...] | None) -> None:
    click.echo(f"{shape} {numbers}")


@pytest.mark.parametrize("given", ["1,3,8,10", "1x3x8x10", "1, 3,8x10"])
def test_a_shape_is_read(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_briefly(echo, "--shape", given, "--numbers", "0.5,1e-3") == 0
    assert capsys.readouterr().out == "(1, 3, 8, 10) (0.5, 0.001)\n"


@pytest.mark.parametrize("given", ["", "1,", "1,3,0", "1,-3", "1,3.5", "1,²", "1,3;8", "many"])
def test_what_is_no_shape_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_briefly(echo, "--shape", given) == 2
    assert capsys.readouterr().err.endswith(f"{given!r} is not a shape such as 1,3,224,224.\n")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("trp_export.cli.export", "trp-export"),
        ("trp_export.cli.bench", "trp-bench"),
        ("training.cli", "trp-train"),
        ("training.search.cli", "trp-search"),
    ],
)
def test_a_command_goes_by_its_name(module: str, name: str) -> None:
    program = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(f"Usage: {name} [OPTIONS]"), done.stderr


@pytest.mark.parametrize("number", TERMINATING)
def test_a_signal_interrupts_a_command_and_nothing_after_it(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    assert run_briefly(click.Command("signalled", callback=lambda: signal.raise_signal(number))) == INTERRUPTED
    assert signal.getsignal(number) is before


def test_an_error_that_foreign_code_makes_of_a_signal_is_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    def trace() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise UnsupportedError("this model cannot be traced.") from None

    assert run_briefly(click.Command("interrupted", callback=trace)) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted.\n"


def test_what_was_saved_after_a_signal_is_said() -> None:
    def stop() -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise StoppedEarly

    with pytest.raises(StoppedEarly), terminable():
        stop()


@pytest.mark.parametrize("number", [signal.SIGINT, *TERMINATING])
def test_a_signal_that_is_held_back_comes_at_the_end(number: signal.Signals) -> None:
    steps = []

    def work() -> None:
        with held_back():
            signal.raise_signal(number)
            steps.append("within")
        steps.append("after")

    assert run_briefly(click.Command("held", callback=work)) == INTERRUPTED
    assert steps == ["within"]


def test_the_second_signal_is_not_held_back() -> None:
    steps = []

    def work() -> None:
        with held_back():
            for step in ("first", "second"):
                signal.raise_signal(signal.SIGINT)
                steps.append(step)

    assert run_briefly(click.Command("held", callback=work)) == INTERRUPTED
    assert steps == ["first"]


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("no SIGHUP on this system")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_briefly(click.Command("hung up", callback=lambda: signal.raise_signal(signal.SIGHUP))) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_runs_in_any_thread(capsys: pytest.CaptureFixture[str]) -> None:
    thread = threading.Thread(target=run_briefly, args=(echo,))
    thread.start()
    thread.join()
    assert capsys.readouterr().out == "None None\n"
