"""The pages agree with one another, with the commands and with the code."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import cli_reference
import click
import pytest

import trp_export
from trp_export import errors

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "models_zoo/**/*.md", "tools/**/*.md", "LICENSES/*.md")
    for path in ROOT.glob(pattern)
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = dict(cli_reference.commands())


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", CODE.sub("", text))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings_that_exist(name: str) -> None:
    page = ROOT / name
    for link in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{name} links to {link}"
        assert not anchor or anchor in anchors(file), f"{name} links to {link}"


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"(\S+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not re.match(r"adr/0", page)} == listed - {"/adr/0*.md"}


def test_every_decision_is_in_the_list_of_decisions() -> None:
    folder = ROOT / "docs" / "adr"
    listed = re.findall(r"\]\((\d{4}-[^)]+)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(path.name for path in folder.glob("0*.md"))


def test_every_asset_is_shown_somewhere() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    for asset in (ROOT / "docs" / "assets").iterdir():
        assert f"assets/{asset.name}" in text, asset.name


def test_the_command_line_reference_is_current() -> None:
    written = cli_reference.PAGE.read_text(encoding="utf-8")
    assert written == cli_reference.page(), "run python tools/cli_reference.py"


def test_the_command_line_reference_lists_every_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert list(scripts) == list(COMMANDS)


def shown_commands(text: str) -> Iterator[list[str]]:
    """Command lines of this project in code blocks, indented blocks and code spans."""
    blocks = [body for _, body in CODE.findall(text)] + re.findall(r"(?:^(?: {4,}).*\n)+", text, re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", CODE.sub("", text))
    for line in [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + spans:
        words = line.strip().removeprefix("$ ").split("#")[0]
        if words.split(" ")[0] in COMMANDS and " " in words:
            try:
                yield shlex.split(words)
            except ValueError:
                continue


def known_options(words: list[str]) -> set[str]:
    command: click.Command = COMMANDS[words[0]]
    if isinstance(command, click.Group):
        inner = command.commands.get(words[1])
        command = inner or command
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    return flags | {"--help", "-h", "--version"}


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("CHANGES")])
def test_commands_on_a_page_use_options_that_exist(name: str) -> None:
    for words in shown_commands((ROOT / name).read_text(encoding="utf-8")):
        for word in words[1:]:
            option = word.split("=")[0]
            if re.fullmatch(r"--?[a-z][\w-]*", option):
                assert option in known_options(words), f"{name}: {' '.join(words)}"


@pytest.mark.parametrize("name", NAMES)
def test_python_on_a_page_imports_names_that_exist(name: str) -> None:
    for language, body in CODE.findall((ROOT / name).read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("trp_export", "training"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{name}: {alias.name}"


def test_the_python_reference_lists_every_public_name() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    for name in set(trp_export.__all__) - {"Rule", "__version__"}:
        assert f"::: trp_export.{name}\n" in page, name


def all_errors(error: type[errors.TrpError] = errors.TrpError) -> Iterator[type[errors.TrpError]]:
    yield error
    for child in error.__subclasses__():
        yield from all_errors(child)


def test_the_table_of_exit_codes_lists_those_of_all_errors() -> None:
    page = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert listed == {0, errors.INTERRUPTED, *(error.exit_code for error in all_errors())}


def test_shell_completion_names_every_command() -> None:
    page = (ROOT / "docs" / "guide" / "completion.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"_{name.upper().replace('-', '_')}_COMPLETE=bash_source {name})" in page


def test_changes_begin_with_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    changes = (ROOT / "CHANGES.md").read_text(encoding="utf-8")
    assert re.findall(r"^## Version (\S+)$", changes, re.MULTILINE)[0] == version


def test_numbers_of_the_readme_stand_on_a_page_of_results() -> None:
    """The tables of results in the README quote; they never say something of their own."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("## What to expect") :].split("\n## ")[1]
    results = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "results").rglob("*.md"))
    for number in re.findall(r"\d+\.\d+", "\n".join(re.findall(r"^\|.*$", table, re.MULTILINE))):
        assert number in results, number
