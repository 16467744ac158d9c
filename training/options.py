"""Everything that decides what a run comes to, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from training.ranks import RAMPS, MacsBudget, RankRule
from training.schedule import SCHEDULES
from trp_export.errors import OptionError
from trp_export.planning.rules import Energy, Threshold

# These may change from one start of a run to the next; all others make it another run.
FREE = ("output", "tensorboard", "device")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """One field per option of trp-train, with its default. Raises OptionError where two contradict one another."""

    data: str
    output: Path
    arch: str | None = None
    input_shape: tuple[int, ...] | None = None
    scheme: str = "spatial"
    energy: float | None = None
    threshold: float | None = None
    macs: float | None = None
    ramp: str = "none"
    period: int = 20
    nuclear: float = 0.0
    nuclear_every_step: bool = False
    project: bool = True
    momentum_at_projection: str = "keep"
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
        _require(self.epochs >= 1, f"--epochs {self.epochs} is below 1.")
        _require(0 <= self.factors <= self.epochs, f"--factors {self.factors} is not between 0 and --epochs.")
        _require(self.batch >= 1, f"--batch {self.batch} is below 1.")
        _require(self.lr > 0, f"--lr {self.lr:g} is not above 0.")
        _require(0 <= self.teacher_share <= 1, f"--teacher-share {self.teacher_share:g} is outside [0, 1].")
        _require(self.temperature > 0, f"--temperature {self.temperature:g} is not above 0.")
        _require(self.schedule in SCHEDULES, f"--schedule {self.schedule}: one of {', '.join(SCHEDULES)}.")
        _require(self.ramp in RAMPS, f"--ramp {self.ramp}: one of {', '.join(RAMPS)}.")
        _require(self.keep in ("best", "last"), f"--keep {self.keep}: best or last.")
        _require(self.arch is not None or self.init is not None, "name a network: --arch resnet20, or --init FILE.")
        rules = [name for name in ("energy", "threshold", "macs") if getattr(self, name) is not None]
        _require(len(rules) <= 1, f"--{' and --'.join(rules)} contradict each other; give one rank rule.")

    @property
    def rule(self) -> RankRule | None:
        """The rank rule; without one the network is trained as it is."""
        if self.energy is not None:
            return Energy(self.energy)
        if self.threshold is not None:
            return Threshold(self.threshold)
        return None if self.macs is None else MacsBudget(self.macs)

    def to_json(self) -> dict[str, Any]:
        """Plain values by option name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainOptions:
        """The reverse of `to_json`; options that a later version added have their defaults."""
        names = {field.name for field in fields(cls)}
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in names
        }
        paths: dict[str, Any] = {
            key: Path(known[key]) for key in ("output", "init", "teacher") if known.get(key) is not None
        }
        return cls(**(known | paths))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise OptionError(message)
