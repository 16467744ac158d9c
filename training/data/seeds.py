"""Random numbers that follow from what they are for, so that a resumed run draws the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(*parts: int) -> torch.Generator:
    """A generator whose stream is unrelated to that of any other combination of parts."""
    return torch.Generator().manual_seed(mixed_seed(*parts))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch's random numbers on the CPU follow from `seed` inside, and go on as before afterwards.

    torch.manual_seed sets the generators of all devices, too, and takes as long as a third of reading an image.
    """
    before = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(before)


def mixed_seed(*parts: int) -> int:
    """Splitmix64 over the parts, so that neighbouring seeds do not give similar streams."""
    state = 0
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
