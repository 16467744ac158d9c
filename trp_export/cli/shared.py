"""What all commands share: how they read numbers and shapes, and how they end.

An error becomes a line or two on stderr and a documented exit code, never a traceback. SIGTERM and SIGHUP end a command
as Ctrl-C does.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import click

from trp_export.errors import (
    INTERRUPTED,
    LoadError,
    OptionError,
    OutputError,
    StoppedEarly,
    TrpError,
    first_line,
    is_out_of_memory,
)
from trp_export.system.signals import terminable
from trp_export.system.text import plain, screenful
from trp_export.system.torch_cache import private_torch_cache

# What writing to a stream raises: a full disk, or a device that failed.
_CANNOT_PRINT = (errno.ENOSPC, errno.EIO)

# What onnx_ir raises where a file of weights that was checked before leads elsewhere when it is read.
_DATA_MOVED = ("External data path", "External data location")


def run(command: click.Command, arguments: Sequence[str] | None = None, *, interrupted: str, memory: str) -> int:
    """Run a command under its own name, however it was started, and return its exit code.

    `interrupted` is printed when the user stops it, `memory` is the remedy when memory runs out. With TRP_TRACEBACK
    set, an internal error shows where it happened.
    """
    _escape_what_cannot_be_shown()
    try:
        with terminable(), _without_warnings(), private_torch_cache():
            result = _invoke(command, arguments)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except TrpError as error:
        return _fail(str(error), error.exit_code)
    except StoppedEarly as stop:
        print_message(str(stop))
        return INTERRUPTED
    except (KeyboardInterrupt, click.Abort):
        print_message(interrupted)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return 1
    except Exception as error:
        return _fail_unforeseen(error, memory)
    return result if isinstance(result, int) else 0


def _fail_unforeseen(error: Exception, memory: str) -> int:
    """Print an error that the command itself does not raise, and return its exit code. With TRP_TRACEBACK, raise it."""
    if isinstance(error, OSError) and error.filename is None and error.errno in _CANNOT_PRINT:
        _drop_output()
        return _fail(f"what the command prints cannot be written: {error.strerror}.", OutputError.exit_code)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return _fail(f"{error.filename} cannot be a file: {error.strerror}.", OptionError.exit_code)
    if isinstance(error, ValueError) and str(error).startswith(_DATA_MOVED):
        return _fail(f"a file of weights changed during the work: {first_line(error)}", LoadError.exit_code)
    if is_out_of_memory(error):
        return _fail(f"out of memory. {memory}", TrpError.exit_code)
    if os.environ.get("TRP_TRACEBACK"):
        raise error
    if package := _failed_import(error):
        why = f"{type(error).__name__}: {first_line(error)}"
        return _fail(
            f"{package} cannot be imported ({why}). Check its installation and its variables.", OptionError.exit_code
        )
    return _fail(
        f"internal error, please report it ({type(error).__name__}: {first_line(error)}).\n"
        "Set TRP_TRACEBACK=1 to see where it happened.",
        TrpError.exit_code,
    )


def _failed_import(error: Exception) -> str | None:
    """The library that failed while one of its modules was imported: for an odd variable, for example."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.f_code.co_name == "<module>" and "site-packages" in frame.f_code.co_filename:
            return name
    return None


def _invoke(command: click.Command, arguments: Sequence[str] | None) -> object:
    """What the command returns. click's own `main` prints an empty line for Ctrl-C; here it only completes words."""
    name = command.name or ""
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    if os.environ.get(variable):
        return _complete(command, name, variable)
    try:
        with command.make_context(name, list(sys.argv[1:] if arguments is None else arguments)) as context:
            return command.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code


def _complete(command: click.Command, name: str, variable: str) -> int:
    """Print the completion that a shell asks for. Raises OptionError where the variables are not those of a shell."""
    try:
        command.main(prog_name=name, standalone_mode=False)
    except SystemExit as end:
        if not end.code:
            return 0
    except (KeyError, ValueError):  # COMP_WORDS and COMP_CWORD are missing, or hold something else.
        pass
    raise OptionError(f"{variable} is set, but not by a shell that completes words. Unset it.")


def _escape_what_cannot_be_shown() -> None:
    """Print characters outside the terminal's encoding as escapes, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_message(message: str) -> None:
    """Print to stderr what a user should know: no control characters, no more than a screen."""
    with suppress(OSError):  # Where nothing can be printed, the exit code still tells.
        click.echo(plain(screenful(message)), err=True)


def print_line(text: str, *, err: bool = False) -> None:
    """Print a line that may hold names out of files: no control characters and no other line."""
    click.echo(plain(text, keep_lines=False), err=err)


def _fail(message: str, code: int) -> int:
    """Print an error. Only its first line begins at the margin, so that foreign text cannot pass for another one."""
    print_message("error: " + message.replace("\n", "\n       "))
    return code


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep warnings of libraries off the terminal: they name lines of code, and whatever matters ends in an error.

    With TRP_TRACEBACK set they stay. Filters that make them errors keep doing so.
    """
    show, last_resort = warnings.showwarning, logging.lastResort
    if not os.environ.get("TRP_TRACEBACK"):
        warnings.showwarning, logging.lastResort = _ignore, logging.NullHandler()
    try:
        yield
    finally:
        warnings.showwarning, logging.lastResort = show, last_resort


def _ignore(*warning: object, **settings: object) -> None:
    """Show nothing."""


def _drop_output() -> None:
    """The reader of our output is gone. Python flushes stdout when it exits, which must not fail again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
