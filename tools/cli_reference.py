"""Write docs/reference/cli.md from the commands themselves.

    python tools/cli_reference.py [--check]

--check writes nothing, and exits with 1 where the page is out of date.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "cli.md"
# Each of them runs with `python -m`, too.
MODULES = {
    "trp-export": "trp_export.cli.export",
    "trp-bench": "trp_export.cli.bench",
    "trp-bundle": "trp_export.cli.bundle",
    "trp-train": "training.cli",
    "trp-search": "training.search.cli",
}
HEAD = """# Command line

<!-- Written by tools/cli_reference.py. Do not edit. -->

Every command has `-h` and `--help`. [Shell completion](../guide/completion.md), [exit codes](../exit-codes.md).
"""


class _Sections(click.HelpFormatter):
    """Records what a command's help lists: rows of two texts under headings."""

    def __init__(self) -> None:
        super().__init__(width=1000)
        self.rows: list[tuple[str, list[tuple[str, str]]]] = []
        self._heading = ""

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self._heading = name
        yield

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        self.rows.append((self._heading, list(rows)))


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD, *(text for name, command in commands() for text in _describe(name, command, "##"))]
    return "\n".join(parts)


def commands() -> list[tuple[str, click.Command]]:
    """The name of each command, and the click command behind it."""
    return [(name, import_module(module).command) for name, module in MODULES.items()]


def _describe(name: str, command: click.Command, level: str) -> Iterator[str]:
    context = click.Context(command, info_name=name, **command.context_settings)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    yield f"{level} {name}\n\n```\n{usage}\n```\n\n{_paragraphs(command.help)}\n"
    formatter = _Sections()
    command.format_options(context, formatter)
    for heading, rows in formatter.rows:
        if heading != "Commands":
            yield f"{level}# {heading}\n\n| option | |\n|---|---|\n{''.join(_row(*row) for row in rows)}"
    if command.epilog:
        yield f"```\n{_unwrapped(command.epilog)}\n```\n"
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from _describe(f"{name} {inner.name}", inner, level + "#")


def _row(option: str, text: str) -> str:
    return f"| <code>{_cell(option)}</code> | {_cell(text)} |\n"


def _cell(text: str) -> str:
    """Text that neither a table nor HTML takes for its own."""
    return html.escape(text, quote=False).replace("|", "&#124;")


def _paragraphs(text: str | None) -> str:
    blocks = (text or "").replace("\b\n", "").split("\n\n")
    return "\n\n".join(" ".join(block.split()) for block in blocks)


def _unwrapped(epilog: str) -> str:
    return epilog.replace("\b\n", "").strip()


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if the page is out of date.")
def main(check: bool) -> None:
    """Write docs/reference/cli.md from the help of the commands."""
    text = page()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        raise click.ClickException("docs/reference/cli.md is out of date; run python tools/cli_reference.py")


if __name__ == "__main__":
    main()
