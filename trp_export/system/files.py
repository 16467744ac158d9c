"""A file is written whole or not at all: beside its place first, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trp_export.errors import OutputError


@contextmanager
def atomic_write(path: Path, what: str = "", remedy: str = "") -> Iterator[Path]:
    """A place beside `path` to write to, which takes the name of `path` when the block ends well.

    Raises OutputError, which calls the file `what`, else by its path, and ends with `remedy`.
    """
    require_plain_file(path, what, remedy)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise OutputError(_message(what or str(path), error.strerror or str(error), remedy)) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def require_plain_file(path: Path, what: str = "", remedy: str = "") -> None:
    """Raise OutputError where `path` is a folder or a device: renaming would put a file in its place."""
    with suppress(OSError):  # what cannot be looked at cannot be written to either, which is told then
        if path.exists() and not path.is_file():
            raise OutputError(_message(what or str(path), "it exists and is not a plain file", remedy))


def _message(what: str, why: str, remedy: str) -> str:
    return f"{what} cannot be written: {why}. {remedy}".strip()
