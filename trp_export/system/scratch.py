"""Folders for files that are being made, removed when the work ends.

Each is locked while it is in use. A killed run cannot remove its folders; the next run that makes one in the same
place removes those that belong to the user, are not locked, and are older than a day.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from trp_export.errors import OutputError
from trp_export.system.signals import held_back

if os.name == "posix":
    import fcntl

PREFIX = "trp-export."
_DAY_S = 24 * 3600


class Scratch:
    """A folder of our own: hidden in `parent`, or in the system's temporary folder if that is None."""

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent

    def __enter__(self) -> Self:
        """Make and lock the folder. A signal waits until its name is known, so that no folder is left behind.

        Raises OSError where `parent` cannot be written to, OutputError where there is no temporary folder.
        """
        try:
            self._make()
        except OSError as error:
            if self._parent is not None:
                raise
            why = error.strerror or error
            raise OutputError(
                f"no temporary files can be written: {why}.\nSet TMPDIR to a folder that can be written to."
            ) from error
        return self

    def _make(self) -> None:
        prefix = PREFIX if self._parent is None else f".{PREFIX}"
        sweep(self._parent or Path(tempfile.gettempdir()), prefix)
        with ExitStack() as undo:
            with held_back():
                self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=self._parent))
                undo.callback(_remove, self.folder)
                undo.enter_context(locked(self.folder))
                self._furnish()
            self._undo = undo.pop_all()

    def _furnish(self) -> None:
        """Prepare the folder."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()


def _remove(folder: Path) -> None:
    """Remove a folder, also where there are hardly any descriptors left, of which rmtree takes several."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
        folder.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder. Yields False if another process holds it.

    Yields True without a lock where folders cannot be locked: on Windows and on some network disks.
    """
    try:
        descriptor = _lock(folder)
    except BlockingIOError:
        yield False
        return
    except OSError:
        yield True
        return
    try:
        yield True
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int:
    """The descriptor that holds the lock. Raises BlockingIOError if it is taken, OSError where there are no locks."""
    if os.name != "posix":
        raise OSError("folders cannot be locked")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@cache
def sweep(place: Path, prefix: str) -> None:
    """Remove the folders in `place` that a killed run left. Done once in a process for each place."""
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                _remove_if_left(Path(entry.path))


def _remove_if_left(folder: Path) -> None:
    with suppress(OSError):
        facts = folder.lstat()
        ours = stat.S_ISDIR(facts.st_mode) and os.name == "posix" and facts.st_uid == os.getuid()
        if not ours or time.time() - facts.st_mtime < _DAY_S:
            return
        descriptor = _lock(folder)
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)
