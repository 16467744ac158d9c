"""Everything that decides what a run comes to, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from training.ranks import RAMPS, MacsBudget, RankRule
from training.schedule import SCHEDULES
from training.stored import Stored, require
from trp_export.rules import Energy, Threshold

# These may change from one start of a run to the next; all others make it another run.
FREE = ("output", "tensorboard", "device", "lr")


@dataclass(frozen=True, slots=True)
class TrainOptions(Stored):
    """One field per option of trp-train, with its default. Raises OptionError where two contradict one another."""

    PATHS: ClassVar = ("output", "init", "teacher", "plan")

    data: str
    output: Path
    arch: str | None = None
    input_shape: tuple[int, ...] | None = None
    scheme: str = "spatial"
    energy: float | None = None
    threshold: float | None = None
    macs: float | None = None
    plan: Path | None = None
    ramp: str = "none"
    period: int = 20
    nuclear: float = 0.0
    nuclear_every_step: bool = False
    project: bool = True
    exact_every: int = 1
    momentum_at_projection: str = "keep"
    preserve_energy: bool = False
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    epochs: int = 164
    factors: int = 0
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: str = "step"
    init: Path | None = None
    teacher: Path | None = None
    teacher_arch: str | None = None
    temperature: float = 4.0
    teacher_share: float = 0.9
    validation: int = 5_000
    keep: str = "best"
    amp: bool = False
    compile: bool = False
    device: str = "auto"
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"--epochs {self.epochs} is below 1.")
        require(0 <= self.factors <= self.epochs, f"--factors {self.factors} is not between 0 and --epochs.")
        require(self.batch >= 1, f"--batch {self.batch} is below 1.")
        require(self.lr > 0, f"--lr {self.lr:g} is not above 0.")
        require(0 <= self.momentum < 1, f"--momentum {self.momentum:g} is outside [0, 1).")
        require(self.momentum > 0 or not self.nesterov, "--nesterov needs a --momentum above 0.")
        require(self.weight_decay >= 0, f"--weight-decay {self.weight_decay:g} is below 0.")
        require(0 <= self.teacher_share <= 1, f"--teacher-share {self.teacher_share:g} is outside [0, 1].")
        require(self.temperature > 0, f"--temperature {self.temperature:g} is not above 0.")
        require(self.schedule in SCHEDULES, f"--schedule {self.schedule}: one of {', '.join(SCHEDULES)}.")
        require(self.ramp in RAMPS, f"--ramp {self.ramp}: one of {', '.join(RAMPS)}.")
        require(self.keep in ("best", "last"), f"--keep {self.keep}: best or last.")
        require(self.arch is not None or self.init is not None, "name a network: --arch resnet20, or --init FILE.")
        rules = [name for name in ("energy", "threshold", "macs", "plan") if getattr(self, name) is not None]
        require(len(rules) <= 1, f"--{' and --'.join(rules)} contradict each other; give one rank rule.")
        whole = self.factors in (0, self.epochs)
        require(
            self.plan is None or whole, "--plan trains factors in all epochs: leave --factors out, or without number."
        )

    @property
    def rule(self) -> RankRule | None:
        """The rank rule; without one the network is trained as it is, or as the factors of `plan`."""
        if self.energy is not None:
            return Energy(self.energy)
        if self.threshold is not None:
            return Threshold(self.threshold)
        return None if self.macs is None else MacsBudget(self.macs)
