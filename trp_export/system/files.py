"""Files: read with a bound, written whole or not at all.

A file that a user names may be anything: a device that never ends, a pipe that never answers, a link. Reading accepts
plain files only and checks their size first. Writing makes the new file in a hidden folder beside its place and then
renames it, so a failure leaves the old file as it was.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from trp_export.errors import LoadError, OutputError
from trp_export.system.scratch import Scratch
from trp_export.system.signals import held_back

LFS_POINTER = b"version https://git-lfs.github.com/"

_BLOCK = 1 << 20


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file, or a link to one, for reading.

    Raises LoadError for a folder, a device or a pipe, before anything is read, and where opening fails.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):
            # A pipe that takes the file's name after the check must not block.
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return os.fdopen(descriptor, "rb")
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read: {_reason(error)}.") from error
    raise LoadError(f"{path} cannot be read: it is not a plain file.")


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a plain file of at most `limit` bytes. Raises LoadError for any other and for Git LFS pointers."""
    with open_plain(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            content = file.read(limit + 1) if size <= limit else b""
        except OSError as error:
            raise LoadError(f"{path} cannot be read: {_reason(error)}.") from error
    if size > limit or len(content) > limit:
        raise LoadError(f"{path} is larger than {_readable(limit)}, the most that is read.")
    _require_fetched(content, path)
    return content


def require_fetched(path: Path) -> None:
    """Raises LoadError for the pointer that Git LFS keeps in place of a large file."""
    with open_plain(path) as file:
        _require_fetched(file.read(len(LFS_POINTER)), path)


def _require_fetched(head: bytes, path: Path) -> None:
    if head.startswith(LFS_POINTER):
        raise LoadError(f"{path} is a Git LFS pointer. Run `git lfs pull` to fetch the file itself.")


def sha256(paths: Sequence[Path]) -> str:
    """The SHA-256 of plain files, one after the other, in hexadecimal. Raises LoadError."""
    digest = hashlib.sha256()
    for path in paths:
        with open_plain(path) as file:
            try:
                while block := file.read(_BLOCK):
                    digest.update(block)
            except OSError as error:
                raise LoadError(f"{path} cannot be read: {_reason(error)}.") from error
    return digest.hexdigest()


def files_below(folder: Path) -> list[Path]:
    """The plain files below a folder and links to such, in order. What cannot be looked at is left out."""
    return sorted(path for place, _, names in os.walk(folder) for name in names if _is_file(path := Path(place, name)))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # A link that may not be followed, or leads to a name that cannot be.
        return False


@contextmanager
def atomic_write(path: Path, what: str = "", remedy: str = "") -> Iterator[Path]:
    """Yield a path to write to; it replaces `path` when the block ends without an error.

    Raises OutputError, which names the file by `what` or by its path and ends with `remedy`.
    """
    require_replaceable(path, what, remedy)
    try:
        with Scratch(path.parent) as scratch:
            part = scratch.folder / path.name
            yield part
            part.replace(path)
    except OSError as error:
        raise OutputError(_cannot_write(what or str(path), _reason(error), remedy)) from error


def require_replaceable(path: Path, what: str = "", remedy: str = "") -> None:
    """Raise OutputError where `path` exists and is not a plain file.

    A rename would put a file in the place of a device, or of a link whose target then stays old.
    """
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):  # Writing will say why.
        return
    if stat.S_ISLNK(mode):
        raise OutputError(_cannot_write(what or str(path), "it is a link; name the file that it points to", remedy))
    if not stat.S_ISREG(mode):
        raise OutputError(_cannot_write(what or str(path), "it exists and is not a plain file", remedy))


def replace_together(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename each new file to its place, in order. If one fails, put back all old files and raise OutputError.

    A new file lies in a folder of ours on the disk of its place; the old file is kept there until all are renamed.
    """
    with held_back(), ExitStack() as undo:
        for index, (new, place) in enumerate(moves):
            old = new.parent / f"old-{index}"
            require_replaceable(place)
            try:
                if place.exists():
                    _keep(place, old)
                    undo.callback(old.replace, place)
                else:
                    undo.callback(place.unlink, missing_ok=True)
                new.replace(place)
            except OSError as error:
                raise OutputError(_cannot_write(str(place), _reason(error), "")) from error
        undo.pop_all()


def _keep(place: Path, old: Path) -> None:
    """Give a file a second name, so that it can come back. Some disks know no second names; there it moves."""
    try:
        old.hardlink_to(place)
    except OSError:
        place.replace(old)


def _cannot_write(what: str, why: str, remedy: str) -> str:
    return f"{what} cannot be written: {why}. {remedy}".strip()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _readable(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} bytes"
