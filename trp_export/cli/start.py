"""Where the commands start and end. Importing this module makes Ctrl-C end the program with one line and exit code 130.

It does so before anything slow is imported. `run` in shared.py takes over once there is work that must be undone.
Only entry points import this module.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType


def _stop(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted.\n")
    os._exit(130)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # Not where interrupts are ignored.
    signal.signal(signal.SIGINT, _stop)


def _open_closed_streams() -> None:
    """Give closed standard streams to the null device: the next file would take their numbers, and what is printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest free number.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


_open_closed_streams()


def call(main: Callable[[], object]) -> None:
    """Call the entry point of a command. What it made is complete when it returns.

    While Python shuts down, it would let any signal end it. Signals are ignored from here on, so that the exit code
    stays what it is. Work that an interrupt left in the background is not waited for.
    """
    from trp_export.errors import INTERRUPTED
    from trp_export.system.signals import exit_without_teardown, ignore_ending_signals

    interrupted = False
    try:
        main()
    except SystemExit as end:
        interrupted = end.code == INTERRUPTED
        raise
    finally:
        ignore_ending_signals()
        exit_without_teardown(interrupted=interrupted)


def export() -> None:
    """Run trp-export."""
    from trp_export.cli.export import main

    call(main)


def bench() -> None:
    """Run trp-bench."""
    from trp_export.cli.bench import main

    call(main)


def bundle() -> None:
    """Run trp-bundle."""
    from trp_export.cli.bundle import main

    call(main)
