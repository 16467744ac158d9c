"""Who may import whom, and what the command leaves unimported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from models import build, save

ROOT = Path(__file__).parent.parent
# Third-party packages that only some parts may import, and those parts.
MAY_IMPORT = {
    "torch": (
        *("trp_export/load/torch_", "trp_export/load/checkpoint.py", "trp_export/load/state_dict.py"),
        *("trp_export/calibration/gradients.py", "trp_export/recover/", "training/", "models_zoo/", "tools/", "tests/"),
    ),
    "onnxruntime": (
        *("trp_export/calibration/", "trp_export/recover/", "trp_export/verify/", "trp_export/ship/"),
        *("trp_export/runtime/", "trp_export/precision/", "trp_export/bench/", "tools/", "tests/"),
    ),
    "click": (
        "trp_export/cli/",
        "training/",
        "tools/",
        "tests/",
    ),
}
ALONE = ("trp_export/lowrank/", "trp_export/planning/")
NUMERICS = {"numpy", "scipy", "trp_export", *sys.stdlib_module_names}


def sources() -> list[str]:
    folders = ("trp_export", "training", "models_zoo")
    return [str(path.relative_to(ROOT)) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(source: str) -> Iterator[str]:
    """Modules that a file imports when it runs, wherever in it; those for type checking alone left out."""
    tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    for node in _outside_type_checking(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def _outside_type_checking(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _outside_type_checking(child)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_heavy_packages_stay_where_they_belong(package: str) -> None:
    allowed = MAY_IMPORT[package]
    strays = [
        source
        for source in sources()
        if not source.startswith(allowed) and any(name.split(".")[0] == package for name in imports(source))
    ]
    assert strays == []


def test_lowrank_and_planning_import_numpy_and_scipy_alone() -> None:
    for source in (source for source in sources() if source.startswith(ALONE)):
        for name in imports(source):
            assert name.split(".")[0] in NUMERICS, f"{source} imports {name}"
            inside = ("trp_export.lowrank", "trp_export.planning", "trp_export.errors", "trp_export.system.json_fields")
            assert not name.startswith("trp_export") or name.startswith(inside), f"{source} imports {name}"


def test_nothing_below_imports_the_command_or_the_pipeline() -> None:
    for source in sources():
        for name in imports(source):
            if name.startswith("trp_export.cli"):
                assert source.startswith(("trp_export/cli/", "training/")), f"{source} imports {name}"
            if name == "trp_export.pipeline":
                assert source in ("trp_export/__init__.py", "trp_export/cli/export.py"), f"{source} imports {name}"


def test_the_exporter_never_imports_the_trainer() -> None:
    for source in (source for source in sources() if source.startswith(("trp_export/", "models_zoo/"))):
        assert not [name for name in imports(source) if name.split(".")[0] == "training"], source


def loaded_by(arguments: list[str], folder: Path, command: str = "trp_export.cli.export") -> set[str]:
    """The modules that the command has imported when it ends."""
    program = (
        f"import sys, {command} as cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        "print('\\nmodules:', *sys.modules)\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=folder, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("modules:")[2].split())


@pytest.mark.parametrize("command", ["trp_export.cli.export", "training.cli", "training.search.cli"])
def test_help_imports_nothing_heavy(tmp_path: Path, command: str) -> None:
    loaded = loaded_by(["--help"], tmp_path, command)
    assert loaded.isdisjoint({"torch", "onnx", "onnx_ir", "onnxruntime", "numpy", "rich", "matplotlib"})


def test_an_onnx_export_by_its_weights_never_imports_torch(tmp_path: Path) -> None:
    save(build(), tmp_path / "model.onnx")
    arguments = ["model.onnx", "--energy", "0.9", "--calib", "none", "--no-bench", "--report", "page.html"]
    loaded = loaded_by(arguments, tmp_path)
    assert "onnxruntime" in loaded
    assert loaded.isdisjoint({"torch", "torchvision", "models_zoo"})
