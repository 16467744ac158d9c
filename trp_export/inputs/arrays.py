"""The one reader of .npy and .npz files. It bounds the size before it allocates, and runs nothing from a file."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Container
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from trp_export.errors import LoadError, first_line
from trp_export.system.files import require_fetched

MOST_BYTES = 2 * 2**30
_MOST_MEMBERS = 2**16
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


def require_plain_file(path: Path) -> int:
    """The size in bytes of a plain file, or of the plain file that a link leads to. Raises LoadError for others."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise LoadError(f"{path} does not exist.") from error
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS.items() if test(found.st_mode)), "something else")
        raise LoadError(f"{path} is {kind}, not a plain file.")
    return found.st_size


def read_arrays(
    path: Path, *, only: Container[str] | None = None, most_bytes: int = MOST_BYTES, mapped: bool = False
) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz by name, or the one array of an .npy under the empty name.

    `only` names the arrays of an .npz that are read. `mapped` maps an .npy into memory instead of reading it, so that
    its size is not bounded. Raises LoadError for anything but plain files of numbers within `most_bytes`.
    """
    size = require_plain_file(path)
    require_fetched(path)
    try:
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
                return _read_npz(path, only, most_bytes)
            file.seek(0)
            _check_header(file, size, path, "")
            if mapped:
                return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
            _require_bounded(path, size, most_bytes)
            file.seek(0)
            return {"": npy.read_array(file, allow_pickle=False)}
    except LoadError:
        raise
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or first_line(error)}.") from error
    except Exception as error:  # numpy and zipfile raise many kinds of errors for damaged files.
        raise LoadError(f"{path} is not an .npy or .npz file, or a damaged one ({first_line(error, 100)}).") from error


def read_input_file(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz by name, or the array of an .npy under the empty name.

    An array may be empty along other axes than the first, as the past of a decoder is at its first step. Raises
    LoadError for others that are empty.
    """
    arrays = read_arrays(path)
    if not arrays:
        raise LoadError(f"{path} holds no array; store one per input, under the name of the input.")
    empty = next((name for name, array in arrays.items() if array.ndim and not array.shape[0]), None)
    if empty is not None:
        raise LoadError(f"{path}: array {empty!r} is empty.")
    return arrays


def _read_npz(path: Path, only: Container[str] | None, most_bytes: int) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > _MOST_MEMBERS:
            raise LoadError(f"{path} holds {len(members):,} arrays; at most {_MOST_MEMBERS:,} are read.")
        named = {member.filename.removesuffix(".npy"): member for member in members}
        wanted = {name: member for name, member in named.items() if only is None or name in only}
        _require_bounded(path, sum(member.file_size for member in wanted.values()), most_bytes)
        return {name: _read_member(archive, member, path, name) for name, member in wanted.items()}


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, name: str) -> NDArray[Any]:
    with archive.open(member) as file:
        _check_header(file, member.file_size, path, name)
    with archive.open(member) as file:
        return npy.read_array(file, allow_pickle=False)


def _check_header(file: IO[bytes], size: int, path: Path, name: str) -> None:
    """numpy allocates what a header claims before it reads: the claim must be what the file holds."""
    what = f"{path}: array {name!r}" if name else str(path)
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise LoadError(f"{what} holds Python objects, which can run code when they are opened; store numbers.")
    claimed = prod(shape) * dtype.itemsize
    if claimed > size - file.tell():
        raise LoadError(f"{what} is damaged: its header claims {claimed:,} bytes, and it holds {size - file.tell():,}.")


def _require_bounded(path: Path, size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise LoadError(f"{path} would take {size / 1e9:.1f} GB of memory; at most {most_bytes / 1e9:.1f} are read.")
