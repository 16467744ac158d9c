"""A group loses channels only where the number that stays runs as fast as a whole number of blocks does."""

from __future__ import annotations

import numpy as np
import pytest

from trp_export.channels.groups import Group
from trp_export.channels.search import _leaving_odd_counts


@pytest.mark.parametrize(
    ("channels", "could_go", "goes"),
    [(672, 4, 0), (672, 20, 16), (672, 84, 84), (16, 6, 6), (64, 7, 0), (24, 2, 0), (30, 1, 1), (8, 1, 1)],
)
def test_few_channels_go_by_whole_blocks(channels: int, could_go: int, goes: int) -> None:
    group = Group("conv", np.arange(channels), ("conv",), ("next",), None)
    gone: dict[int, int | None] = dict.fromkeys(range(3, 3 + could_go))
    stay = _leaving_odd_counts([group], gone)
    assert could_go - len(stay) == goes
    assert stay <= set(gone)
