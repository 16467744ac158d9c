"""From the pixels of an image to the input of a network, as a value that can be stored and repeated.

The steps, in order: `resize`, `crop`, the order of the colours, and (pixel * scale - mean) / std.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from trp_export.errors import LoadError, OptionError
from trp_export.flags import InvalidOptionError, flag

SECTION = "How images are prepared"

Colour = Literal["rgb", "bgr", "grey"]
Mode = Literal["stretch", "letterbox", "cover", "multiple"]
Place = Literal["centre", "corner"]
Numbers = tuple[float, ...]

SCALE = 1 / 255
_MOST_PIXELS = 2**14
# A mean above this belongs to pixels of 0 to 255, not to pixels scaled to 0..1.
_MOST_SCALED_MEAN = 2.0
_RESIZE = re.compile(
    r"(\d{1,9})|multiple:(\d{1,9})|(?:(letterbox|cover):)?(\d{1,9})x(\d{1,9})(?::(\d{1,3}))?(:corner)?", re.ASCII
)
_RESIZES = "SIDE, WxH, letterbox:WxH, cover:WxH or multiple:N"


@dataclass(frozen=True, slots=True)
class Resize:
    """How an image is brought to a size. Raises OptionError.

    `stretch` gives it `width` x `height` pixels. `letterbox` fits it inside and fills the rest with the value `pad`
    (0 to 255), on all sides or right and below (`corner`). `cover` scales it until it covers them and cuts the centre.
    `multiple` stretches each side to the nearest multiple of `width`.
    """

    mode: Mode
    width: int
    height: int
    pad: int = 0
    place: Place = "centre"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode) or self.place not in get_args(Place):
            raise OptionError(f"resize {self.mode} is unknown; use {_RESIZES}.")
        if not 1 <= min(self.width, self.height) <= max(self.width, self.height) <= _MOST_PIXELS:
            raise OptionError(f"resize {self}: sides must be 1 to {_MOST_PIXELS} pixels.")
        if not 0 <= self.pad <= 255:
            raise OptionError(f"resize {self}: the pad value must be 0 to 255.")

    def __str__(self) -> str:
        """The text that `parse_resize` reads."""
        if self.mode == "multiple":
            return f"multiple:{self.width}"
        size = f"{self.width}x{self.height}"
        if self.mode == "stretch":
            return size
        corner = ":corner" if self.place == "corner" else ""
        pad = f":{self.pad}" if self.pad or corner else ""
        return f"{self.mode}:{size}{pad}{corner}"


def read_numbers(text: str) -> Numbers:
    """Numbers such as 0.485,0.456,0.406. Raises ValueError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers such as 0.485,0.456,0.406.") from None


def write_numbers(values: Numbers) -> str:
    """The reverse of `read_numbers`."""
    return ",".join(f"{value:g}" for value in values)


def parse_resize(text: str) -> int | Resize:
    """Read `256` (shorter side), `320x240`, `letterbox:640x640[:PAD][:corner]`, `cover:WxH` or `multiple:32`.

    Sizes are width x height. Raises ValueError.
    """
    wrong = ValueError(f"{text!r} is not a size; use {_RESIZES}.")
    found = _RESIZE.fullmatch(text)
    if found is None:
        raise wrong
    side, multiple, mode, width, height, pad, corner = found.groups()
    if side is not None:
        return int(side)
    if multiple is not None:
        return Resize("multiple", int(multiple), int(multiple))
    if (pad or corner) and mode != "letterbox":
        raise wrong
    kind: Mode = "letterbox" if mode == "letterbox" else "cover" if mode == "cover" else "stretch"
    return Resize(kind, int(width), int(height), int(pad or 0), "corner" if corner else "centre")


def parse_crop(text: str) -> tuple[int, int]:
    """Read `224` or `320x240` (width x height) as (height, width). Raises ValueError."""
    wrong = ValueError(f"{text!r} is not a size; use SIDE or WxH.")
    sides = [_digits(side, wrong) for side in text.split("x")]
    if len(sides) > 2:
        raise wrong
    return sides[-1], sides[0]


def show_crop(crop: tuple[int, int]) -> str:
    """The text that `parse_crop` reads."""
    height, width = crop
    return str(height) if height == width else f"{width}x{height}"


def parse_scale(text: str) -> float:
    """Read a number or a fraction such as `1/255`. Raises ValueError."""
    above, slash, below = text.partition("/")
    try:
        scale = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{text!r} is not a number such as 1, 0.0039 or 1/255.") from error
    if not 0 < scale < math.inf:
        raise ValueError(f"{text!r} is not above 0.")
    return scale


def show_scale(scale: float) -> str:
    """The text that `parse_scale` reads."""
    return "1/255" if scale == SCALE else f"{scale:.9g}"


def _digits(text: str, wrong: ValueError) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise wrong
    return int(text)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What is done to each image: resize, crop, order the colours, then (pixel * scale - mean) / std.

    `resize` is the length of the shorter side in pixels, or a Resize; `crop` is (height, width), cut from the centre.
    `colour` is the order of the channels: rgb for three channels and grey for one where it is None. A `scale` of None
    is 1/255 for float inputs and 1 for integer ones. `mean` and `std` have one number per channel, or one for all, in
    the units of the scaled pixels and in the order of the channels: 0..1 under a scale of 1/255, 0..255 under 1.
    Raises OptionError.
    """

    mean: Numbers | None = flag(
        "--mean",
        "Subtract these values per channel, after --scale: on 0..1, or on 0..255 with --scale 1. Default: the "
        "checkpoint's.",
        section=SECTION,
        read=read_numbers,
        write=write_numbers,
        metavar="R,G,B",
        default=None,
    )
    std: Numbers | None = flag(
        "--std",
        "Then divide by these values per channel, in the same units. Default: the checkpoint's.",
        section=SECTION,
        read=read_numbers,
        write=write_numbers,
        metavar="R,G,B",
        default=None,
    )
    resize: int | Resize | None = flag(
        "--resize",
        "Resize images before --crop: N (the shorter side), WxH, letterbox:WxH[:PAD][:corner], cover:WxH, or "
        "multiple:N (each side). Default: cover the network's input.",
        section=SECTION,
        read=parse_resize,
        metavar="SIZE",
        default=None,
    )
    crop: tuple[int, int] | None = flag(
        "--crop",
        "Crop the centre: N for a square of N pixels, or WxH.",
        section=SECTION,
        read=parse_crop,
        write=show_crop,
        metavar="SIZE",
        default=None,
    )
    scale: float | None = flag(
        "--scale",
        "Multiply pixels of 0..255 by this number first. Default: 1/255, or 1 for integer inputs.",
        section=SECTION,
        read=parse_scale,
        write=show_scale,
        metavar="NUMBER",
        default=None,
    )
    colour: Colour | None = flag(
        "--colour",
        "Order of the colour channels. Default: rgb, or grey for one channel.",
        section=SECTION,
        choices=get_args(Colour),
        default=None,
    )

    def __post_init__(self) -> None:
        if self.std is not None and not all(0 < value < math.inf for value in self.std):
            raise InvalidOptionError(f"{{std}} must be above 0, not {write_numbers(self.std)}.")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise InvalidOptionError(f"{{mean}} must be finite, not {write_numbers(self.mean)}.")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise InvalidOptionError(f"{{scale}} must be above 0, not {self.scale:g}.")
        if self.colour is not None and self.colour not in get_args(Colour):
            raise InvalidOptionError(f"{{colour}} must be one of {', '.join(get_args(Colour))}, not {self.colour}.")
        if isinstance(self.resize, int) and not 1 <= self.resize <= _MOST_PIXELS:
            raise InvalidOptionError(f"{{resize}} must be 1 to {_MOST_PIXELS} pixels, not {self.resize}.")
        if self.crop is not None and not 1 <= min(self.crop) <= max(self.crop) <= _MOST_PIXELS:
            raise InvalidOptionError(f"{{crop}} must be 1 to {_MOST_PIXELS} pixels, not {show_crop(self.crop)}.")
        if self.scale is None and self.mean is not None and max(map(abs, self.mean), default=0) > _MOST_SCALED_MEAN:
            raise InvalidOptionError(
                f"{{mean}} {write_numbers(self.mean)} belongs to pixels of 0..255, and pixels are scaled to 0..1. "
                "Give {scale} 1 as well, with {std} for 0..255, or divide both by 255."
            )

    @property
    def is_plain(self) -> bool:
        """True where neither a size nor a crop is chosen."""
        return self.resize is None and self.crop is None

    def or_else(self, mean: Numbers | None, std: Numbers | None) -> Preprocessing:
        """The same with another mean and std where none of `mean`, `std` and `scale` is given."""
        chosen = (self.mean, self.std, self.scale) != (None, None, None)
        return self if chosen else replace(self, mean=mean, std=std)

    def complete(
        self, channels: int, size: tuple[int, int] | None, *, integer: bool = False, takes_pixels: bool = False
    ) -> Preprocessing:
        """The same with every choice spelled out for an input of `channels` and `size` (height, width), None if open.

        `integer` inputs get pixels as they are, and so do inputs that the network itself scales (`takes_pixels`).
        Raises OptionError where a choice does not fit the input.
        """
        usual: dict[int, Colour] = {1: "grey", 3: "rgb"}
        colour = self.colour or usual.get(channels)
        if (channels == 1 and colour != "grey") or (channels not in usual and colour is not None):
            raise InvalidOptionError(f"{{colour}} {colour} does not fit an input of {channels} channels.")
        normalised = (self.mean, self.std) != (None, None)
        if integer and normalised and self.scale is None:
            raise InvalidOptionError(
                "{mean} and {std} do not fit an input of whole numbers, which takes pixels as they are."
            )
        scale = self.scale
        if scale is None:
            scale = 1.0 if integer or (takes_pixels and not normalised) else SCALE
        resize = self.resize
        if self.is_plain and size is not None:
            resize = Resize("cover", width=size[1], height=size[0])
        return Preprocessing(
            mean=_per_channel("mean", self.mean, 0.0, channels),
            std=_per_channel("std", self.std, 1.0, channels),
            resize=resize,
            crop=self.crop,
            scale=scale,
            colour=colour,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `resize` is a number or the text of the option."""
        return {
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "resize": str(self.resize) if isinstance(self.resize, Resize) else self.resize,
            "crop": None if self.crop is None else list(self.crop),
            "scale": self.scale,
            "colour": self.colour,
        }

    @classmethod
    def from_json(cls, values: object) -> Preprocessing:
        """Raises LoadError for anything but what `to_json` gives."""
        if not isinstance(values, Mapping) or set(values) - {field.name for field in fields(cls)}:
            raise LoadError("preprocessing: an object with mean, std, resize, crop, scale and colour is needed.")
        resize = values.get("resize")
        try:
            return cls(
                mean=_numbers(values.get("mean")),
                std=_numbers(values.get("std")),
                resize=parse_resize(resize) if isinstance(resize, str) else _whole(resize),
                crop=_sides(values.get("crop")),
                scale=None if values.get("scale") is None else _number(values["scale"]),
                colour=values.get("colour"),
            )
        except (OptionError, TypeError, ValueError) as error:
            raise LoadError(f"preprocessing: {error}") from error


def _per_channel(option: str, values: Numbers | None, default: float, channels: int) -> Numbers:
    values = values or (default,)
    if len(values) not in (1, channels):
        raise InvalidOptionError(
            f"{{{option}}} {write_numbers(values)} has {len(values)} numbers for {channels} channels; "
            f"give {channels}, or one for all."
        )
    return tuple(map(float, values * channels if len(values) == 1 else values))


def _numbers(values: object) -> Numbers | None:
    if values is None:
        return None
    if not isinstance(values, (list, tuple)) or not 1 <= len(values) <= 64:
        raise TypeError("mean and std must be lists of 1 to 64 numbers.")
    return tuple(_number(value) for value in values)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{str(value)[:40]} is not a finite number.")
    return float(value)


def _whole(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{str(value)[:40]} is not a whole number.")
    return value


def _sides(values: object) -> tuple[int, int] | None:
    if values is None:
        return None
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        raise TypeError("crop must be a height and a width.")
    height, width = (_whole(value) or 0 for value in values)
    return height, width
