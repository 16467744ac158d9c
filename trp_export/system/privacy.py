"""What must not leave the machine: local paths, who and where its user is, stack traces.

Text of a model file and messages of libraries may hold any of them. Names that networks use, such as
`/layer1/Conv`, look like paths and are none: a path is known by where it begins.
"""

from __future__ import annotations

import getpass
import re
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path

_ROOTS = (
    *("home", "Users", "root", "tmp", "var", "private", "mnt", "media", "opt", "srv", "usr", "etc", "Volumes"),
    *("workspace", "workspaces", "builds", "kaggle", "scratch", "lustre", "nfs", "gpfs", "data", "work", "__w"),
)
_REST = r"[^\s\"'<>|:;,()\[\]{}]*"
_PATH = re.compile(
    rf"(?:file://|(?<![\w.\-/\\]))(?:/(?:{'|'.join(_ROOTS)})(?=[/\\]){_REST}"
    rf"|~[\w.\-]*/{_REST}|[A-Za-z]:[\\/]{_REST}|\\\\[\w.\-]+\\{_REST})"
)
_TRACE = re.compile(r"Traceback \(most recent|\bFile \S+, line \d+|\.py:\d+|\.py\(\d+\)|\.py\", line \d+")
# Users of many machines, who are nobody in particular.
_NOBODY = {"root", "user", "users", "admin", "ubuntu", "runner", "nobody", "build", "app", "localhost", "docker"}
_LEAST = 3


def is_private(text: str) -> bool:
    """Whether a text holds a local path, this user's or this machine's name, or a stack trace."""
    words = {word.lower() for pattern in (r"[\w.\-]+", r"[A-Za-z0-9]+") for word in re.findall(pattern, text)}
    return bool(
        _PATH.search(text) or _TRACE.search(text) or any(place in text for place in _places()) or words & _names()
    )


def without_paths(text: str, known: Iterable[Path] = ()) -> str:
    """The text with each local path cut down to its last name; `known` are paths that may be relative, too."""
    for path in sorted({str(path) for path in known}, key=len, reverse=True):
        if "/" in path or "\\" in path:
            text = text.replace(path, Path(path).name)
    for place in _places():
        text = re.sub(re.escape(place) + r"(?:[/\\]" + _REST + ")?", _last_name, text)
    return _PATH.sub(_last_name, text)


def _last_name(found: re.Match[str]) -> str:
    return re.split(r"[/\\]", found[0].rstrip("/\\."))[-1]


def _places() -> tuple[str, ...]:
    """Folders of this user and this run, the longest first."""
    found = {str(place) for place in (Path.home(), Path.cwd(), Path(tempfile.gettempdir()))}
    return tuple(sorted((place for place in found if len(Path(place).parts) > 1), key=len, reverse=True))


def _names() -> frozenset[str]:
    """Who and where this is, where that says anything."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = ""
    found = {user, socket.gethostname(), Path.home().name}
    return frozenset(name.lower() for name in found if len(name) >= _LEAST and name.lower() not in _NOBODY)
