"""The one reader of image files: a closed list of formats, a bound on pixels, photos turned upright."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from trp_export.errors import LoadError, first_line
from trp_export.inputs.arrays import require_plain_file
from trp_export.inputs.preprocessing import Preprocessing, Resize
from trp_export.system.files import require_fetched

# No format that starts another program (EPS starts Ghostscript) or holds anything but pixels (PDF).
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MOST_PIXELS = 100_000_000
# Pillow's modes of more than 8 bits a channel. It reads colours of 16 bits as 8 itself, but not greys.
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = 5


class NotAnImageError(LoadError):
    """The file is not an image of a known format, or it is damaged."""


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """An image file, opened but not yet decoded. Raises LoadError, also for what fails while it is decoded."""
    require_plain_file(path)
    require_fetched(path)
    with open_image(path, str(path)) as image:
        yield image


@contextmanager
def open_image(source: Path | IO[bytes], name: str) -> Iterator[Image.Image]:
    """The same for a plain file or its content, which messages call `name`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images and damaged EXIF; both are dealt with here.
            with Image.open(source, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise LoadError(
                        f"{name} has {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are read. "
                        "Remove it or make it smaller."
                    )
                yield image
    except LoadError:
        raise
    except UnidentifiedImageError as error:
        raise NotAnImageError(f"{name} is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image.") from error
    except Image.DecompressionBombError as error:
        raise LoadError(f"{name} has too many pixels; at most {MOST_PIXELS:,} are read. Remove it.") from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors for damaged files.
        raise NotAnImageError(f"{name} cannot be decoded ({first_line(error)}). Remove it or replace it.") from error


def read_picture(path: Path, *, grey: bool = False) -> Image.Image:
    """A decoded image, upright, in one channel or in red, green and blue. Raises LoadError."""
    with open_picture(path) as image:
        return in_eight_bits(upright(image)).convert("L" if grey else "RGB")


def picture_size(path: Path) -> tuple[int, int] | None:
    """The same as `shown_size`; None for a file that is not an image."""
    try:
        return shown_size(path)
    except NotAnImageError:
        return None


def shown_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as it is shown, from its header. Raises LoadError."""
    with open_picture(path) as image:
        if image.format == "TIFF" and _orientation(image) >= _ON_ITS_SIDE:
            image.load()  # Pillow turns it; before version 11, its size follows only then.
        # Asking a PNG for its EXIF decodes it; photos from phones are JPEG, where the header holds it.
        on_its_side = "exif" in image.info and _orientation(image) >= _ON_ITS_SIDE
        return (image.width, image.height) if on_its_side else (image.height, image.width)


def upright(image: Image.Image) -> Image.Image:
    """Turn a photo as its EXIF says. Not ImageOps.exif_transpose, which fails on other, damaged entries."""
    image.load()  # Pillow turns a TIFF itself and then forgets how it lay.
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def in_eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits a channel with the upper 8 of them; Pillow's own conversion stops at 255."""
    if image.mode not in DEEP_MODES:
        return image
    return Image.fromarray(np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8))


def bring_to_size(image: Image.Image, steps: Preprocessing, name: str) -> Image.Image:
    """Resize and crop. Raises LoadError, calling the image by `name`, where the crop is larger than the image."""
    if isinstance(steps.resize, int):
        image = _scaled(image, steps.resize / min(image.height, image.width))
    elif steps.resize is not None:
        image = _resized(image, steps.resize, name)
    return image if steps.crop is None else _cut(image, *steps.crop, name)


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) else 1


def _resized(image: Image.Image, resize: Resize, name: str) -> Image.Image:
    width, height = resize.width, resize.height
    match resize.mode:
        case "stretch":
            return _stretched(image, width, height)
        case "multiple":
            return _stretched(image, *(max(1, round(side / width)) * width for side in image.size))
        case "cover":
            covering = _scaled(image, max(height / image.height, width / image.width))
            return _cut(covering, height, width, name)
        case "letterbox":
            scale = min(height / image.height, width / image.width)
            inside = _stretched(image, *(min(most, max(1, round(side * scale)))
                                         for side, most in zip(image.size, (width, height), strict=True)))  # fmt: skip
            left, top = (
                (0, 0) if resize.place == "corner" else ((width - inside.width) // 2, (height - inside.height) // 2)
            )
            box = Image.new(image.mode, (width, height), (resize.pad,) * len(image.getbands()))
            box.paste(inside, (left, top))
            return box


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    return _stretched(image, *(max(1, round(side * scale)) for side in image.size))


def _stretched(image: Image.Image, width: int, height: int) -> Image.Image:
    if (width, height) == image.size:
        return image
    if width * height > MOST_PIXELS:
        raise LoadError(f"an image of {image.width} x {image.height} pixels would become {width} x {height}.")
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _cut(image: Image.Image, height: int, width: int, name: str) -> Image.Image:
    if image.height < height or image.width < width:
        raise LoadError(
            f"{name}: {image.width} x {image.height} pixels are less than the crop of {width} x {height}: add --resize."
        )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
