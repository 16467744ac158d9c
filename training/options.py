"""Everything that decides the result of a training run, as one value. Its fields carry the flags of trp-train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from training.channels.settings import CHANNELS, CSGDSettings, DaggerSettings, MagnitudeSettings, Widths
from training.data.loading import DATA, Loading
from training.save_every import SaveEvery, read_save_every
from training.settings import (
    LOW_RANK,
    ByName,
    LayerFilter,
    RankRule,
    TRPSettings,
    paper_choice,
    require_above_zero,
    require_at_least_zero,
    require_choice,
)
from trp_export.flags import InvalidOptionError, flag, group, one_of, optional
from trp_export.lowrank.names import SCHEME_CHOICES
from trp_export.rules import FIRST, SIZE, Energy, Macs, SavedPlan, Threshold

NETWORK, TRAINING, TEACHER, SPEED, RUN = "Network", "Training", "Teacher", "Speed", "The run"
# The headings of the help, in order.
SECTIONS = (FIRST, SIZE, NETWORK, DATA, LOW_RANK, CHANNELS, TRAINING, TEACHER, SPEED, RUN)

ALL = -1  # --factors all
LARGEST_SEED = 2**63 - 1
Schedule = Literal["step", "cosine"]
Keep = Literal["best", "last"]
MethodName = Literal["trp", "csgd", "dagger", "magnitude"]
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


def _read_factors(text: str) -> int:
    return ALL if text == "all" else int(text)


def _write_factors(epochs: int) -> str:
    return "all" if epochs == ALL else str(epochs)


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


@dataclass(frozen=True, slots=True)
class Layers:
    """Which layers are trained for low rank, and how they are decomposed."""

    scheme: str = flag(
        "--scheme",
        "How a layer is decomposed. auto, sliced and all take the best of several for each layer.",
        section=LOW_RANK,
        choices=SCHEME_CHOICES,
        default="spatial",
    )
    only: tuple[str, ...] = flag(
        "--only",
        "Train only layers whose name matches; may be repeated. Default: all convs with kernels larger than 1x1, "
        "except the first.",
        section=LOW_RANK,
        kind="many",
        metavar="PATTERN",
        default=(),
    )
    skip: tuple[str, ...] = flag(
        "--skip",
        "Leave out layers whose name matches; may be repeated.",
        section=LOW_RANK,
        kind="many",
        metavar="PATTERN",
        default=(),
    )

    def __post_init__(self) -> None:
        require_choice("scheme", self.scheme, SCHEME_CHOICES)

    @property
    def filter(self) -> LayerFilter:
        return ByName(self.only, self.skip) if self.only or self.skip else paper_choice


@dataclass(frozen=True, slots=True)
class Optimisation:
    """Epochs, batches and SGD. `factors` is the number of epochs at the end that train factor pairs."""

    epochs: int = flag("--epochs", "Number of epochs.", section=FIRST, read=int, metavar="N", default=164)
    factors: int = flag(
        "--factors",
        "Cut the network before the last N epochs and train its factors in these; all trains factors from the start.",
        section=TRAINING,
        read=_read_factors,
        write=_write_factors,
        metavar="N|all",
        default=0,
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
        "Learning rate over the run: step, as the TRP authors train, or cosine.",
        section=TRAINING,
        choices=get_args(Schedule),
        default="step",
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise InvalidOptionError(f"{{{name}}} must be at least 1, not {getattr(self, name)}.")
        if self.factors != ALL and not 0 <= self.factors <= self.epochs:
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
        return self.epochs if self.factors == ALL else self.factors

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


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The options of trp-train, with their defaults. Raises InvalidOptionError where two contradict each other.

    `rule` None trains the network as it is; with a SavedPlan the factors of that plan are trained in all epochs.
    """

    data: str = flag(
        "--data",
        "Labelled images: imagefolder:DIR, webdataset:PATTERN, huggingface:DIR, npz:DIR or torchvision:CIFAR10:DIR.",
        section=FIRST,
        metavar="SPEC",
    )
    output: Path = flag("-o/--output", "Folder of the run.", section=FIRST, read=Path, metavar="DIR")
    start: StartOptions = group(StartOptions)
    loading: Loading = group(Loading)
    method: MethodName = flag(
        "--method",
        "How the network is made smaller: trp lowers ranks (Trained Rank Pruning), csgd makes filters equal "
        "(Centripetal SGD), dagger finds filters to spare by gates, magnitude drops the smallest ones; trp-export "
        "removes them.",
        section=FIRST,
        choices=get_args(MethodName),
        default="trp",
    )
    rule: Energy | Threshold | Macs | Widths | SavedPlan | None = one_of(
        Macs, Energy, Threshold, Widths, SavedPlan, default=None
    )
    layers: Layers = group(Layers)
    trp: TRPSettings = group(TRPSettings)
    csgd: CSGDSettings = group(CSGDSettings)
    dagger: DaggerSettings = group(DaggerSettings)
    optimisation: Optimisation = group(Optimisation)
    distillation: Distillation | None = optional(Distillation)
    speed: Speed = group(Speed)
    validation: int = flag(
        "--validation",
        "Images held out of the training set for validation, chosen by --seed.",
        section=RUN,
        read=int,
        metavar="N",
        default=5_000,
    )
    keep: Keep = flag(
        "--keep",
        "Which epoch model.pt holds: the one whose cut network is best on the validation images, or the last.",
        section=RUN,
        choices=get_args(Keep),
        default="best",
    )
    seed: int = flag(
        "--seed",
        "Seed of the split, the order, the augmentation and fresh weights.",
        section=RUN,
        read=int,
        metavar="N",
        default=0,
    )
    save_every: SaveEvery | None = flag(
        "--save-every",
        "Save the state of the run also within epochs, after so many steps or minutes.",
        section=RUN,
        read=read_save_every,
        metavar="500steps|10min",
        default=None,
    )
    states: int = flag(
        "--states",
        "Keep the latest N saved states beside last.pt, as state-EPOCH-STEP.pt.",
        section=RUN,
        read=int,
        metavar="N",
        default=0,
    )
    tensorboard: bool = flag("--tensorboard", "Also write TensorBoard events.", section=RUN, kind="on", default=False)

    def __post_init__(self) -> None:
        require_choice("keep", self.keep, get_args(Keep))
        require_choice("method", self.method, get_args(MethodName))
        self._require_fitting_rule()
        if self.loading.epoch_images is not None and not self.data.startswith("webdataset:"):
            raise InvalidOptionError("{loading.epoch_images} is for {data} webdataset:PATTERN.")
        if not 0 <= self.states <= 1000:
            raise InvalidOptionError(f"{{states}} must lie between 0 and 1000, not {self.states}.")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise InvalidOptionError(f"{{seed}} must lie between 0 and 2^63 - 1, not {self.seed}.")
        if self.start.arch is None and self.start.init is None:
            raise InvalidOptionError("name a network: {start.arch} resnet20, or {start.init} FILE.")
        if isinstance(self.rule, SavedPlan) and 0 < self.optimisation.factor_epochs < self.optimisation.epochs:
            raise InvalidOptionError(
                "{rule.path}: a saved plan trains factors in all epochs; leave {optimisation.factors} out."
            )

    @property
    def rank_rule(self) -> RankRule | None:
        """The rule that ranks follow while dense weights are trained; None where none are lowered."""
        return self.rule if self.method == "trp" and isinstance(self.rule, Energy | Threshold | Macs) else None

    @property
    def channel_rule(self) -> Macs | Widths | None:
        """The rule that says how many filters remain; None where all do."""
        return self.rule if self.method != "trp" and isinstance(self.rule, Macs | Widths) else None

    @property
    def has_method(self) -> bool:
        """Whether dense weights are trained for a cut."""
        return self.rank_rule is not None or self.channel_rule is not None

    def trp_settings(self, rule: RankRule, steps_per_epoch: int) -> TRPSettings:
        """The settings of TRP for this run. The ramp takes three quarters of the dense epochs."""
        return replace(
            self.trp,
            rule=rule,
            schemes={"*": self.layers.scheme},
            layers=self.layers.filter,
            ramp_steps=int(0.75 * self.optimisation.dense_epochs * steps_per_epoch),
        )

    def csgd_settings(self, rule: Macs | Widths) -> CSGDSettings:
        """The settings of C-SGD for this run. Its decay is the weight decay of the optimizer."""
        return replace(self.csgd, rule=rule, seed=self.seed, layers=self._may_lose_filters)

    def dagger_settings(self, rule: Macs | Widths) -> DaggerSettings:
        """The settings of Dagger for this run."""
        return replace(self.dagger, rule=rule, seed=self.seed, layers=self._may_lose_filters)

    def magnitude_settings(self, rule: Macs | Widths) -> MagnitudeSettings:
        """The settings of removal by magnitude for this run."""
        return MagnitudeSettings(rule, self._may_lose_filters)

    @property
    def _may_lose_filters(self) -> Callable[[str], bool]:
        return ByName(self.layers.only, self.layers.skip).matches

    def _require_fitting_rule(self) -> None:
        """Raise InvalidOptionError where the method cannot follow the rule."""
        if self.method == "trp" and isinstance(self.rule, Widths):
            raise InvalidOptionError("{rule.fraction} needs {method} csgd, dagger or magnitude.")
        if self.method == "trp":
            return
        if self.channel_rule is None:
            raise InvalidOptionError(
                f"{{method}} {self.method} needs a number of filters: {{rule.ratio}} RATIO or "
                "{rule.fraction} FRACTION."
            )
        if self.optimisation.factor_epochs:
            raise InvalidOptionError(f"{{method}} {self.method} makes no factors; leave {{optimisation.factors}} out.")
