"""The network that training starts from, as a value. Its fields carry the flags of trp-train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trp_export.flags import flag
from trp_export.rules import FIRST

NETWORK = "Network"
ARCHITECTURE = (
    "resnet20, resnet20x1.6 (1.6 times as wide), torchvision:resnet18 or package.module:factory. The last imports the "
    "module, also from the current folder, and runs its code."
)


def read_image_shape(text: str) -> tuple[int, ...]:
    """The shape of one image, such as 1,3,224,224 or 1x3x224x224. Raises ValueError."""
    sizes = text.replace("x", ",").split(",")
    if len(sizes) != 4 or not all(size.isdecimal() and 0 < int(size) < 2**31 for size in sizes) or int(sizes[0]) != 1:
        raise ValueError(f"{text!r} is not the shape of one image, such as 1,3,224,224.")
    return tuple(map(int, sizes))


def write_shape(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


@dataclass(frozen=True, slots=True)
class StartOptions:
    """The network that training starts from: an architecture with fresh weights, or weights from a file."""

    arch: str | None = flag("--arch", f"Architecture: {ARCHITECTURE}", section=FIRST, metavar="NAME", default=None)
    init: Path | None = flag(
        "--init",
        "Start from these weights: a checkpoint, or a state dict with --arch.",
        section=NETWORK,
        read=Path,
        metavar="FILE",
        default=None,
    )
    input_shape: tuple[int, ...] | None = flag(
        "--shape",
        "Shape of one input image, such as 1,3,224,224. Default: the architecture's.",
        section=NETWORK,
        read=read_image_shape,
        write=write_shape,
        metavar="1,C,H,W",
        default=None,
    )
