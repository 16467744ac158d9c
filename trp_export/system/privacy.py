r"""What must not leave the machine: local paths, the names of its user and of the machine, stack traces.

A path is known by its form: it begins with a slash and has two or more parts, or with a drive letter, ~, \\\\ or
file://, also within a name (scope//home/alice/x). Networks name their parts in the same form: torch calls a node
/backbone/conv/Conv. In a text, such a name is told from a path by its end, the operator of a layer. In a whole graph
there is better evidence: weights are named after a scope (backbone.conv.weight), its parts repeat its name
(/layer1/layer1.0/conv), or several parts lie below it, where a path leads to one folder.
"""

from __future__ import annotations

import getpass
import re
import socket
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

_PART = r"[^\s\"'<>|:;,()\[\]{}/\\]+"
_REST = r"[^\s\"'<>|:;,()\[\]{}]*"
_PATH = re.compile(
    rf"file://{_REST}"
    rf"|(?<![\w.\-/\\:])/{_PART}(?:/{_PART})+/?"
    rf"|(?<![:/\\])/{{2,}}{_PART}(?:/{_PART})+/?"
    rf"|(?<=[\w.\-])/(?:home|[Uu]sers)/{_PART}/{_REST}"
    rf"|(?<![\w.\-])~[\w.\-]*/{_REST}"
    rf"|(?<![A-Za-z0-9])[A-Za-z]:[\\/]{_REST}"
    rf"|\\\\[\w.\-]+\\{_REST}"
)
# How the name of a layer or of what it computes ends: Conv, Conv_12, Conv_output_0, MatMul.reduce.
_LAYER = re.compile(r"(?:Conv|ConvTranspose|Gemm|MatMul|[A-Z][a-zA-Z]*Conv)(?:_\w+)?(?:\.\w+)*")
_OPERATOR = re.compile(r"[A-Z][A-Za-z0-9]*(?:_\w+)?(?:\.\w+)*")
# People's folders, which no layer is named after, also within a name.
_HOMES = re.compile(r"/(?:home|[Uu]sers)/[^/]+/")
# /m/011k07 is a label of Open Images; one letter and a word are not enough for a path.
_SHORT = re.compile(r"/[^/]/[^/]*")
_TRACE = re.compile(r"Traceback \(most recent|\bFile \S+, line \d+|\.py:\d+|\.py\(\d+\)|\.py\", line \d+")
# Names that many users and machines have.
_NOBODY = {"root", "user", "users", "admin", "ubuntu", "runner", "nobody", "build", "app", "localhost", "docker"}
_LEAST = 3
# /backbone/Conv, split at its slashes.
_LEAST_PARTS = 3


def is_private(text: str) -> bool:
    """Whether a text holds a local path, this user's or this machine's name, or a stack trace."""
    words = {word.lower() for pattern in (r"[\w.\-]+", r"[A-Za-z0-9]+") for word in re.findall(pattern, text)}
    return bool(
        any(not _is_layer(path[0]) for path in _PATH.finditer(text))
        or _TRACE.search(text)
        or _lies_in_places(text)
        or words & _names()
    )


def without_paths(text: str, known: Iterable[Path] = ()) -> str:
    """The text with each local path cut down to its last part; `known` are paths that may be relative, too."""
    for path in sorted({str(path) for path in known}, key=len, reverse=True):
        if "/" in path or "\\" in path:
            text = text.replace(path, Path(path).name)
    text = _PATH.sub(lambda path: path[0] if _is_layer(path[0]) else _last_part(path), text)
    return _in_places().sub(lambda place: _last_part(place) if _begins_a_path(place) else place[0], text)


def names_without_paths(names: Iterable[str], weights: Iterable[str]) -> dict[str, str]:
    """New names for those of a graph that hold local paths. `weights` are the names of its initializers."""
    names = list(names)
    scopes = _scopes(names, weights)
    return {name: short for name in names if (short := _name_without_paths(name, scopes)) != name}


def _name_without_paths(name: str, scopes: frozenset[str]) -> str:
    parts = name.split("/")
    if parts[0] or len(parts) < _LEAST_PARTS or "" in parts[1:] or _lies_in_places(name):
        return without_paths(name)
    if len(parts) == _LEAST_PARTS:
        return name if parts[1] in scopes or _OPERATOR.fullmatch(parts[2]) else parts[2]
    return name if parts[1] in scopes else parts[-1]


def _scopes(names: Iterable[str], weights: Iterable[str]) -> frozenset[str]:
    """The first parts of names such as /backbone/conv/Conv that stand for a part of the network."""
    of_weights = {weight.partition(".")[0] for weight in weights if "." in weight and "/" not in weight}
    below: dict[str, set[str]] = defaultdict(set)
    nested = set()
    for name in names:
        root, *parts = name.split("/")
        if root or len(parts) < _LEAST_PARTS - 1:
            continue
        below[parts[0]].add(parts[1])
        if parts[1].startswith(f"{parts[0]}."):
            nested.add(parts[0])
    branching = {scope for scope, children in below.items() if len(_without_numbers(children)) > 1}
    return frozenset(nested | (of_weights & below.keys()) | branching)


def _without_numbers(parts: Iterable[str]) -> set[str]:
    """Relu, Relu_1 and Relu_output_0 are one operator."""
    return {re.sub(r"(?:_output)?_\d+$", "", part) for part in parts}


def _is_layer(path: str) -> bool:
    """Whether what looks like a path is the name of a layer, or a label."""
    if not path.startswith("/") or path.startswith("//") or _HOMES.match(path):
        return False
    return bool(_SHORT.fullmatch(path) or _LAYER.fullmatch(path.rpartition("/")[2]))


def _last_part(path: re.Match[str]) -> str:
    """Of a path within a name, the slash before it stays."""
    last = re.split(r"[/\\]", path[0].rstrip("/\\."))[-1]
    within = path.start() > 0 and path.string[path.start() - 1] not in " \"'<>|:;,()[]{}"
    return f"/{last}" if within and path[0].startswith("/") else last


def _in_places() -> re.Pattern[str]:
    """What lies in a folder of this user or of this run."""
    places = "|".join(map(re.escape, _places()))
    return re.compile(rf"(?P<place>{places})(?:[/\\]{_REST}|(?![\w.\-]))" if places else r"(?!)")


def _lies_in_places(text: str) -> bool:
    return any(map(_begins_a_path, _in_places().finditer(text)))


def _places() -> tuple[str, ...]:
    """Folders of this user and of this run, the longest first."""
    found = (_place(find) for find in (Path.cwd, Path.home, tempfile.gettempdir))
    places = {str(place) for place in found if place and len(place.parts) > 1}
    return tuple(sorted(places, key=len, reverse=True))


def _begins_a_path(found: re.Match[str]) -> bool:
    """Whether a folder of this run begins a path, and is no part of the name of a layer, as in /level2/root/Conv.

    /root and /model are names of layers too: these count behind a colon or an option of a compiler (-I/root/x), where
    no name stands.
    """
    before = found.string[: found.start()]
    if len(Path(found["place"]).parts) < _LEAST_PARTS:
        return bool(re.search(r"(?:(?<![\w.\-])-[A-Za-z]|:)\Z", before))
    return not (before.endswith(("/", "\\")) or before[-1:].isalnum())


def _place(find: Callable[[], Path | str]) -> Path | None:
    """None where there is none: many containers have no home and no folder for temporary files."""
    try:
        return Path(find())
    except (OSError, RuntimeError):
        return None


def _names() -> frozenset[str]:
    """The names of the user and of the machine, unless they are common ones."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = ""
    home = _place(Path.home)
    names = {user, socket.gethostname(), home.name if home else ""}
    return frozenset(name.lower() for name in names if len(name) >= _LEAST and name.lower() not in _NOBODY)
