"""Everything that decides what a search comes to, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from training.stored import Stored, require
from trp_export.options import Selection

# What logits start from: the energy that candidates lose, or nothing, as in the paper.
STARTS = ("energy", "uniform")


@dataclass(frozen=True, slots=True)
class SearchOptions(Stored):
    """One field per option of trp-search, with its default. Raises OptionError where two contradict one another.

    `data` is a specification as for trp-train, with labels, or the path of images, without; None for images made from
    batch norm's statistics. `epochs` None: as many as make 300 steps. `batch` 0:
    by the size of the images.
    """

    PATHS: ClassVar = ("model", "output")

    model: Path
    output: Path
    data: str | None = None
    count: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    arch: str | None = None
    input_shape: tuple[int, ...] | None = None
    macs: float | None = None
    speedup: float | None = None
    device: str = "local"
    threads: int = 1
    scheme: str = "all"
    branches: int = 1
    start: str = "energy"
    epochs: int | None = None
    batch: int = 0
    lr: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.macs is None or self.speedup is None, "--macs and --speedup contradict each other; give one.")
        require(self.macs is not None or self.speedup is not None, "say how small: --macs 2, or --speedup 1.5.")
        require(self.ratio > 1, f"--{self.budget} {self.ratio:g} is not above 1.")
        require(self.ratio < float("inf"), f"--{self.budget} {self.ratio:g} is not a number.")
        require(self.branches in (1, 2), f"--branches {self.branches}: 1 or 2.")
        require(
            self.branches == 1 or self.speedup is None,
            "--branches 2 needs --macs: what sums of pairs take on a device is not measured.",
        )
        require(self.start in STARTS, f"--start {self.start}: one of {', '.join(STARTS)}.")
        require(self.epochs is None or self.epochs >= 1, f"--epochs {self.epochs} is below 1.")
        require(self.batch >= 0, f"--batch {self.batch} is below 0.")
        require(self.threads >= 1, f"--threads {self.threads} is below 1.")
        require(self.count is None or self.count >= 1, f"--count {self.count} is below 1.")
        require(self.lr > 0, f"--lr {self.lr:g} is not above 0.")
        require(self.seed >= 0, f"--seed {self.seed} is below 0.")
        require(self.output.suffix == ".json", f"-o {self.output} does not end in .json.")
        Selection(self.scheme)  # Refuses a scheme that there is not.

    @property
    def budget(self) -> str:
        """What is to be smaller, as the option is called."""
        return "macs" if self.macs is not None else "speedup"

    @property
    def ratio(self) -> float:
        """How many times smaller, or as fast."""
        return float(self.macs or self.speedup or 0.0)

    @property
    def folder(self) -> Path:
        """Where all but the plan lies: plan.search for plan.json."""
        return self.output.with_suffix(".search")
