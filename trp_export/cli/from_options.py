"""Click options made from the fields of option values (see `trp_export.flags`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trp_export.flags import Entry, Flag, InvalidOptionError, entries, flags_of


class SectionOption(click.Option):
    """An option that knows the heading it stands under in the help."""

    def __init__(self, names: Sequence[str], *, section: str, **settings: Any) -> None:
        super().__init__(names, **settings)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose `--help` lists options under headings, in the order of `sections`."""

    def __init__(self, *args: Any, sections: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in self.sections}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                rows.setdefault(getattr(parameter, "section", "Other"), []).append(record)
        for heading, records in rows.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def options_from(kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that gives a command all options of a dataclass; they reach it as keywords, None where not given."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        made = [_option(entry) for entry in entries(kind)]
        # click reads its decorators from the last to the first.
        function.__click_params__ = [*reversed(made), *getattr(function, "__click_params__", [])]  # type: ignore[attr-defined]
        return function

    return decorate


@contextmanager
def errors_name_flags(*kinds: type) -> Iterator[None]:
    """Raise errors that name fields of these dataclasses with the flags of those fields instead."""
    try:
        yield
    except InvalidOptionError as error:
        flags = {name: flag for kind in kinds for name, flag in flags_of(kind).items()}
        raise error.with_flags(flags) from error


if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # Generic since click 8.4 alone.


class _Value(ParamType):
    """Text that becomes a value by the flag's own reader."""

    def __init__(self, option: Flag) -> None:
        self.name = option.metavar or "text"
        self.read = option.read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_CLICK_TYPES: Mapping[Any, click.ParamType[Any] | type] = {
    int: click.INT,
    float: click.FLOAT,
    str: click.STRING,
    Path: click.Path(path_type=Path),
}


def _option(entry: Entry) -> SectionOption:
    option = entry.flag
    settings: dict[str, Any] = {"help": _help(entry), "section": option.section, "default": None}
    if option.kind == "on":
        settings.update(is_flag=True, flag_value=True, type=click.UNPROCESSED)
    elif option.kind == "off":
        settings.update(is_flag=True, flag_value=False, type=click.UNPROCESSED)
    else:
        chosen = click.Choice(option.choices) if option.choices else _CLICK_TYPES.get(option.read) or _Value(option)
        settings.update(type=chosen, metavar=option.metavar, multiple=option.kind == "many")
    return SectionOption((*option.names, option.key), **settings)


def _help(entry: Entry) -> str:
    """The help of an option with its default, unless that is empty."""
    option, default = entry.flag, entry.flag.default
    if default is None and option.kind == "value" and entry.default not in (None, MISSING):
        default = option.write(entry.default)
    return f"{option.help}  [default: {default}]" if default else option.help
