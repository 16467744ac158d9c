"""Which ranks are on offer, and which of them are measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.latency.candidates import LEVELS, offered_ranks, sampled_ranks
from trp_export.lowrank.schemes import CHANNEL_WISE, DECOUPLING, MATRIX, SPATIAL_WISE, Scheme
from trp_export.lowrank.site import Site, Use


def conv(channels: int, extent: int = 16) -> Site:
    use = Use((extent, extent), (extent, extent), (1, 1), (1, 1, 1, 1), (1, 1))
    return Site("conv", "Conv", (channels, channels, 3, 3), 1, (use,))


@pytest.mark.parametrize(
    ("channels", "scheme", "ranks"),
    [
        (16, SPATIAL_WISE, (4, 8, 12, 16, 20)),
        (64, CHANNEL_WISE, (4, 8, 12, 16, 32, 48, 56)),
        (128, SPATIAL_WISE, tuple(range(16, 192, 16))),
        (4, SPATIAL_WISE, (1, 2, 3, 4, 5)),
        (64, DECOUPLING, (1, 2, 3, 4, 5, 6, 7)),
    ],
)
def test_whole_blocks_are_offered_and_quarters_where_there_are_few(
    channels: int, scheme: Scheme, ranks: tuple[int, ...]
) -> None:
    assert offered_ranks(conv(channels), scheme, 16) == ranks


def test_align_asks_for_its_multiples_alone() -> None:
    assert offered_ranks(conv(64), SPATIAL_WISE, 16, align=24) == (24, 48, 72)


@given(st.integers(1, 512), st.sampled_from((8, 16)), st.integers(1, 40))
def test_in_int8_ranks_are_in_fours(channels: int, block: int, align: int) -> None:
    offered = offered_ranks(conv(channels), SPATIAL_WISE, block, align, "int8")
    assert set(offered) == {rank for rank in offered_ranks(conv(channels), SPATIAL_WISE, block, align) if rank % 4 == 0}
    assert offered_ranks(conv(channels), DECOUPLING, block, 1, "int8") == offered_ranks(
        conv(channels), DECOUPLING, block
    )


@given(st.integers(1, 512), st.sampled_from((8, 16)))
def test_every_offer_saves_work_and_both_ends_are_measured(channels: int, block: int) -> None:
    for site, scheme in (
        (conv(channels), SPATIAL_WISE),
        (Site("fc", "Gemm", (channels, 2 * channels), 1, (Use(),)), MATRIX),
    ):
        offered = offered_ranks(site, scheme, block)
        assert all(rank * site.macs_per_rank(scheme) < site.macs for rank in offered)
        assert list(offered) == sorted(set(offered))
        sampled = sampled_ranks(offered)
        assert set(sampled) <= set(offered)
        assert len(sampled) == (LEVELS if offered else 0)
        if offered:
            assert (sampled[0], sampled[-1]) == (offered[0], offered[-1])
