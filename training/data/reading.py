"""One labelled image read and decoded. What is odd about it becomes a remark, not an error."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor

from trp_export.errors import LoadError
from trp_export.inputs.pictures import DEEP_MODES, in_eight_bits, open_image, open_picture, upright

_ODD_MODES = {"P": "palette", "PA": "palette", "CMYK": "CMYK", "1": "1-bit", "F": "floating point", "YCbCr": "YCbCr"}


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upright image in red, green and blue, with what is odd about its file; None, with the reason, if damaged."""

    image: Image.Image | None
    remark: str | None


class Samples(Protocol):
    """Labelled images that are read one at a time: `labels` int64 (N,), `classes` in the order of the labels."""

    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The image as messages call it."""
        ...

    def read(self, index: int) -> Path | bytes:
        """The file of an image, or its content."""
        ...


def decode(source: Path | bytes, name: str) -> Decoded:
    """Decode one image of any format, size and colour mode. It never raises for what is wrong with the file."""
    try:
        with open_image(BytesIO(source), name) if isinstance(source, bytes) else open_picture(source) as image:
            turned = upright(image)
            remark = "16-bit" if image.mode in DEEP_MODES else _ODD_MODES.get(image.mode)
            if remark is None and turned is not image:
                remark = "turned as its EXIF says"
            return Decoded(in_eight_bits(turned).convert("RGB"), remark)
    except LoadError as error:
        return Decoded(None, str(error))
