"""Channels in blocks: processors compute 4 to 16 at a time, so a few channels less can run slower than all."""

_BLOCKS = (16, 8, 4)
_LARGE_SHARE = 1 / 8


def worth_removing(count: int, lost: int) -> int:
    """How many of `lost` channels go, of `count` in a group: from an eighth on all, else whole blocks."""
    if lost >= _LARGE_SHARE * count:
        return lost
    block = next((size for size in _BLOCKS if count % size == 0), 1)
    return lost - lost % block
