"""Is a folder the bundle that its manifest describes, and with a digest, the bundle that was meant?

Nothing in the folder is trusted, opened as a model or run; links are not followed. Sizes are compared before anything
is read, so that what is read is no more than the manifest says, and the manifest no more than its bound.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trp_export.errors import LoadError, OptionError
from trp_export.ship.manifest import MOST_BYTES, NAME, File, Manifest, is_digest, parse_manifest
from trp_export.ship.manifest import digest as digest_of

_CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Verified:
    """A bundle whose every file is what its manifest says. `origin` is True where a digest vouched for the manifest."""

    manifest: Manifest
    digest: str
    origin: bool

    @property
    def bytes(self) -> int:
        """Of all files that the manifest lists."""
        return sum(file.bytes for file in self.manifest.files.values())


def verify(folder: Path | str, digest: str | None = None) -> Verified:
    """`digest` is the one that the export printed; without it integrity is checked, not origin.

    Raises LoadError for anything changed, missing, extra, oversized or outside; OptionError for what is no digest.
    """
    folder = Path(folder)
    if digest is not None and not is_digest(digest.strip().lower()):
        raise OptionError(f"--digest {digest[:80]!r} is not a sha256: 64 digits of 0-9 and a-f.")
    try:
        written = _read_manifest(folder)
        found = digest_of(written)
        if digest is not None and found != digest.strip().lower():
            raise LoadError(f"{folder}: {NAME} has the digest {found}, not the one expected. Do not use this bundle.")
        manifest = parse_manifest(written)
        _require_same_names(folder, manifest.files)
        for path, file in manifest.files.items():
            _require_same(folder, path, file)
    except OSError as error:
        raise LoadError(f"{folder} cannot be read: {error.strerror or error}.") from error
    return Verified(manifest, found, digest is not None)


def _read_manifest(folder: Path) -> bytes:
    if folder.is_symlink() or not folder.is_dir():
        raise LoadError(f"{folder} is not a folder.")
    path = folder / NAME
    if not os.path.lexists(path):
        raise LoadError(f"{folder} is not a bundle: it holds no {NAME}.")
    size = _size(path, NAME)
    if size > MOST_BYTES:
        raise LoadError(f"{folder}: {NAME} has {size:,} bytes; at most {MOST_BYTES:,} are read.")
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def _require_same_names(folder: Path, files: Mapping[str, File]) -> None:
    """Everything in the folder is listed. The first stray ends the walk, however much more there may be."""
    folders = {path.rpartition("/")[0] for path in files} - {""}
    for above in list(folders):
        folders.update(above[:index] for index, char in enumerate(above) if char == "/")
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


def _require_same(folder: Path, name: str, file: File) -> None:
    path = folder / name
    if not os.path.lexists(path):
        raise LoadError(f"{folder}: {name!r} is missing.")
    size = _size(path, name)
    if size != file.bytes:
        raise LoadError(f"{folder}: {name!r} has {size:,} bytes, not {file.bytes:,}. Do not use this bundle.")
    if hash_file(path)[0] != file.sha256:
        raise LoadError(f"{folder}: {name!r} is not what the manifest says. Do not use this bundle.")


def _size(path: Path, name: str) -> int:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise LoadError(f"{path.parent}: {name!r} is not a plain file.")
    return found.st_size


def hash_file(path: Path) -> tuple[str, int]:
    """sha256 and size of a file, read once, a chunk at a time."""
    made, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            made.update(chunk)
            size += len(chunk)
    return made.hexdigest(), size
