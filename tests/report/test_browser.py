"""The page in a real browser: nothing sticks out on a phone, dark is dark, what can be seen can be read aloud."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, MISSING, Page, chromium
from PIL import Image
from reports import LAYERS, make_forms, make_report

from trp_export.report.page.page import make_page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason=MISSING)]
GROUNDS = {False: (255, 255, 255), True: (0x13, 0x17, 0x1B)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("report")
    file = folder / "page.html"
    report = replace(make_report(LAYERS, name="net_" * 12), forms=make_forms())
    file.write_text(make_page(report, LAYERS), encoding="utf-8")
    with chromium(folder) as page:
        page.open(file.as_uri())
        yield page


@pytest.mark.parametrize("dark", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 740, 1100])
def test_the_page_fits_the_screen(page: Page, tmp_path: Path, width: int, dark: bool) -> None:
    page.resize(width, 2400, dark=dark)
    page.screenshot(tmp_path / "shot.png", whole=False)
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "shot.png").read_bytes())).convert("RGB"))
    assert pixels.shape == (2400, width, 3)
    assert (pixels[:, -8:] == GROUNDS[dark]).all(), "something reaches the right edge"
    assert page.evaluate("document.documentElement.scrollWidth") == width
    drawn = (pixels != GROUNDS[dark]).any(axis=2)
    assert 0.05 < drawn.mean() < 0.9
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("width", [320, 390, 740, 900, 1024, 1100])
def test_the_precisions_are_legible(page: Page, width: int) -> None:
    page.resize(width, 2400)
    tall, out = page.evaluate(
        "(() => { const cells = [...document.querySelectorAll('.forms tbody :is(th, td)')]; return ["
        "Math.max(...cells.map(one => one.offsetHeight)), cells.filter(one => one.scrollWidth > one.clientWidth).length"
        "]; })()"
    )
    assert tall < 60, "letters one below the other"
    assert out == 0, "a number sticks out of its cell"


def test_the_page_prints(page: Page, tmp_path: Path) -> None:
    page.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_screen_readers_find_names_and_roles(page: Page) -> None:
    nodes = [node for node in page.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    roles = [node["role"]["value"] for node in nodes]
    assert page.evaluate("document.documentElement.lang") == "en"
    assert {"main", "navigation", "banner", "contentinfo", "table", "columnheader", "rowheader"} <= set(roles)
    named = [node for node in nodes if node["role"]["value"] in ("image", "img", "link", "heading", "navigation")]
    assert [node["role"]["value"] for node in named if not node.get("name", {}).get("value")] == []


def test_the_browser_reports_no_problem(page: Page) -> None:
    assert page.problems == []
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
