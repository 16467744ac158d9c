"""Everything that decides the result of a training run, as one value. Its fields carry the flags of trp-train."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from training.channels.settings import CHANNELS, CSGDSettings, DaggerSettings, Widths
from training.data.loading import DATA, Loading
from training.optimisation import ALL, SPEED, TEACHER, TRAINING, Distillation, Optimisation, Speed
from training.save_every import SaveEvery, read_save_every
from training.settings import LOW_RANK, Layers, RankRule, TRPSettings, require_choice
from training.start_options import NETWORK, StartOptions
from trp_export.errors import OptionError
from trp_export.flags import InvalidOptionError, entries, flag, group, one_of, optional
from trp_export.rules import FIRST, SIZE, Energy, Macs, SavedPlan, Threshold

RUN = "The run"
# The headings of the help, in order.
SECTIONS = (FIRST, SIZE, NETWORK, DATA, LOW_RANK, CHANNELS, TRAINING, TEACHER, SPEED, RUN)

LARGEST_SEED = 2**63 - 1
Keep = Literal["best", "last"]
MethodName = Literal["trp", "csgd", "dagger", "magnitude"]


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
    teach: bool = flag(
        "--no-teacher",
        "Do not distil. Without this and --teacher, the network of --init teaches, where a rule or a plan makes it "
        "smaller.",
        section=TEACHER,
        kind="off",
        default=True,
    )
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
        if self.validation < 1:
            raise InvalidOptionError(f"{{validation}} must be at least 1, not {self.validation}.")
        if self.distillation is not None and not self.teach:
            raise InvalidOptionError("{distillation} and {teach} contradict each other; give one.")
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

    @property
    def guesses_classes(self) -> bool:
        """Whether the names of the classes are a guess, as for npz files."""
        return self.data.startswith("npz:")

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


def with_recipe(options: TrainOptions) -> tuple[TrainOptions, tuple[str, ...]]:
    """The options with what the command chooses where nothing is said: epochs for factors, and a teacher. And notes.

    Both are part of what goes beyond the paper's method on CIFAR-10 (docs/results/training.md).
    """
    optimisation, distillation, notes = options.optimisation, options.distillation, []
    if optimisation.factors is None and options.rank_rule is not None:
        optimisation = replace(optimisation, factors=3 * optimisation.epochs // 4)
        if optimisation.factors:
            notes.append(f"the last {optimisation.factors} of {optimisation.epochs} epochs train factors (--factors)")
    becomes_smaller = options.has_method or isinstance(options.rule, SavedPlan)
    if options.teach and distillation is None and options.start.init is not None and becomes_smaller:
        distillation = Distillation(options.start.init)
        notes.append("the network of --init is the teacher (--no-teacher trains without)")
    return replace(options, optimisation=optimisation, distillation=distillation), tuple(notes)


def require_used(options: TrainOptions) -> None:
    """Raise OptionError for an option that has no effect beside the others.

    Runs that earlier versions have started may go on with such options, so a TrainOptions may have them.
    """
    for entry in entries(TrainOptions):
        value: Any = options
        for name in entry.path:
            value = getattr(value, name, entry.default)
        need = None if value == entry.default else _unmet_need(options, *entry.path)
        if need is not None:
            raise OptionError(f"{entry.flag.name} has no effect here: it needs {need}.")


def _unmet_need(options: TrainOptions, first: str, *names: str) -> str | None:
    """What an option that is given needs to have an effect, and lacks; `first` and `names` lead to its field."""
    if first in ("csgd", "dagger"):
        return None if options.method == first else f"--method {first}"
    if first == "layers" and "scheme" not in names:
        return None if options.has_method else "a rule such as --macs"
    if first in ("trp", "layers"):
        return None if options.rank_rule is not None else "a rule for ranks: --macs, --energy or --threshold"
    if names == ("factors",) and options.rule is None and options.optimisation.factors not in (0, ALL):
        return "a rule by which the network is cut: --macs, --energy or --threshold"
    return None
