"""Text that would act on a terminal, a page or a card, in every place where a command shows text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from attempt import UNSAFE, Attempt, Call, Ended
from kit import EXPORT, PLAN, TABLE, Kit, network
from PIL import Image

PAYLOADS = {
    "a window title": "\x1b]0;PWNED\x07",
    "clear the screen": "\x1b[2J\x1b[H",
    "C1 control": "\x9b2J\x9d0;PWNED\x9c",
    "bell and backspace": "\x07\x08\x08\x08done",
    "right to left": "\u202exnno.exe\u2066",
    "a forged line": "x\nerror: all is well\nwrote /etc/passwd",
    "carriage return": "x\rwrote everything",
    "line separators": "x\u2028error: y\u2029z\x85w\x0bv",
    "markup of rich": "[red]x[/red][link=http://evil.example]y[/link]",
    "unclosed markup of rich": "[/bold][",
    "a script": "<script>alert(1)</script>",
    "an image": "<img src=x onerror=alert(1)>",
    "end of a script": "</script><script>alert(1)//",
    "end of a title": "</title></style><svg onload=alert(1)>",
    "an attribute": "\" onmouseover=alert(1) '",
    "a code fence": "x\n```\n<img src=x onerror=alert(1)>\n```",
    "a longer fence": "````\n<img src=x onerror=alert(1)>",
    "a link": "[click](javascript:alert(1)) ![x](http://127.0.0.1:1/x)",
    "a table": "| a | b |\n|---|---|\n| ${x} | `id` |",
    "a shell command": "$(touch PWNED); `touch PWNED` && touch PWNED #",
    "formats": "%s%n {0} {x.__class__} {{",
    "a formula": "=cmd|' /C calc'!A1",
    "a formula of TeX": "$\\frac{$ $\\input{/etc/passwd}$",
    "zero width and marks": "a\u200bb\ufeffc\u0300" * 20,
    "a long text": "n" * 5000,
}
_FILE_NAME_BYTES = 200


def attempts(kit: Kit) -> Iterator[Attempt]:
    """Each payload in each place; where a whole export is needed, every third payload."""
    for index, (payload, text) in enumerate(PAYLOADS.items()):
        for number, (place, put) in enumerate(PLACES.items()):
            if place not in SLOW or (index + number) % 3 == 0:
                yield Attempt("injection", f"{payload}, {place}", partial(put, kit, text))


def _layer(extra: tuple[str, ...], kit: Kit, text: str, folder: Path) -> Call:
    onnx.save(network((text, "conv2", "fc")), folder / "m.onnx")
    return Call("trp-export", ["m.onnx", *extra], codes=(0, 2, 3), check=_shown)


def _searched(kit: Kit, text: str, folder: Path) -> Call:
    """A layer that is kept and one that becomes a pair; the pictures of the search hold their names, too."""
    kit.copy(folder, "good.npz")
    onnx.save(network((text, f"{text}2", "fc")), folder / "m.onnx")
    arguments = ["m.onnx", "--data", "good.npz", "--macs", "1.2", "--epochs", "2", "-o", "s.json"]
    return Call("trp-search", arguments, codes=(0, 2, 3), writes=("s.json", "s.search", "s.search/*"), check=_shown)


def _node(kit: Kit, text: str, folder: Path) -> Call:
    model = network()
    model.graph.node[0].name = text
    model.graph.name, model.producer_name, model.doc_string = text, text, text
    model.metadata_props.add(key="license", value=text)
    onnx.save(model, folder / "m.onnx")
    return Call(
        "trp-export",
        ["m.onnx", "--rank", "2", "--calib", "none", "--no-bench", "--bundle", "b"],
        codes=(0,),
        check=_shown,
    )


def _value(kit: Kit, text: str, folder: Path) -> Call:
    model = network()
    for node in model.graph.node:
        node.input[:] = [text if name == "image" else name for name in node.input]
    model.graph.input[0].name = text
    onnx.save(model, folder / "m.onnx")
    return Call(
        "trp-export",
        ["m.onnx", "--rank", "2", "--calib", "none", "--no-bench", "--bundle", "b"],
        codes=(0, 3, 4),
        check=_shown,
    )


def _file_name(
    program: str, arguments: tuple[str, ...], codes: tuple[int, ...], kit: Kit, text: str, folder: Path
) -> Call:
    name = text.replace("/", "_").encode()[:_FILE_NAME_BYTES].decode(errors="ignore") + ".onnx"
    (folder / name).write_bytes(kit["base.onnx"].read_bytes())
    return Call(program, [f"./{name}", *arguments], codes=codes, check=_shown)


def _picture(kind: str, kit: Kit, text: str, folder: Path) -> Call:
    onnx.save(network((text, "conv2", "fc")), folder / "m.onnx")
    arguments = ["m.onnx", "--budget", "0.1", "--processes", "1", "--profile", "--plot", f"p.{kind}"]
    return Call("trp-bench", arguments, codes=(0,), check=_shown)


def _class_folder(kit: Kit, text: str, folder: Path) -> Call:
    """Two classes of images, one of them with the text as its name and as that of a damaged image."""
    name = text.replace("/", "_").encode()[:_FILE_NAME_BYTES].decode(errors="ignore")
    for label in (name, "dog"):
        (folder / "data" / label).mkdir(parents=True)
        for index in range(32):
            pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / label / f"{index}.png")
    (folder / "data" / name / f"{name}.png").write_bytes(b"damaged")
    train = ("--arch", "resnet20", "--batch", "32", "--validation", "16", "--epochs", "1", "--shape", "1,3,32,32")
    return Call("trp-train", [*train, "--data", "imagefolder:data", "-o", "run"], codes=(0, 2, 3), check=_shown)


def _unlisted(kit: Kit, text: str, folder: Path) -> Call:
    kit.copy(folder, "bundle")
    name = text.replace("/", "_").encode()[:_FILE_NAME_BYTES].decode(errors="ignore")
    (folder / "bundle" / name).write_text("x")
    return Call("trp-bundle", ["verify", "bundle"], codes=(3,), check=_shown)


def _missing(program: str, kit: Kit, text: str, folder: Path) -> Call:
    rule = EXPORT if program == "trp-export" else ()
    return Call(program, [f"./{text}.onnx", *rule], codes=(2, 3, 7), check=_shown)


def _plan(kit: Kit, text: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    plan = json.loads(json.dumps(PLAN))
    plan["layers"][0]["name"] = plan["rule"] = plan["layers"][1]["reason"] = text
    (folder / "plan.json").write_text(json.dumps(plan))
    return Call("trp-export", ["base.onnx", "--plan", "plan.json", "--dry-run"], codes=(0, 2, 3), check=_shown)


def _reason(kit: Kit, text: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    plan = json.loads(json.dumps(PLAN))
    plan["rule"] = plan["layers"][0]["reason"] = plan["layers"][1]["reason"] = text
    (folder / "plan.json").write_text(json.dumps(plan))
    arguments = ["base.onnx", "--plan", "plan.json", "--no-bench", "--bundle", "b", "-v"]
    return Call("trp-export", arguments, codes=(0, 3), check=_shown)


def _table(kit: Kit, text: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    table = json.loads(json.dumps(TABLE))
    table["conditions"]["cpu"] = text
    (folder / "table.json").write_text(json.dumps(table))
    arguments = ["base.onnx", "--speedup", "1.1", "--dry-run", "--latency-table", "table.json"]
    return Call("trp-export", arguments, codes=(3, 9), check=_shown)


def _samples(kit: Kit, text: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    samples = json.loads(kit["samples.json"].read_text())
    samples["environment"]["cpu"] = samples["models"][0]["model"] = text
    samples["noise"] = [text]
    (folder / "samples.json").write_text(json.dumps(samples))
    arguments = ["base.onnx", "--budget", "0.2", "--processes", "1", "--against", "samples.json"]
    return Call("trp-bench", arguments, codes=(0, 3, 9), check=_shown)


def _classes(kit: Kit, text: str, folder: Path) -> Call:
    content = torch.load(kit["checkpoint.pt"], weights_only=True)
    content["classes"], content["licence"] = [text, "dog", *map(str, range(8))], text
    torch.save(content, folder / "c.pt")
    return Call("trp-export", ["c.pt", *EXPORT, "--bundle", "b"], codes=(0, 3), check=_shown)


def _array(kit: Kit, text: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    name = text.replace("/", "_").replace("\0", "")
    arrays: dict[str, Any] = {name: np.zeros((1, 3, 12, 12), np.float32)}
    np.savez(folder / "in.npz", **arrays)
    return Call("trp-export", ["base.onnx", *EXPORT, "--input", "in.npz"], codes=(2, 3), check=_shown)


def _option(option: str, codes: tuple[int, ...], kit: Kit, text: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    return Call(
        "trp-export",
        ["base.onnx", "--rank", "2", "--calib", "none", "--no-bench", option, text],
        codes=codes,
        check=_shown,
    )


def _image_name(kit: Kit, text: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "images")
    name = text.replace("/", "_").encode()[:_FILE_NAME_BYTES].decode(errors="ignore")
    (folder / "images" / f"{name}.png").write_bytes(b"not an image")
    rule = ("--rank", "2", "--calib", "none", "--no-bench")
    return Call("trp-export", ["base.onnx", *rule, "--calib", "images"], codes=(0, 3), check=_shown)


def _manifest(kit: Kit, text: str, folder: Path) -> Call:
    kit.copy(folder, "bundle")
    manifest = json.loads(kit["bundle/manifest.json"].read_text())
    manifest["files"][text] = {"sha256": "0" * 64, "bytes": 1}
    (folder / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    return Call("trp-bundle", ["verify", "bundle"], codes=(3,), check=_shown)


Put = Callable[[Kit, str, Path], Call]
SLOW = (
    *("name of a layer, in the bundle", "names and texts of the graph", "name of an input", "file name of a model"),
    *("file name in trp-bench", "reason in a plan", "saved benchmark", "names of classes"),
    *("name of a layer, in an SVG", "name of a layer, in a PNG", "folder of a class", "name of a layer, in trp-search"),
)
PLACES: dict[str, Put] = {
    "name of a layer, in the tables": partial(_layer, ("--rank", "2", "--calib", "none", "--dry-run", "-v")),
    "name of a layer, in the bundle": partial(
        _layer, ("--rank", "2", "--calib", "none", "--no-bench", "--bundle", "b")
    ),
    "name of a layer, in trp-search": _searched,
    "name of a layer, in an error": partial(_layer, ("--rank", "2", "--only", "nothing")),
    "names and texts of the graph": _node,
    "name of an input": _value,
    "file name of a model": partial(
        _file_name, "trp-export", ("--rank", "2", "--calib", "none", "--no-bench", "--bundle", "b"), (0, 2)
    ),
    "file name in trp-bench": partial(_file_name, "trp-bench", ("--budget", "0.1", "--processes", "1"), (0,)),
    "name of a layer, in an SVG": partial(_picture, "svg"),
    "name of a layer, in a PNG": partial(_picture, "png"),
    "name of no file": partial(_missing, "trp-export"),
    "name of no file in trp-bench": partial(_missing, "trp-bench"),
    "layer in a plan": _plan,
    "reason in a plan": _reason,
    "processor in a table": _table,
    "saved benchmark": _samples,
    "names of classes": _classes,
    "name of an array": _array,
    "--only": partial(_option, "--only", (2,)),
    "--scheme": partial(_option, "--scheme", (2,)),
    "--calib": partial(_option, "--calib", (2, 3)),
    "--shape": partial(_option, "--shape", (2,)),
    "-o": partial(_option, "-o", (2, 7)),
    "name of an image": _image_name,
    "file in a manifest": _manifest,
    "file that no manifest lists": _unlisted,
    "folder of a class": _class_folder,
}


class _Elements(HTMLParser):
    """What a browser would build: elements and attributes that no page of ours has."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []
        self._in_script = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        handlers = [name for name, _ in attributes if name.startswith("on")]
        links = [
            value for name, value in attributes if name in ("src", "href") and (value or "").startswith(("java", "x"))
        ]
        if tag in ("img", "iframe", "object", "embed", "base") or handlers or links:
            self.foreign.append(self.get_starttag_text() or tag)

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and "alert(1)" in data and "<script>alert(1)</script>" not in data:
            self.foreign.append(data[:80])


def _shown(ended: Ended) -> str | None:
    """What a page or a card would do, and whether a command was run."""
    if (ended.folder / "PWNED").exists():
        return "a shell command was run"
    forged = [line for line in ended.text.splitlines() if line.startswith(("error: all is well", "wrote everything"))]
    if forged or "\nwrote /etc/passwd" in ended.text:
        return f"a forged line: {ended.text[-300:]!r}"
    for page in (*ended.folder.rglob("*.html"), *ended.folder.rglob("*.svg")):
        elements = _Elements()
        elements.feed(page.read_text(encoding="utf-8"))
        if elements.foreign:
            return f"{page.name} holds {elements.foreign[0]!r}"
    for names in ended.folder.rglob("odd-images.txt"):
        if UNSAFE.search(names.read_text(encoding="utf-8")):
            return f"{names.name} holds control characters"
    for card in ended.folder.rglob("README.md"):
        complaint = _card(card.read_text(encoding="utf-8"))
        if complaint:
            return complaint
    return None


def _card(text: str) -> str | None:
    fence: str | None = None
    for line in text.split("\n"):
        mark = re.match(r" {0,3}(`{3,})", line)
        if mark and (fence is None or len(mark[1]) >= len(fence)):
            fence = None if fence is not None else mark[1]
        elif fence is None and re.search(r"(?<!\\)<(img|script|svg)\b", re.sub(r"`[^`]*`", "", line)):
            return f"README.md holds {line[:100]!r}"
    return "README.md holds control characters" if UNSAFE.search(text) else None
