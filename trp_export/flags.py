"""Options are written once: a field of an option value carries its flag, its help, its section and how text is read.

The click commands, the line that repeats an export, the command-line reference and the wording of errors are all made
from these fields. A dataclass declares its options so:

    ratio: float = flag("--macs", "Use RATIO times fewer multiply-adds.", section=SIZE, read=float, metavar="RATIO")
    selection: Selection = group(Selection)                      # options of a nested value
    calibration: Calibration | None = optional(Calibration)      # None unless its first option is given
    rule: Rule | None = one_of(Energy, Macs, default=None)       # at most one of several values

Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from trp_export.errors import OptionError

# A "value" takes text, "on" and "off" are switches that set True and False, "many" may be repeated.
Kind = Literal["value", "on", "off", "many"]


@dataclass(frozen=True, slots=True)
class Flag:
    """How a field is written on a command line.

    `read` makes the value from text and raises ValueError, saying what is wrong; `write` is its reverse. A `default`
    is what the help shows where the default of the field says too little.
    """

    names: tuple[str, ...]
    help: str
    section: str
    kind: Kind
    read: Callable[[str], Any]
    write: Callable[[Any], str]
    choices: tuple[str, ...]
    metavar: str | None
    default: str | None

    @property
    def name(self) -> str:
        """The long form, such as --macs."""
        return self.names[-1]

    @property
    def key(self) -> str:
        """The name of the parsed value: --max-drop is `max_drop`."""
        return self.name.lstrip("-").replace("-", "_")


def flag(
    names: str,
    help: str,
    *,
    section: str,
    kind: Kind = "value",
    read: Callable[[str], Any] = str,
    write: Callable[[Any], str] | None = None,
    choices: tuple[str, ...] = (),
    metavar: str | None = None,
    shown_default: str | None = None,
    default: Any = MISSING,
) -> Any:
    """A dataclass field that is an option; `names` as in "-o/--output"."""
    written = write or (_file_name if read is Path else _text)
    option = Flag(tuple(names.split("/")), help, section, kind, read, written, choices, metavar, shown_default)
    return field(default=default, metadata={"flag": option})


def group(kind: type) -> Any:
    """A field whose value holds options of its own; by default the value of all its defaults."""
    return field(default=kind(), metadata={"group": kind})


def optional(kind: type) -> Any:
    """The same, None unless the first option of `kind` is given; its other options then need that one."""
    return field(default=None, metadata={"optional": kind})


def one_of(*kinds: type, default: Any = MISSING) -> Any:
    """A field that holds a value of one of these types, chosen by its first option."""
    return field(default=default, metadata={"one_of": kinds})


class InvalidOptionError(OptionError):
    """A value that an option cannot take, or options that contradict one another.

    The template names fields in braces, as in "{ratio} must be above 1". Python users read the names of the fields,
    users of a command the flags.
    """

    def __init__(self, template: str) -> None:
        super().__init__(_fill(template, {}))
        self.template = template

    def with_flags(self, flags: Mapping[str, str]) -> OptionError:
        """The same error as the user of a command line reads it; `flags` by the names of fields."""
        return OptionError(_fill(self.template, flags))


@dataclass(frozen=True, slots=True)
class Entry:
    """One option: where its field stands below the outermost value, as in ("benchmark", "threads")."""

    path: tuple[str, ...]
    flag: Flag
    default: Any


def entries(kind: type, path: tuple[str, ...] = ()) -> Iterator[Entry]:
    """All options of a dataclass and of the values in it, in order."""
    for declared in fields(kind):
        here = (*path, declared.name)
        if "flag" in declared.metadata:
            yield Entry(here, declared.metadata["flag"], declared.default)
        for nested in _nested(declared):
            yield from entries(nested, here)


def flags_of(kind: type) -> dict[str, str]:
    """Flags by field, as error templates name them: "benchmark.run", and a value with options by its first one."""
    names: dict[str, str] = {}
    for entry in entries(kind):
        for depth in range(1, len(entry.path) + 1):
            names.setdefault(".".join(entry.path[:depth]), entry.flag.name)
    return names


def build_value(kind: type, given: Mapping[str, Any]) -> Any:
    """The value that the options make. `given` holds parsed values by `Flag.key`, absent or None where not given.

    Raises OptionError that speaks of flags.
    """
    values = {}
    for declared in fields(kind):
        value = _field_value(declared, given)
        if value is not MISSING:
            values[declared.name] = value
    try:
        return kind(**values)
    except InvalidOptionError as error:
        raise error.with_flags(flags_of(kind)) from error


def arguments(value: Any) -> Iterator[str]:
    """The options that make this value again, without those at their defaults."""
    for declared in fields(value):
        current = getattr(value, declared.name)
        if "flag" in declared.metadata:
            if current != declared.default:
                yield from _written(declared.metadata["flag"], current)
        elif is_dataclass(current) and _nested(declared):
            yield from arguments(current)


def _nested(declared: Field[Any]) -> tuple[type, ...]:
    kinds = declared.metadata.get("one_of", ())
    nested = declared.metadata.get("group") or declared.metadata.get("optional")
    return (nested,) if nested is not None else kinds


def _field_value(declared: Field[Any], given: Mapping[str, Any]) -> Any:
    if "flag" in declared.metadata:
        value = given.get(declared.metadata["flag"].key)
        return MISSING if value is None or value == () else value
    if "group" in declared.metadata:
        return build_value(declared.metadata["group"], given)
    chosen = [kind for kind in _nested(declared) if _is_given(_first(kind), given)]
    if len(chosen) > 1:
        first, second = (_first(kind).name for kind in chosen[:2])
        raise OptionError(f"{first} and {second} contradict each other; give one.")
    for kind in _nested(declared):
        if kind not in chosen:
            _require_none_given(kind, given)
    return build_value(chosen[0], given) if chosen else MISSING


def _require_none_given(kind: type, given: Mapping[str, Any]) -> None:
    """Raises OptionError for an option that means nothing without the first one of its value."""
    first = _first(kind)
    for entry in entries(kind):
        if entry.flag is not first and _is_given(entry.flag, given):
            needed = f"{first.name} {first.metavar}" if first.metavar else first.name
            raise OptionError(f"{entry.flag.name} needs {needed}.")


def _first(kind: type) -> Flag:
    return next(entries(kind)).flag


def _is_given(option: Flag, given: Mapping[str, Any]) -> bool:
    return given.get(option.key) not in (None, ())


def _written(option: Flag, value: Any) -> Iterator[str]:
    if option.kind in ("on", "off"):
        yield option.name
    else:
        for item in value if option.kind == "many" else (value,):
            yield from (option.name, option.write(item))


def _file_name(path: Path) -> str:
    """Files by name only: the folders are the user's own."""
    return path.name


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _fill(template: str, flags: Mapping[str, str]) -> str:
    return re.sub(r"\{([a-z_.]+)\}", lambda match: flags.get(match[1], match[1]), template)
