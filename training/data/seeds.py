"""Random numbers that follow from what they are for, so that a resumed run draws the same ones."""

from __future__ import annotations

import torch


def generator(*parts: int) -> torch.Generator:
    """A generator whose stream is unrelated to that of any other combination of parts."""
    return torch.Generator().manual_seed(mixed_seed(*parts))


def mixed_seed(*parts: int) -> int:
    """Splitmix64 over the parts, so that neighbouring seeds do not give similar streams."""
    state = 0
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
