"""SGD, a teacher and speed, as one value each. Their fields carry the flags of trp-train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from training.settings import require_above_zero, require_at_least_zero, require_choice
from trp_export.flags import InvalidOptionError, flag
from trp_export.rules import FIRST

TRAINING, TEACHER, SPEED = "Training", "Teacher", "Speed"
ALL = -1  # --factors all
Schedule = Literal["step", "cosine"]


def _read_factors(text: str) -> int:
    return ALL if text == "all" else int(text)


def _write_factors(epochs: int) -> str:
    return "all" if epochs == ALL else str(epochs)


@dataclass(frozen=True, slots=True)
class Optimisation:
    """Epochs, batches and SGD. `factors` is the number of epochs at the end that train factor pairs; None is none."""

    epochs: int = flag("--epochs", "Number of epochs.", section=FIRST, read=int, metavar="N", default=164)
    factors: int | None = flag(
        "--factors",
        "Cut the network before the last N epochs and train its factors in these; all trains factors from the start.",
        section=TRAINING,
        read=_read_factors,
        write=_write_factors,
        metavar="N|all",
        shown_default="three quarters of the epochs under a rule for ranks, all under --plan, else 0",
        default=None,
    )
    batch: int = flag(
        "--batch", "Images per step, over all processes.", section=TRAINING, read=int, metavar="N", default=128
    )
    accumulate: int = flag(
        "--accumulate",
        "Compute each step in N parts, one after the other, to save memory. Batch norm then sees parts.",
        section=TRAINING,
        read=int,
        metavar="N",
        default=1,
    )
    lr: float = flag("--lr", "Peak learning rate.", section=TRAINING, read=float, metavar="RATE", default=0.1)
    momentum: float = flag("--momentum", "Momentum of SGD.", section=TRAINING, read=float, metavar="SHARE", default=0.9)
    nesterov: bool = flag("--nesterov", "Use Nesterov's momentum.", section=TRAINING, kind="on", default=False)
    weight_decay: float = flag(
        "--weight-decay", "L2 penalty on all parameters.", section=TRAINING, read=float, metavar="WEIGHT", default=1e-4
    )
    ema: float = flag(
        "--ema",
        "Measure and keep an exponential moving average of the weights, such as 0.9999, in place of the last ones.",
        section=TRAINING,
        read=float,
        metavar="DECAY",
        default=0.0,
    )
    label_smoothing: float = flag(
        "--label-smoothing",
        "Spread this share of every label evenly over all classes (Szegedy et al. 2016), such as 0.1.",
        section=TRAINING,
        read=float,
        metavar="SHARE",
        default=0.0,
    )
    schedule: Schedule = flag(
        "--schedule",
        "Learning rate over the run: cosine, or step, as the TRP authors train.",
        section=TRAINING,
        choices=get_args(Schedule),
        default="cosine",
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise InvalidOptionError(f"{{{name}}} must be at least 1, not {getattr(self, name)}.")
        if self.factors not in (None, ALL) and not 0 <= self.factors <= self.epochs:
            raise InvalidOptionError(f"{{factors}} must lie between 0 and {{epochs}}, not {self.factors}.")
        require_choice("schedule", self.schedule, get_args(Schedule))
        require_above_zero("lr", self.lr)
        require_at_least_zero("weight_decay", self.weight_decay)
        if not 0 <= self.momentum < 1:
            raise InvalidOptionError(f"{{momentum}} must be at least 0 and below 1, not {self.momentum:g}.")
        if not 0 <= self.ema < 1:
            raise InvalidOptionError(f"{{ema}} must be at least 0 and below 1, not {self.ema:g}.")
        if not 0 <= self.label_smoothing < 1:
            raise InvalidOptionError(
                f"{{label_smoothing}} must be at least 0 and below 1, not {self.label_smoothing:g}."
            )
        if self.nesterov and not self.momentum:
            raise InvalidOptionError("{nesterov} needs {momentum} above 0.")

    @property
    def factor_epochs(self) -> int:
        """Epochs at the end that train factor pairs."""
        return self.epochs if self.factors == ALL else self.factors or 0

    @property
    def dense_epochs(self) -> int:
        """Epochs before the cut."""
        return self.epochs - self.factor_epochs

    def settles(self, epoch: int) -> bool:
        """Whether the epoch is one of the last tenth, in which the learning rate is low."""
        return epoch > 0 and epoch >= self.epochs - max(1, self.epochs // 10)


@dataclass(frozen=True, slots=True)
class Distillation:
    """A teacher, and how much of the loss it makes up (Hinton et al. 2015)."""

    teacher: Path = flag(
        "--teacher", "Distil from the network with these weights.", section=TEACHER, read=Path, metavar="FILE"
    )
    arch: str | None = flag(
        "--teacher-arch",
        "The teacher's architecture, if it differs from --arch and the file does not name it.",
        section=TEACHER,
        metavar="NAME",
        default=None,
    )
    temperature: float = flag(
        "--temperature", "Temperature of the distillation.", section=TEACHER, read=float, metavar="T", default=4.0
    )
    share: float = flag(
        "--teacher-share",
        "The teacher's share of the loss, between 0 and 1.",
        section=TEACHER,
        read=float,
        metavar="SHARE",
        default=0.9,
    )

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InvalidOptionError(f"{{share}} must lie between 0 and 1, not {self.share:g}.")
        require_above_zero("temperature", self.temperature)


@dataclass(frozen=True, slots=True)
class Speed:
    """What makes steps faster without changing what is trained."""

    device: str = flag("--device", "cpu, cuda or cuda:1.", section=SPEED, metavar="NAME", default="auto")
    amp: bool = flag(
        "--amp", "Compute in bfloat16 where that is safe (autocast).", section=SPEED, kind="on", default=False
    )
    compile: bool = flag(
        "--compile",
        "Compile the network (torch.compile); TORCHINDUCTOR_CACHE_DIR keeps the result.",
        section=SPEED,
        kind="on",
        default=False,
    )
    sync_batch_norm: bool = flag(
        "--sync-bn",
        "Compute batch norm over all processes; needs GPUs.",
        section=SPEED,
        kind="on",
        default=False,
    )
