"""A file is written whole or not at all: beside its place first, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trp_export.errors import OutputError


@contextmanager
def whole(path: Path, what: str = "", remedy: str = "") -> Iterator[Path]:
    """A place beside `path` to write to, which takes the name of `path` when the block ends well.

    Raises OutputError, which calls the file `what`, else by its path, and ends with `remedy`.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        reason = f"{what or path} cannot be written: {error.strerror or error}."
        raise OutputError(f"{reason} {remedy}".strip()) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
