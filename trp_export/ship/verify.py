"""Check that a folder is the bundle that its manifest describes and, with a digest, that it is the expected bundle.

Nothing in the folder is trusted: no file is opened as a model or run, and no link is followed. All names and sizes are
compared before the first file is read, so a check reads at most `MOST_TOTAL_BYTES` and the manifest.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trp_export.errors import LoadError, OptionError
from trp_export.ship.manifest import MOST_BYTES, NAME, File, Manifest, folders_of, is_digest, parse_manifest
from trp_export.ship.manifest import digest as digest_of

_CHUNK_BYTES = 2**20
_DO_NOT_USE = "Do not use this bundle."


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """A bundle whose files all match its manifest. `origin` is True if a digest confirmed the manifest as well."""

    manifest: Manifest
    digest: str
    origin: bool

    @property
    def bytes(self) -> int:
        """The size of all files that the manifest lists."""
        return sum(file.bytes for file in self.manifest.files.values())


def verify_bundle(folder: Path | str, digest: str | None = None) -> VerifiedBundle:
    """Check a bundle. `digest` is the one that the export printed; without it, integrity is checked but not origin.

    Raises LoadError if a file is changed, missing, extra, oversized, a link or outside the folder, OptionError if
    `digest` is not a sha256.
    """
    folder = Path(folder)
    expected = digest.strip().lower() if digest is not None else None
    if expected is not None and not is_digest(expected):
        raise OptionError(f"--digest {expected[:80]!r} is not a sha256: expected 64 digits of 0-9 and a-f.")
    try:
        written = _read_manifest(folder)
        actual = digest_of(written)
        if expected is not None and actual != expected:
            raise LoadError(f"{folder}: the digest is {actual}, not the expected one. {_DO_NOT_USE}")
        manifest = parse_manifest(written)
        _require_same_names(folder, manifest.files)
        for path, file in manifest.files.items():
            _require_same_size(folder, path, file)
        for path, file in manifest.files.items():
            _require_same_content(folder, path, file)
    except OSError as error:
        raise LoadError(f"{folder} cannot be read: {error.strerror or error}.") from error
    return VerifiedBundle(manifest, actual, expected is not None)


def hash_file(path: Path) -> File:
    """The sha256 and the size of a file, which is read once, a chunk at a time."""
    with path.open("rb") as file:
        return _hash(file)


def _read_manifest(folder: Path) -> bytes:
    if folder.is_symlink():
        raise LoadError(f"{folder} is a link; name the folder that it leads to.")
    if not folder.is_dir():
        raise LoadError(f"{folder} is not a folder.")
    if not os.path.lexists(folder / NAME):
        raise LoadError(f"{folder} is not a bundle: it has no {NAME}.")
    with _open_plain(folder, NAME) as file:
        written = file.read(MOST_BYTES + 1)
    if len(written) > MOST_BYTES:
        raise LoadError(f"{folder}: {NAME} is larger than {MOST_BYTES:,} bytes, the most that a manifest may have.")
    return written


def _require_same_names(folder: Path, files: Mapping[str, File]) -> None:
    """Raises LoadError if the folder holds anything that the manifest does not list; stops at the first such name."""
    folders = {name for path in files for name in folders_of(path)}
    for name, entry in _walk(folder):
        if entry.is_symlink():
            raise LoadError(f"{folder}: {name!r} is a link; a bundle holds plain files only.")
        if name not in (folders if entry.is_dir(follow_symlinks=False) else {NAME, *files}):
            raise LoadError(f"{folder}: {name!r} is not in the manifest. Remove it, or do not use this bundle.")


def _walk(folder: Path, above: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder / above) as entries:
        for entry in entries:
            name = f"{above}{entry.name}"
            yield name, entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder, f"{name}/")


def _require_same_size(folder: Path, name: str, file: File) -> None:
    size = _plain_status(folder, name).st_size
    if size != file.bytes:
        raise LoadError(f"{folder}: {name!r} has {size:,} bytes, not {file.bytes:,}. {_DO_NOT_USE}")


def _require_same_content(folder: Path, name: str, file: File) -> None:
    with _open_plain(folder, name) as opened:
        if _hash(opened, file.bytes) != file:
            raise LoadError(f"{folder}: {name!r} is not the file that the manifest describes. {_DO_NOT_USE}")


def _plain_status(folder: Path, name: str) -> os.stat_result:
    """Raises LoadError for anything but a plain file with one name: links, folders, pipes and devices."""
    if not os.path.lexists(folder / name):
        raise LoadError(f"{folder}: {name!r} is missing.")
    status = (folder / name).lstat()
    if not stat.S_ISREG(status.st_mode):
        raise LoadError(f"{folder}: {name!r} is not a plain file.")
    if status.st_nlink > 1:
        raise LoadError(f"{folder}: {name!r} is a hard link, so it can change under another name. Copy the bundle.")
    return status


def _open_plain(folder: Path, name: str) -> BinaryIO:
    """Open a plain file. Raises LoadError for anything else, also if it was replaced while it was opened."""
    status = _plain_status(folder, name)
    # O_NONBLOCK: a pipe that takes the place of the file does not make the check wait.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    file = os.fdopen(os.open(folder / name, flags), "rb")
    if not os.path.samestat(status, os.fstat(file.fileno())):
        file.close()
        raise LoadError(f"{folder}: {name!r} was replaced during the check. {_DO_NOT_USE}")
    return file


def _hash(file: BinaryIO, most: int | None = None) -> File:
    """The sha256 and the size; stops once more than `most` bytes were read."""
    state, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK_BYTES):
        state.update(chunk)
        size += len(chunk)
        if most is not None and size > most:
            break
    return File(state.hexdigest(), size)
