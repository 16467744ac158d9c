"""The page in a real browser: nothing sticks out on a phone, dark is dark, and it prints."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trp_export.report.page import make_page

from .reports import LAYERS, make_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OFFLINE = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
DARK = "--blink-settings=preferredColorScheme=0"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def _browse(folder: Path, *options: str) -> None:
    page = folder / "page.html"
    page.write_text(make_page(make_report(LAYERS, name="net_" * 12), LAYERS), encoding="utf-8")
    command = [str(CHROMIUM), *OFFLINE, *QUIET, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    ("width", "options", "ground"),
    [
        pytest.param(1100, (), (255, 255, 255), id="light", marks=pytest.mark.slow),
        pytest.param(390, (DARK,), (0x13, 0x17, 0x1B), id="phone, dark"),
    ],
)
def test_a_screenshot(tmp_path: Path, width: int, options: tuple[str, ...], ground: tuple[int, int, int]) -> None:
    shot = tmp_path / "shot.png"
    _browse(tmp_path, f"--screenshot={shot}", f"--window-size={width},2400", *options)
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape == (2400, width, 3)
    assert (pixels[:, -8:] == ground).all(), "something reaches the right edge"
    drawn = (pixels != ground).any(axis=2)
    assert 0.05 < drawn.mean() < 0.9
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


@pytest.mark.slow
def test_it_prints(tmp_path: Path) -> None:
    _browse(tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
