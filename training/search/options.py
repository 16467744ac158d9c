"""Everything that decides the result of a search, as one value. Its fields carry the flags of trp-search."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal, get_args

from training.options import LARGEST_SEED
from training.settings import require_above_zero, require_choice
from training.start_options import ARCHITECTURE, write_shape
from trp_export.flags import InvalidOptionError, flag, one_of
from trp_export.inputs.options import parse_shape
from trp_export.inputs.preprocessing import read_numbers
from trp_export.lowrank.names import SCHEME_CHOICES
from trp_export.rules import FIRST, Macs, Speedup

IMAGES, MODEL, CANDIDATES, SEARCH = "Images", "The model", "What layers may become", "The search"
# The headings of the help, in order.
SECTIONS = (FIRST, IMAGES, MODEL, CANDIDATES, SEARCH)

# What logits start from: the energy that candidates lose, or zero, as in the paper.
Start = Literal["energy", "uniform"]


def _read_shape(text: str) -> tuple[int, ...]:
    """The shape of the only input. Raises ValueError."""
    name, sizes = parse_shape(text)
    if name is not None or min(sizes) < 1:
        raise ValueError(f"{text!r} is not a shape such as 1,3,224,224.")
    return sizes


def _write_numbers(values: tuple[float, ...]) -> str:
    return ",".join(map(repr, values))


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """The options of trp-search, with their defaults. Raises InvalidOptionError where two contradict each other.

    `data` is a specification as for trp-train, with labels, or the path of images, without; None generates images from
    batch norm statistics. `epochs` None makes about 300 steps. `batch` 0 goes by the size of the images.
    """

    rule: Macs | Speedup = one_of(Macs, Speedup)
    output: Path = flag(
        "-o/--output",
        "Where to write the plan, a .json file. What --resume needs goes beside it, into plan.search/.",
        section=FIRST,
        read=Path,
        metavar="FILE",
    )
    data: str | None = flag(
        "--data",
        "Images to search with: npz:DIR, imagefolder:DIR or torchvision:CIFAR10:DIR with labels, or a path to images "
        "without labels.",
        section=FIRST,
        metavar="SPEC",
        default=None,
    )
    no_data: bool = flag(
        "--no-data", "Generate images from batch norm statistics instead.", section=FIRST, kind="on", default=False
    )
    count: int | None = flag(
        "--count",
        "Use at most N images, chosen by --seed.",
        section=IMAGES,
        read=int,
        metavar="N",
        shown_default="1024; fewer generated ones for a large network",
        default=None,
    )
    mean: tuple[float, ...] | None = flag(
        "--mean",
        "Mean of each channel, on a scale of 0 to 1. Default: the checkpoint's.",
        section=IMAGES,
        read=read_numbers,
        write=_write_numbers,
        metavar="NUMBERS",
        default=None,
    )
    std: tuple[float, ...] | None = flag(
        "--std",
        "Standard deviation of each channel. Default: the checkpoint's.",
        section=IMAGES,
        read=read_numbers,
        write=_write_numbers,
        metavar="NUMBERS",
        default=None,
    )
    arch: str | None = flag(
        "--arch", f"Architecture of weights: {ARCHITECTURE}", section=MODEL, metavar="NAME", default=None
    )
    input_shape: tuple[int, ...] | None = flag(
        "--shape",
        "Shape of the input. Default: the architecture's, or the file's.",
        section=MODEL,
        read=_read_shape,
        write=write_shape,
        metavar="N,C,H,W",
        default=None,
    )
    device: str = flag(
        "--device",
        "With --speedup: the device to measure on; see trp-bench --list-devices.",
        section=MODEL,
        metavar="SPEC",
        default="local",
    )
    threads: int = flag("--threads", "Threads on the device.", section=MODEL, read=int, metavar="N", default=1)
    scheme: str = flag(
        "--scheme", "Decompositions to choose from.", section=CANDIDATES, choices=SCHEME_CHOICES, default="all"
    )
    branches: int = flag(
        "--branches",
        "Factor pairs per layer. With 2, a second pair is then searched for and added to each pair found.",
        section=CANDIDATES,
        read=int,
        metavar="1|2",
        default=1,
    )
    epochs: int | None = flag(
        "--epochs",
        "Passes over the images.",
        section=SEARCH,
        read=int,
        metavar="N",
        shown_default="as many as make 300 steps",
        default=None,
    )
    batch: int = flag(
        "--batch",
        "Images per step.",
        section=SEARCH,
        read=int,
        metavar="N",
        shown_default="by their size",
        default=0,
    )
    lr: float = flag("--lr", "Learning rate of the logits.", section=SEARCH, read=float, metavar="RATE", default=0.03)
    start: Start = flag(
        "--start",
        "Initial logits: by the energy that each candidate loses, or all equal.",
        section=SEARCH,
        choices=get_args(Start),
        default="energy",
    )
    seed: int = flag(
        "--seed",
        "Seed of the choice of images, of their order and of the candidates drawn.",
        section=SEARCH,
        read=int,
        metavar="N",
        default=0,
    )

    def __post_init__(self) -> None:
        if (self.data is None) != self.no_data:
            raise InvalidOptionError("name the images to search with: {data} SPEC, or {no_data}.")
        if self.branches not in (1, 2):
            raise InvalidOptionError(f"{{branches}} must be 1 or 2, not {self.branches}.")
        if self.branches == 2 and isinstance(self.rule, Speedup):
            raise InvalidOptionError("{branches} 2 needs --macs: the latency of sums of pairs is not measured.")
        for name in ("count", "epochs", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidOptionError(f"{{{name}}} must be at least 1, not {value}.")
        if self.batch < 0:
            raise InvalidOptionError(f"{{batch}} must be at least 0, not {self.batch}.")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise InvalidOptionError(f"{{seed}} must lie between 0 and 2^63 - 1, not {self.seed}.")
        if not all(map(isfinite, (*(self.mean or ()), *(self.std or ())))) or not all(s > 0 for s in self.std or ()):
            raise InvalidOptionError("{mean} and {std} must be finite, and {std} above 0.")
        require_above_zero("lr", self.lr)
        require_choice("start", self.start, get_args(Start))
        require_choice("scheme", self.scheme, SCHEME_CHOICES)
        if self.output.suffix != ".json":
            raise InvalidOptionError(f"{{output}} {self.output} must end in .json.")

    @property
    def folder(self) -> Path:
        """The folder of everything but the plan: plan.search for plan.json."""
        return self.output.with_suffix(".search")
