"""How every command ends: errors become a line or two on stderr and a documented exit code, never a traceback."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from trp_export.errors import INTERRUPTED, StoppedEarly, TrpError


def run(command: click.Command, arguments: Sequence[str] | None = None, *, interrupted: str, memory: str) -> int:
    """Run a command and return its exit code.

    `interrupted` is said where the user broke it off, `memory` is the remedy where memory ran out. With TRP_TRACEBACK
    set, a fault of the program shows where it happened.
    """
    try:
        result = command.main(args=arguments, standalone_mode=False)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except TrpError as error:
        return _fail(str(error), error.exit_code)
    except StoppedEarly as stop:
        click.echo(str(stop), err=True)
        return INTERRUPTED
    except (KeyboardInterrupt, click.Abort):
        click.echo(interrupted, err=True)
        return INTERRUPTED
    except BrokenPipeError:
        return 1
    except Exception as error:
        if _out_of_memory(error):
            return _fail(f"out of memory. {memory}", TrpError.exit_code)
        if os.environ.get("TRP_TRACEBACK"):
            raise
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return _fail(
            f"a fault of this program, please report it ({what}).\nTRP_TRACEBACK=1 in the environment shows where.",
            TrpError.exit_code,
        )
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    click.echo("error: " + message.replace("\n", "\n       "), err=True)
    return code


def _out_of_memory(error: Exception) -> bool:
    """torch says so with errors of its own."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
