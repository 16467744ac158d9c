"""Changes to a bundle, each of which the check must find."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from attempt import Attempt, Call
from kit import Kit, in_turn

Change = Callable[[Path], object]
Edit = Callable[[dict[str, Any]], object]
ODD: tuple[Any, ...] = (None, [], {}, "x" * 10**5, -1, 10**30, [[[]]], {"a": {"b": None}})
# Fields that a sound manifest may hold in another way; only --digest finds that they were changed.
MAY_HOLD = ("inputs", "outputs", "preprocessing", "classes", "opset", "provenance")


def attempts(kit: Kit) -> Iterator[Attempt]:
    """Each file changed in each way, and the folder and manifest changed."""
    names = [path.name for path in kit["bundle"].iterdir() if path.name != "manifest.json"]
    for name in names:
        for what, change in _files().items():
            yield Attempt("bundles", f"{name} {what}", partial(_changed, kit, partial(_change_inside, name, change)))
    for what, change in _folders().items():
        yield Attempt("bundles", what, partial(_changed, kit, change))
    for what, edit in _manifests().items():
        codes = (0, 2, 3) if what.startswith(MAY_HOLD) else (2, 3)
        yield Attempt("bundles", f"manifest with {what}", partial(_changed, kit, partial(_edit, edit), codes=codes))
    for digest in ("0" * 64, "", "x", "\x1b[2J", "sha256:" + "0" * 64, "0" * 10**5):
        yield Attempt(
            "bundles",
            f"digest {digest[:20]!r} of {len(digest)} characters",
            partial(_changed, kit, lambda b: None, digest),
        )


def _change_inside(name: str, change: Change, bundle: Path) -> None:
    change(bundle / name)


def _changed(kit: Kit, change: Change, *rest: Any, codes: tuple[int, ...] = (2, 3)) -> Call:
    *digest, folder = rest
    kit.copy(folder, "bundle")
    change(folder / "bundle")
    return Call("trp-bundle", ["verify", "bundle", *(["--digest", digest[0]] if digest else [])], codes=codes)


def _files() -> dict[str, Change]:
    def rewrite(edit: Callable[[bytes], bytes]) -> Change:
        return lambda path: path.write_bytes(edit(path.read_bytes()))

    def replaced(make: Change) -> Change:
        return in_turn(lambda path: path.rename(path.parent.parent / "kept"), make)

    return {
        "with a byte changed": rewrite(lambda data: bytes([data[0] ^ 1]) + data[1:]),
        "one byte shorter": rewrite(lambda data: data[:-1]),
        "one byte longer": rewrite(lambda data: data + b"\n"),
        "empty": rewrite(lambda data: b""),
        "removed": Path.unlink,
        "renamed": lambda path: path.rename(path.with_name(path.name + "x")),
        "in capitals": lambda path: path.rename(path.with_name(path.name.upper() + ".X")),
        "a link to itself elsewhere": replaced(lambda path: path.symlink_to("../kept")),
        "a hard link": replaced(lambda path: os.link(path.parent.parent / "kept", path)),
        "a folder": replaced(Path.mkdir),
        "a pipe": replaced(os.mkfifo),
        "a link to /dev/zero": replaced(lambda path: path.symlink_to("/dev/zero")),
        "3 TB of nothing": lambda path: os.truncate(path, 3 * 10**12),
        "twice": lambda path: path.with_name(f"copy-{path.name}").write_bytes(path.read_bytes()),
    }


def _folders() -> dict[str, Change]:
    def add(name: str) -> Change:
        def make(bundle: Path) -> None:
            path = bundle / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")

        return make

    def moved(bundle: Path) -> None:
        bundle.rename(bundle.with_name("b"))

    return {
        **{
            f"with {name!r} added": add(name)
            for name in ("x", ".x", "Sub/x", "\x1b[2J", "e\u0301", "a\nb", "con", "x" * 255)
        },
        "with an empty folder": lambda bundle: (bundle / "empty").mkdir(),
        "with 20,000 files": _many_files,
        "without a manifest": lambda bundle: (bundle / "manifest.json").unlink(),
        "with a manifest that is a link": in_turn(
            lambda bundle: (bundle / "manifest.json").rename(bundle.parent / "m.json"),
            lambda bundle: (bundle / "manifest.json").symlink_to("../m.json"),
        ),
        "with a manifest that is a pipe": in_turn(
            lambda bundle: (bundle / "manifest.json").unlink(),
            lambda bundle: os.mkfifo(bundle / "manifest.json"),
        ),
        "with a deep folder": lambda bundle: (bundle / "/".join(["d"] * 500)).mkdir(parents=True),
        "with a loop of links": lambda bundle: (bundle / "loop").symlink_to("."),
        "that is a file": in_turn(moved, lambda bundle: bundle.write_text("x")),
        "that is a link to nothing": in_turn(moved, lambda bundle: bundle.symlink_to("absent")),
    }


def _many_files(folder: Path) -> None:
    for index in range(20_000):
        (folder / f"f{index}").touch()


def _edit(edit: Edit, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    edit(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def _manifests() -> dict[str, Edit]:
    entry = {"sha256": "0" * 64, "bytes": 1}

    def listed(name: str) -> Edit:
        return lambda manifest: manifest["files"].update({name: entry})

    def with_field(field: str, value: Any) -> Edit:
        return lambda manifest: manifest.update({field: value})

    def with_entry(field: str, value: Any) -> Edit:
        return lambda manifest: manifest["files"]["model.onnx"].update({field: value})

    names = (
        "../x",
        "/etc/passwd",
        "a/../../x",
        "C:\\x",
        "a\\b",
        "",
        ".",
        "x\0y",
        "\x1b]0;X\x07",
        "MODEL.ONNX",
        "a//b",
        "con",
    )
    edits: dict[str, Edit] = {f"file {name!r}": listed(name) for name in names}
    edits["names that differ by form"] = lambda m: (listed("e\u0301")(m), listed("\u00e9")(m))
    edits["a file that is a folder"] = lambda m: (listed("sub")(m), listed("sub/x")(m))
    edits["100,000 files"] = lambda m: m["files"].update({f"f{index}": entry for index in range(100_000)})
    for field in ("model", "files", "inputs", "outputs", "preprocessing", "classes", "provenance", "opset"):
        for value in ODD:
            edits[f"{field} {str(value)[:20]}"] = with_field(field, value)
    for size in (-1, 10**18, 1.5, "1", None, True):
        edits[f"a size of {size!r}"] = with_entry("bytes", size)
    for digest in ("", "0", "g" * 64, "0" * 63, "A" * 64, None, 5):
        edits[f"a digest of {digest!r}"[:60]] = with_entry("sha256", digest)
    edits["a model that is no file of it"] = with_field("model", "other.onnx")
    edits["an unknown field"] = with_field("run", "load.py")
    return edits
