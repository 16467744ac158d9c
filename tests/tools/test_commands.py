"""Every script in tools/ imports what it needs and explains its options."""

from __future__ import annotations

import importlib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

TOOLS = Path(__file__).parents[2] / "tools"
WITHOUT_OPTIONS = {"as_dense", "common", "demo", "side_by_side"}
SCRIPTS = sorted({path.stem for path in TOOLS.glob("*.py")} - WITHOUT_OPTIONS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_a_click_command_with_help(name: str) -> None:
    pytest.importorskip("torch")
    command = importlib.import_module(name).main
    assert isinstance(command, click.Command), f"tools/{name}.py"
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0, result.output
    assert command.help, f"tools/{name}.py does not say what it does"


def test_no_script_names_a_path_outside_the_repository() -> None:
    for path in TOOLS.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "../shared" not in text, path
        assert "sys.path" not in text, path
