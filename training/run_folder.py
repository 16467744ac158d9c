"""The folder of a run: made and locked for one process, and the saved state from which the run goes on.

The saved state, last.pt, is read with weights_only and counts as untrusted. Its options are stored as texts, which pass
the same readers and checks as a command line; what they may import is decided by `models_zoo.require_repeated`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from trp_export.errors import LoadError, OptionError, OutputError
from trp_export.flags import Flag, build_value, entries
from trp_export.system.scratch import locked
from trp_export.system.text import name_some

LAST = "last.pt"
# What a run may write before it saves its state for the first time.
_EARLY = ("odd-images.txt", "synthetic.npy")
_LONGEST_TEXT, _MOST_TEXTS = 4096, 1000
_Options = TypeVar("_Options")
_Stored = str | bool | list[str]


@contextmanager
def run_folder(folder: Path, *, resume: bool, patience_s: float = 0.0) -> Iterator[None]:
    """Make the folder, keep other runs out of it, and remove it again where nothing was written.

    The lock ends with the process, however that ends; where it is taken, it is waited for `patience_s` seconds. Raises
    OutputError where the folder cannot be made, OptionError where another process is running in it, or where it holds
    anything and the run is new.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}.") from error
    try:
        with _locked_within(folder, patience_s) as is_ours:
            if not is_ours:
                raise OptionError(f"{folder} is in use by another run. Wait for it, or choose another folder with -o.")
            if not resume:
                _require_free(folder)
            yield
    finally:
        if is_new:
            with suppress(OSError):  # It is not empty.
                folder.rmdir()


def _require_free(folder: Path) -> None:
    """Raise OptionError where the folder holds a run, or other files that a run would lie among or write over.

    Hidden files may lie there, and what a run that ended before its first saved state has left.
    """
    if (folder / LAST).exists():
        raise OptionError(f"{folder} holds a run already. Continue it with --resume, or choose another with -o.")
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name not in _EARLY]
    if others:
        raise OptionError(f"{folder} holds other files: {name_some(sorted(others))}. Choose a new folder with -o.")


@contextmanager
def _locked_within(folder: Path, patience_s: float) -> Iterator[bool]:
    """Hold the lock of the folder, asking for it again until the time is over."""
    deadline = time.monotonic() + patience_s
    while True:
        with locked(folder) as is_ours:
            if is_ours or time.monotonic() >= deadline:
                yield is_ours
                return
        time.sleep(0.5)


def stored_options(options: Any) -> dict[str, _Stored]:
    """Every option that has a value, by its key: a text, True or False for a switch, a list if it may be repeated."""
    return {option.key: _as_stored(option, value) for option, value in _values(options) if value is not None}


def restored_options(kind: type[_Options], stored: object, where: str) -> _Options:
    """The reverse of `stored_options`. Raises LoadError for anything that no command line could say."""
    if not isinstance(stored, dict):
        raise LoadError(f"{where} is damaged: its options are not a table.")
    known = {entry.flag.key: entry.flag for entry in entries(kind)}
    if unknown := [key for key in stored if key not in known]:
        raise LoadError(f"{where} has an unknown option {str(unknown[0])[:80]!r}; another version may have written it.")
    try:
        values = {key: parse_stored(known[key], value) for key, value in stored.items()}
        options: _Options = build_value(kind, values)
    except (ValueError, TypeError, OverflowError, OptionError) as error:
        raise LoadError(f"{where} is damaged: its options are invalid ({error}).") from error
    return options


def parse_stored(option: Flag, stored: object) -> Any:
    """The value of a stored text, list or switch. Raises ValueError that names the option."""
    if option.kind in ("on", "off"):
        if not isinstance(stored, bool):
            raise ValueError(f"{option.name} must be true or false")
        return stored
    if option.kind == "many":
        if not isinstance(stored, list) or len(stored) > _MOST_TEXTS:
            raise ValueError(f"{option.name} must be a list of texts")
        return tuple(_text(item, option.name) for item in stored)
    text = _text(stored, option.name)
    if option.choices and text not in option.choices:
        raise ValueError(f"{option.name} must be one of {', '.join(option.choices)}, not {text[:80]!r}")
    try:
        return option.read(text)
    except ValueError:
        wanted = "a whole number" if option.read is int else "a number" if option.read is float else option.metavar
        raise ValueError(f"{option.name} must be {wanted}, not {text[:80]!r}") from None


def require_same_run(
    kind: type, given: Mapping[str, Any], stored: Mapping[str, Any], free: Sequence[str] = ()
) -> dict[str, _Stored]:
    """The stored options, with those of this command line in their place where they are `free` to change.

    `given` holds parsed values by key. Raises OptionError where another option differs from the stored one.
    """
    merged = dict(stored)
    for option in (entry.flag for entry in entries(kind)):
        key = option.key
        if given.get(key) in (None, ()):
            continue
        text, before = _as_stored(option, given[key]), stored.get(key)
        if key in free:
            merged[key] = text
        elif text != before:
            raise OptionError(
                f"{option.name} {text} differs from the stored {before}. Leave it out, or start another run."
            )
    return merged


def require_same_files(digests: Mapping[str, str], stored: object, where: str, *, allow_changes: bool) -> None:
    """Compare sha256 digests of what the run reads, by flag, with those of its start.

    Raises OptionError, naming the flag, where one differs and the user has not allowed that.
    """
    if not isinstance(stored, dict):
        raise LoadError(f"{where} is damaged: the digests of its data are missing.")
    for name, digest in digests.items():
        if stored.get(name) != digest and not allow_changes:
            raise OptionError(
                f"{name} holds other data than when this run was started. Bring the old data back, "
                "or continue on the new with --allow-changed-data."
            )


def read_state(folder: Path, form: str, version: int, keys: Sequence[str]) -> dict[str, Any]:
    """The dict in the folder's last.pt. Raises LoadError where there is none, or it is not one of this format."""
    from trp_export.load.torch_file import read_torch_file

    path = folder / LAST
    if not path.is_file():
        raise LoadError(f"{folder} holds no run to continue: there is no {LAST}. Leave --resume out to start one.")
    content = read_torch_file(path)
    if not isinstance(content, dict) or content.get("format") != form:
        raise LoadError(f"{path} is not the saved state of a run of this command.")
    stored = content.get("version")
    if not isinstance(stored, int) or stored != version or set(keys) - content.keys():
        raise LoadError(f"{path} is damaged, or of another version of this program.")
    return content


def _values(options: Any) -> Iterator[tuple[Flag, Any]]:
    for field in fields(options):
        value = getattr(options, field.name)
        if "flag" in field.metadata:
            yield field.metadata["flag"], value
        elif field.metadata and is_dataclass(value):
            yield from _values(value)


def _as_stored(option: Flag, value: Any) -> _Stored:
    if option.kind in ("on", "off"):
        return bool(value)
    if option.kind == "many":
        return [str(item) for item in value]
    return str(value) if option.read is Path else option.write(value)


def _text(stored: object, name: str) -> str:
    if not isinstance(stored, str) or len(stored) > _LONGEST_TEXT or not stored.isprintable():
        raise ValueError(f"{name} must be a text of at most {_LONGEST_TEXT} printable characters")
    return stored
