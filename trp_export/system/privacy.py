r"""What must not leave the machine: local paths, who and where its user is, stack traces.

Texts of a model file and messages of libraries may hold any of them. Names that networks use, such as `/layer1/Conv`,
look like paths. A word is taken for a local path if one of these holds:

1. It starts as only paths do: `file://`, `~/`, `C:\`, `\\server\`.
2. It is absolute and starts with a folder of an operating system.
3. It is absolute, and its first two folders exist on this machine.
4. It is absolute, starts with a usual folder of clusters and clouds, and has at least three parts; or four, if modules
   are often named after the folder as well (`/net`, `/content`). Scopes of PyTorch repeat their parts, so they are no
   such paths (`/net/net.0/Conv`).
5. It holds `/home/` or `/users/` with more after it, wherever that is: a path that was appended to a scope.
"""

from __future__ import annotations

import getpass
import re
import socket
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

_SYSTEM = (
    *("home", "users", "root", "tmp", "var", "private", "mnt", "media", "opt", "srv", "usr", "etc", "proc", "run"),
    *("boot", "dev", "lib", "lib32", "lib64", "bin", "sbin", "sys", "volumes", "applications", "library", "snap"),
)
_SHARED = (
    *(
        "workspace",
        "workspaces",
        "builds",
        "kaggle",
        "scratch",
        "lustre",
        "nfs",
        "gpfs",
        "beegfs",
        "afs",
        "ceph",
        "weka",
    ),
    *("data", "work", "__w", "projects", "project", "proj", "export", "exports", "cluster", "gscratch", "ptmp", "hpc"),
    *("dbfs", "databricks", "teamspace", "nobackup", "localscratch", "homes", "ihome", "efs", "fsx", "nas", "vol"),
    *("volume", "hdd", "ssd", "nvme", "raid", "datasets", "dataset", "shares", "hpcwork", "netscratch", "notebooks"),
    *("global", "pfs", "lfs", "zfs", "tank", "depot", "glade", "rds", "autofs", "isilon", "vast", "ddn", "hpcdata"),
)
# Folders of clusters and containers that modules are named after as well.
_AMBIGUOUS = (
    *("net", "app", "u", "content", "storage", "shared", "share", "group", "groups", "local", "code", "src", "build"),
    *("disk", "disks", "archive", "store", "cache", "user", "site", "repo", "model", "models", "blue", "orange"),
)
_LEAST_PARTS, _LEAST_PARTS_IF_AMBIGUOUS = 3, 4
_WORD = re.compile(r"[^\s\"'<>|;,()\[\]{}]+")
_DRIVE_OR_SHARE = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]:[\\/]|\\\\[\w.\-]+\\|(?<![\w.\-])~[\w.\-]*/|file://")
_INSIDE = re.compile(r"/(?:home|users)\d*/(?=[^/])", re.IGNORECASE)
_URL = re.compile(r"\b(?!file:)[a-z][a-z0-9+.\-]*://", re.IGNORECASE)
_TRACE = re.compile(r"Traceback \(most recent|\bFile \S+, line \d+|\.py:\d+|\.py\(\d+\)|\.py\", line \d+")
# Users of many machines, who do not name a person.
_NOBODY = {"root", "user", "users", "admin", "ubuntu", "runner", "nobody", "build", "app", "localhost", "docker"}
_SHORTEST_NAME = 3


def is_private(text: str) -> bool:
    """True if a text holds a local path, this user's or this machine's name, or a stack trace."""
    words = {word.lower() for pattern in (r"[\w.\-]+", r"[A-Za-z0-9]+") for word in re.findall(pattern, text)}
    return bool(
        _TRACE.search(text)
        or any(_path_start(word) is not None for word in _WORD.findall(text))
        or any(place in text for place in _places())
        or words & _names()
    )


def without_paths(text: str, known: Iterable[Path] = ()) -> str:
    """The text with the last part of each local path in its place. `known` are paths that may be relative."""
    for path in sorted({str(path) for path in known}, key=len, reverse=True):
        if "/" in path or "\\" in path:
            text = text.replace(path, Path(path).name)
    for place in _places():
        text = re.sub(re.escape(place) + r"(?:[/\\][^\s\"'<>|:;,()\[\]{}]*)?", lambda match: _last_part(match[0]), text)
    return _WORD.sub(lambda match: _without_path(match[0]), text)


def _without_path(word: str) -> str:
    start = _path_start(word)
    if start is None:
        return word
    path = word[start:].rstrip(":.")
    before, after = word[:start], word[start + len(path) :]
    if path.count(":") > path[:2].count(":") + path.startswith("file:"):  # A path and a line: net.py:3
        path, colon, rest = path.rpartition(":")
        after = colon + rest + after
    joint = "/" if before.endswith("/") or before[-1:].isalnum() else ""
    return before.rstrip("/") + joint + _last_part(path) + after


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\."))[-1]


def _path_start(word: str) -> int | None:
    """Where a local path begins in a word; None if it holds none."""
    if _URL.match(word):
        return None
    if match := _DRIVE_OR_SHARE.search(word):
        return match.start()
    for match in re.finditer(r"/+", word):
        absolute = match.start() == 0 or not (word[match.start() - 1].isalnum() or word[match.start() - 1] in "._-")
        if (absolute or len(match[0]) > 1) and _is_local(word[match.end() - 1 :]):
            return match.end() - 1
    inside = _INSIDE.search(word)
    return inside.start() if inside else None


def _is_local(path: str) -> bool:
    """Rules 2 to 4 for an absolute path."""
    parts = [part for part in re.split(r"[/\\]", path) if part]
    if len(parts) < 2:
        return False
    root = re.sub(r"\d+$", "", parts[0].lower())
    if root in _SYSTEM or _exists(Path("/", *parts[:2])):
        return True
    scope = any(second.startswith(f"{first}.") for first, second in pairwise(parts))
    usual = root in _SHARED and len(parts) >= _LEAST_PARTS
    ambiguous = root in _AMBIGUOUS and len(parts) >= _LEAST_PARTS_IF_AMBIGUOUS
    return not scope and (usual or ambiguous)


@lru_cache(1024)
def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _places() -> tuple[str, ...]:
    """Folders of this user and this run, the longest first."""
    places = {str(place) for place in (Path.home(), Path.cwd(), Path(tempfile.gettempdir()))}
    return tuple(sorted((place for place in places if len(Path(place).parts) > 1), key=len, reverse=True))


def _names() -> frozenset[str]:
    """The names of this user and this machine, if they say anything."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = ""
    names = {user, socket.gethostname(), Path.home().name}
    return frozenset(name.lower() for name in names if len(name) >= _SHORTEST_NAME and name.lower() not in _NOBODY)
