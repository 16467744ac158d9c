"""Count what docs/architecture.md states: boxes, imports between them, circles, lines, and what one export enters.

    python tools/architecture_counts.py [--root CHECKOUT] [--model MODEL.onnx] [--write]

A box is `training`, `training.search`, `models_zoo`, a folder of `trp_export/` or a loose module in it. An arrow is an
import from one box to another, wherever it stands: inside functions and for type checking too. A circle is a group of
modules that import one another in this sense.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from common import put_into_page

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
# At commit ed875d4, with MODEL as the page says.
BEFORE = {
    "boxes": 38,
    "arrows between them": 223,
    "modules in import circles": 6,
    "lines in `trp_export/`": 18_339,
    "lines in `training/`": 4_954,
    "lines in `tools/`": 3_884,
    "modules entered by an export with `--energy 0.9 --no-bench`": 50,
    "functions entered by it": 278,
}
PACKAGES = ("trp_export", "training", "models_zoo")
# Runs the command and prints how many modules and functions of the package it entered.
TRACER = """
import inspect, sys, threading
entered = set()
def note(frame, event, argument):
    if event == "call":
        name, code = frame.f_globals.get("__name__", ""), frame.f_code
        written = code.co_flags & inspect.CO_OPTIMIZED and code.co_name[0] != "<" and code.co_filename[0] != "<"
        if name.partition(".")[0] == "trp_export" and written:
            entered.add((name, code.co_qualname))
threading.setprofile(note)
sys.setprofile(note)
from trp_export.cli.export import main
try:
    main()
except SystemExit as end:
    code = end.code
sys.setprofile(None)
print(code, len({name for name, _ in entered}), len(entered), file=sys.stderr)
"""


@click.command()
@click.option("--root", type=click.Path(path_type=Path), default=ROOT, help="The checkout to count.")
@click.option("--model", type=click.Path(path_type=Path), help="The ONNX file of the traced export; else a small one.")
@click.option("--write", is_flag=True, help="Put the table into docs/architecture.md.")
def main(root: Path, model: Path | None, write: bool) -> None:
    """Count what docs/architecture.md states, beside what it was before."""
    counts = count(root, model)
    rows = [f"| {what} | {before:,} | {counts[what]:,} |" for what, before in BEFORE.items()]
    table = "\n".join(["| | before | now |", "|---|---|---|", *rows])
    print(table)
    if write:
        put_into_page(PAGE, "counts", table)


def count(root: Path, model: Path | None) -> dict[str, int]:
    """The numbers by what they count, as in BEFORE."""
    imports = {name: set(_imports(path, name, root)) for name, path in _modules(root).items()}
    arrows = {(_box(a), _box(b)) for a, found in imports.items() for b in found if _box(a) != _box(b)}
    lines = [
        sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (root / folder).rglob("*.py"))
        for folder in ("trp_export", "training", "tools")
    ]
    in_circles = sum(len(group) for group in _circles(imports) if len(group) > 1)
    values = (len({_box(name) for name in imports}), len(arrows), in_circles, *lines, *_traced(root, model))
    return dict(zip(BEFORE, values, strict=True))


def _modules(root: Path) -> dict[str, Path]:
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def _box(module: str) -> str:
    top, *inner = module.split(".")
    apart = top == "trp_export" or inner[:1] == ["search"]
    return ".".join([top, *inner[:1]]) if apart else top


def _imports(path: Path, module: str, root: Path) -> Iterator[str]:
    known = _modules(root)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in names]
        yield from (name for name in names if name in known and name != module)


def _circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that can reach one another."""
    reach = {name: _reachable(name, imports) for name in imports}
    groups = []
    left = set(imports)
    while left:
        name = left.pop()
        group = {name, *(other for other in reach[name] if name in reach[other])}
        groups.append(group)
        left -= group
    return groups


def _reachable(start: str, imports: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    pending = [start]
    while pending:
        for name in imports[pending.pop()] - found:
            found.add(name)
            pending.append(name)
    return found


def _traced(root: Path, model: Path | None) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        command = [str(model or _small_model(Path(folder))), "--energy", "0.9", "--no-bench", "-o", "out.onnx"]
        done = subprocess.run(
            [sys.executable, "-c", TRACER, *command],
            cwd=folder,
            env={"PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        )
    code, modules, functions = map(int, done.stderr.splitlines()[-1].split())
    if code:
        raise SystemExit(done.stderr)
    return modules, functions


def _small_model(folder: Path) -> Path:
    """Two convs with random weights."""
    import numpy as np
    import onnx

    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((32, 3, 3, 3), (32, 32, 3, 3))]
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        net (float[1, 3, 32, 32] image) => (float[1, 32, 32, 32] map) {
            first = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(image, w0)
            active = Relu(first)
            map = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(active, w1)
        }"""
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights))
    path = folder / "small.onnx"
    onnx.save(model, path)
    return path


if __name__ == "__main__":
    main()
