"""Signals that end a command, and where they must wait.

Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt. Foreign code may make another error of it, or drop it, or abort:
the first is undone where the command ends; where the others are known to happen, signals are held back.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ExtensionFileLoader
from types import FrameType

from trp_export.errors import INTERRUPTED, StoppedEarly

_Handler = Callable[[int, FrameType | None], None]
# The name of threads that are left behind where a signal interrupts the wait for them (`threads`).
BACKGROUND = "trp-export in the background"
# How soon a signal comes again that came while a module in C was loaded.
_AGAIN_S = 0.02
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def terminable() -> Iterator[None]:
    """Let every signal that ends a command do so as Ctrl-C does, unless it is ignored, as nohup has it.

    Whatever is raised after one came is the KeyboardInterrupt that it was; work that was saved ends as it says. Further
    signals are ignored then: the command is ending, and its last line must stay whole. A module in C is loaded to its
    end first: some crash where that is broken off.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _loads_module_in_c(frame):
            threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number)).start()
            return
        came.append(number)
        if len(came) > 1:
            ignore_ending_signals()
        raise KeyboardInterrupt

    with handling(interrupt, not_ignored):
        try:
            yield
        except (KeyboardInterrupt, StoppedEarly):
            ignore_ending_signals()
            raise
        except Exception as error:
            if not came:
                raise
            ignore_ending_signals()
            raise KeyboardInterrupt from error


def _loads_module_in_c(frame: FrameType | None) -> bool:
    """Whether a frame belongs to the import of an extension module."""
    while frame is not None:
        is_load = frame.f_code.co_name in ("create_module", "exec_module")
        if is_load and isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


@contextmanager
def held_back() -> Iterator[None]:
    """A signal that comes within takes effect at the end; a second one does at once."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    try:
        with handling(note, callable):
            yield
    finally:
        if len(came) == 1:
            signal.raise_signal(came[0])


def ignore_ending_signals() -> None:
    """Let no signal but SIGKILL end the process from now on. Only the main thread can."""
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)


def exit_without_teardown(*, interrupted: bool) -> None:
    """End the process at once where it was interrupted, or where work is left in the background.

    Libraries must not be taken down under such work, nor those that an interrupt left half imported: some crash then.
    """
    is_busy = any(thread.name == BACKGROUND for thread in threading.enumerate())
    if interrupted and not is_busy:
        with suppress(Exception):
            atexit._run_exitfuncs()  # Processes of libraries end, and their temporary folders go.
    if interrupted or is_busy:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(INTERRUPTED)


def not_ignored(handler: object) -> bool:
    """Whether a signal with this handler may be handled otherwise: nohup, for one, has SIGHUP ignored."""
    return handler not in (None, signal.SIG_IGN)


@contextmanager
def handling(handler: _Handler, replaces: Callable[[object], bool]) -> Iterator[None]:
    """With this handler in the place of those that it replaces, unless one is set within. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: was for number, was in before.items() if replaces(was)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, was in before.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, was)
