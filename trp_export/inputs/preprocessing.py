"""How images become inputs of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from trp_export.flags import InvalidOptionError, flag

SECTION = "How images are prepared"


def read_numbers(text: str) -> tuple[float, ...]:
    """Numbers such as 0.485,0.456,0.406. Raises ValueError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers such as 0.485,0.456,0.406.") from None


def write_numbers(values: tuple[float, ...]) -> str:
    """The reverse of `read_numbers`."""
    return ",".join(f"{value:g}" for value in values)


def _read_square(text: str) -> tuple[int, int]:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a whole number of pixels.")
    return int(text), int(text)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From pixels to inputs: resize the shorter side, cut the centre, scale by 1/255, subtract mean, divide by std.

    `resize` and `crop` are in pixels, `crop` as (height, width); mean and std have one number per channel, or one.
    """

    mean: tuple[float, ...] | None = flag(
        "--mean",
        "Subtract these values per channel, after scaling to 0..1. Default: the checkpoint's.",
        section=SECTION,
        read=read_numbers,
        write=write_numbers,
        metavar="R,G,B",
        default=None,
    )
    std: tuple[float, ...] | None = flag(
        "--std",
        "Divide by these values per channel. Default: the checkpoint's.",
        section=SECTION,
        read=read_numbers,
        write=write_numbers,
        metavar="R,G,B",
        default=None,
    )
    resize: int | None = flag(
        "--resize",
        "Resize the shorter side to PIXELS, before --crop.",
        section=SECTION,
        read=int,
        metavar="PIXELS",
        default=None,
    )
    crop: tuple[int, int] | None = flag(
        "--crop",
        "Cut a square of PIXELS from the centre.",
        section=SECTION,
        read=_read_square,
        write=lambda size: str(size[0]),
        metavar="PIXELS",
        default=None,
    )

    def __post_init__(self) -> None:
        if self.std is not None and not all(0 < value < math.inf for value in self.std):
            raise InvalidOptionError(f"{{std}} must be above 0, not {write_numbers(self.std)}.")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise InvalidOptionError(f"{{mean}} must be finite, not {write_numbers(self.mean)}.")
        if self.resize is not None and self.resize < 1:
            raise InvalidOptionError(f"{{resize}} must be at least 1 pixel, not {self.resize}.")
        if self.crop is not None and min(self.crop) < 1:
            raise InvalidOptionError(f"{{crop}} must be at least 1 pixel, not {min(self.crop)}.")

    def or_else(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Preprocessing:
        """The same with another mean and std where neither is given."""
        return self if self.mean is not None or self.std is not None else replace(self, mean=mean, std=std)
