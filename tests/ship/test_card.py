"""The model card holds names from untrusted files as text: none of them becomes Markdown or HTML."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import manifest
from reports import HOSTILE, LAYERS, make_report

from trp_export.options import Images
from trp_export.ship.card import make_card

FENCES = (
    "x\n```\n<img src=x onerror=alert(1)>\n```.onnx",
    "```",
    "`````\n<b>",
    "a\r\n~~~\n<script>",
    "x\u2028```\u2028<b>",
    *HOSTILE,
)


@pytest.mark.parametrize("name", FENCES)
def test_make_card_keeps_file_names_inside_the_code_block(name: str) -> None:
    report = make_report(LAYERS)
    source = replace(report.source, path=Path("/somewhere") / f"{name}.onnx")
    options = replace(report.options, images=Images(Path(f"{name}.npz")), output=Path(f"{name}.out.onnx"))
    outside, inside = split_fences(make_card(manifest(), replace(report, source=source, options=options)))
    assert not re.search(r"(?<!\\)<", outside)
    assert any(line.startswith("trp-export ") for line in inside)


@pytest.mark.parametrize("name", FENCES)
def test_make_card_escapes_names_and_notes(name: str) -> None:
    report = replace(make_report(LAYERS, name=name), notes=FENCES)
    hostile = replace(
        manifest(),
        classes=(name, "dog"),
        provenance={
            **manifest().provenance,
            "source": {"name": name, "arch": None, "files": {name: {"sha256": "0" * 64, "bytes": 1}}},
            "licence": name,
        },
    )
    outside, _ = split_fences(make_card(hostile, report))
    assert not re.search(r"(?<!\\)<", re.sub(r"`[^`\n]*`", "", outside))
    assert "\x1b" not in outside
    assert "\u202e" not in outside


def split_fences(card: str) -> tuple[str, list[str]]:
    """The text outside of code blocks, and the lines inside, by the rules of CommonMark."""
    outside, inside, fence = [], [], ""
    for line in card.split("\n"):
        match = re.fullmatch(r" {0,3}(`{3,}|~{3,})([^`]*)", line)
        if not fence and match:
            fence = match[1]
        elif fence and match and match[1][0] == fence[0] and len(match[1]) >= len(fence) and not match[2].strip():
            fence = ""
        else:
            (inside if fence else outside).append(line)
    assert not fence
    return "\n".join(outside), inside
