"""What all commands share: names of schemes, how they read numbers and shapes, and how they end.

Errors become a line or two on stderr and a documented exit code, never a traceback; SIGTERM and SIGHUP are Ctrl-C.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from trp_export.errors import INTERRUPTED, StoppedEarly, TrpError
from trp_export.lowrank.names import SCHEME_CHOICES
from trp_export.system.signals import terminable

SCHEMES = SCHEME_CHOICES


def run(command: click.Command, arguments: Sequence[str] | None = None, *, interrupted: str, memory: str) -> int:
    """Run a command, under its own name however it was started, and return its exit code.

    `interrupted` is said where the user broke it off, `memory` is the remedy where memory ran out. With TRP_TRACEBACK
    set, a fault of the program shows where it happened.
    """
    try:
        with terminable():
            result = command.main(args=arguments, prog_name=command.name, standalone_mode=False)
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


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Callback of an option such as 0.485,0.456,0.406."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 0.485,0.456,0.406.") from None


def shape(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Callback of an option such as 1,3,224,224 or 1x3x224x224."""
    if value is None:
        return None
    parts = value.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{value!r} is not a shape such as 1,3,224,224.")
    return tuple(int(part) for part in parts)


def _fail(message: str, code: int) -> int:
    click.echo("error: " + message.replace("\n", "\n       "), err=True)
    return code


def _out_of_memory(error: Exception) -> bool:
    """torch says so with errors of its own."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


class SectionedCommand(click.Command):
    """A command whose `--help` lists options under headings.

    `sections` maps the parameter that opens a section to its heading; the options after it belong there too.
    """

    def __init__(self, *args: Any, sections: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        heading = "Options"
        for parameter in self.get_params(ctx):
            heading = self.sections.get(parameter.name or "", heading)
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                rows.setdefault(heading, []).append(record)
        for heading, records in rows.items():
            with formatter.section(heading):
                formatter.write_dl(records)
