"""What the pictures hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trp_export.bench import Comparison, Environment, Measurement, Process
from trp_export.bench.plot import COLOURS, MOST_DOTS, draw
from trp_export.bench.profile import Profile, ProfiledLayer
from trp_export.errors import OutputError

HERE = Environment("local", "cpu", "", "", 1, "", (0,), 1, "", "", "")


def measured(samples: int, processes: int = 4) -> Measurement:
    drawn = np.random.default_rng(samples).uniform(0.9e6, 1e6, (processes, samples)).astype(int).tolist()
    return Measurement("m", "", 0, tuple(Process(i, 0.0, 0, 0, tuple(own)) for i, own in enumerate(drawn)), None, {})


def dots(folder: Path, samples: int) -> int:
    """In the picture of one model: those of its samples alone have an outline that shows through."""
    draw(Comparison(HERE, (measured(samples),), (), 0.0), (), folder / "p.svg")
    lines = (folder / "p.svg").read_text().splitlines()
    return sum("<use" in line and "stroke-opacity" in line for line in lines)


def test_a_picture_is_whole_or_absent(small_disk: Path) -> None:
    found = Comparison(HERE, (measured(400), measured(500)), (), 0.0)
    with pytest.raises(OutputError, match=r"No space left on device\. Choose another place with --plot"):
        draw(found, (), small_disk / "p.svg")
    assert not list(small_disk.iterdir())


def test_few_samples_are_all_drawn_and_many_thinned(tmp_path: Path) -> None:
    assert dots(tmp_path, 100) == 400
    assert dots(tmp_path, MOST_DOTS // 4) == MOST_DOTS
    assert MOST_DOTS / 2 < dots(tmp_path, MOST_DOTS // 4 + 1) <= MOST_DOTS + 4
    assert MOST_DOTS / 2 < dots(tmp_path, 5000) <= MOST_DOTS + 4


@pytest.mark.parametrize("name", ["$\\frac{$", "\x1b]0;X\x07\n", "<script>"])
def test_names_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    named = replace(measured(4), model=name)
    layers = Profile(name, (ProfiledLayer(name, "Conv", 1.0, 1000, 1),), {"Relu": 0.5}, 2)
    draw(Comparison(HERE, (named,), (), 0.0), (layers,), tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    assert "<script" not in text
    assert "\x1b" not in text


def test_there_may_be_more_models_than_colours(tmp_path: Path) -> None:
    count = len(COLOURS) + 1
    layers = Profile("m", (ProfiledLayer("conv", "Conv", 1.0, 1000, 1),), {}, 1)
    draw(Comparison(HERE, (measured(4),) * count, (), 0.0), (layers,) * count, tmp_path / "p.svg")
    assert (tmp_path / "p.svg").stat().st_size
