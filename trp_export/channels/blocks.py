"""Channels in blocks: processors compute 4 to 16 at a time, so a few channels less can run slower than all."""

_BLOCKS = (16, 8, 4, 2)
_LARGE_SHARE = 1 / 8


def block_of(count: int, smallest: int = 4) -> int:
    """The largest block that divides `count` channels; 1 where none from `smallest` on does."""
    return next((size for size in _BLOCKS if size >= smallest and count % size == 0), 1)


def worth_removing(count: int, lost: int) -> int:
    """How many of `lost` channels go, of `count` in a group: from an eighth on all, else whole blocks."""
    if lost >= _LARGE_SHARE * count:
        return lost
    return lost - lost % block_of(count)
