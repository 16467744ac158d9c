"""What a user asks of an export, as values. Contradictions are refused here, before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, get_args

from trp_export.errors import OptionError
from trp_export.inputs.images import Preprocessing
from trp_export.load.source import LoadOptions
from trp_export.planning.curves import CHOICES
from trp_export.planning.rules import Energy, Rank, Threshold


@dataclass(frozen=True, slots=True)
class Macs:
    """The whole network with this many times fewer multiply-adds."""

    ratio: float

    def __post_init__(self) -> None:
        if not 1 < self.ratio < float("inf"):
            raise OptionError(
                f"--macs {self.ratio:g} is not a number above 1: it says how many times fewer multiply-adds."
            )


@dataclass(frozen=True, slots=True)
class Params:
    """The whole network with this many times fewer parameters."""

    ratio: float

    def __post_init__(self) -> None:
        if not self.ratio > 1:
            raise OptionError(f"--params {self.ratio:g} is not above 1: it says how many times fewer parameters.")


@dataclass(frozen=True, slots=True)
class Speedup:
    """The whole network this many times as fast as the original, measured on the device of the benchmark."""

    ratio: float

    def __post_init__(self) -> None:
        if not 1 < self.ratio < float("inf"):
            raise OptionError(f"--speedup {self.ratio:g} is not a number above 1: it says how many times as fast.")


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """A plan, or a report that holds one."""

    path: Path


Rule = Energy | Threshold | Rank | Macs | Params | Speedup | SavedPlan


By = Literal["macs", "params", "speed"]


@dataclass(frozen=True, slots=True)
class MaxDrop:
    """The smallest network that loses at most so many percentage points of what --eval or `evaluate` measures.

    `by` names the budget that is searched over.
    """

    points: float
    by: By = "macs"

    def __post_init__(self) -> None:
        if not 0 <= self.points < 100:
            raise OptionError(f"--max-drop {self.points:g} is outside 0 to 100 percentage points.")
        if self.by not in get_args(By):
            raise OptionError(f"--by {self.by} is unknown; one of {', '.join(get_args(By))}.")

    def budget(self, ratio: float) -> Rule:
        """The rule that asks for this ratio."""
        match self.by:
            case "macs":
                return Macs(ratio)
            case "params":
                return Params(ratio)
            case "speed":
                return Speedup(ratio)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which layers, which decompositions, which ranks: what holds for every rule.

    `only` and `skip` are shell patterns on layer names. `align` rounds ranks up to a multiple.
    """

    scheme: str = "auto"
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    align: int | Literal["auto"] = 1

    def __post_init__(self) -> None:
        if self.scheme not in CHOICES:
            raise OptionError(f"--scheme {self.scheme} is unknown; one of {', '.join(CHOICES)}.")
        if self.align != "auto" and self.align < 1:
            raise OptionError(f"--align {self.align} is below 1.")


Precision = Literal["fp32", "fp16", "int8"]
# In place of a path to images: make them from what batch norm kept of the training data.
SYNTHETIC: Final = "synthetic"
# onnxruntime's fast 8-bit convs take input channels four at a time.
INT8_CHANNELS = 4

# A measure of the user's own: what a model file is worth, a share of 1, more for better.
Evaluate = Callable[[Path], float]


@dataclass(frozen=True, slots=True)
class Images:
    """Real images to compare the two models on. Mean and std default to those of the checkpoint."""

    path: Path
    preprocessing: Preprocessing = Preprocessing()
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Unlabelled images that show what each layer sees, and what is done with them.

    A `count` of None takes all images, and makes as many synthetic ones as some minutes allow. `recover` refits the
    factors layer after layer; `tune_minutes` or `tune_steps` then distil the whole network from the original.
    `moments` are files of earlier runs to be added, `save_moments` keeps those of this one.
    """

    path: Path | Literal["synthetic"]
    preprocessing: Preprocessing = Preprocessing()
    count: int | None = 1024
    seed: int = 0
    recover: bool = True
    tune_minutes: float | None = None
    tune_steps: int | None = None
    moments: tuple[Path, ...] = ()
    save_moments: Path | None = None

    def __post_init__(self) -> None:
        if self.save_moments is not None and not self.save_moments.parent.is_dir():
            raise OptionError(f"--save-moments: the folder {self.save_moments.parent} is not there.")
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed} is below 0.")
        if self.path == SYNTHETIC and self.preprocessing != Preprocessing():
            raise OptionError("--calib synthetic makes inputs as the network takes them: there is nothing to prepare.")
        if self.count is not None and self.count < 1:
            raise OptionError(f"--calib-count {self.count} is below 1.")
        if self.tune_minutes is not None and self.tune_steps is not None:
            raise OptionError("--tune and --tune-steps contradict each other; give one.")
        if self.tune_minutes is not None and not self.tune_minutes > 0:
            raise OptionError(f"--tune {self.tune_minutes:g} must be above 0 minutes.")
        if self.tune_steps is not None and self.tune_steps < 1:
            raise OptionError(f"--tune-steps {self.tune_steps} is below 1.")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How the speed-up is measured; `require` makes an export that is not faster an error.

    `device` is one of `trp-bench --list-devices`.
    """

    run: bool = True
    threads: int = 1
    budget_s: float = 20.0
    require: bool = False
    device: str = "local"

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise OptionError(f"--threads {self.threads} is below 1.")
        if not self.budget_s > 0:
            raise OptionError(f"--budget {self.budget_s:g} must be above 0 seconds.")
        if self.require and not self.run:
            raise OptionError("--require-speedup needs the benchmark; leave --no-bench out.")


@dataclass(frozen=True, slots=True)
class LatencyTables:
    """Tables of what layers take: `given` are merged and believed before anything is measured, `save` keeps all."""

    given: tuple[Path, ...] = ()
    save: Path | None = None

    def __post_init__(self) -> None:
        if self.save is not None and not self.save.parent.is_dir():
            raise OptionError(f"--save-latency: the folder {self.save.parent} is not there.")


# The kind of processor that a model in ORT format is laid out for.
Target = Literal["arm", "x86"]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder to ship. `preprocessing` tells the app how images are prepared where neither --eval nor --calib does.

    `ort` adds the model in ORT format for one kind of processor.
    """

    folder: Path
    preprocessing: Preprocessing = Preprocessing()
    ort: Target | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """Everything `compress` can be told. `rule` None: the plan inside the checkpoint.

    `output` None: `<stem>.trp.onnx` in the current folder. `<output>.json` always lies beside it. A `bundle` takes
    the place of both and of `report`.
    `evaluate` stands in for `images` where a network answers something other than classes: it takes the path of an
    ONNX file and returns a share of 1, more for better, such as 0.387 for a mAP of 38.7.
    """

    rule: Rule | MaxDrop | None = None
    load: LoadOptions = LoadOptions()
    selection: Selection = Selection()
    images: Images | None = None
    evaluate: Evaluate | None = None
    calibration: Calibration | None = None
    benchmark: Benchmark = Benchmark()
    tables: LatencyTables = LatencyTables()
    output: Path | None = None
    report: Path | None = None
    bundle: Bundle | None = None
    dry_run: bool = False
    precision: Precision = "fp32"
    best: bool = False

    @property
    def shown(self) -> Images | Calibration | None:
        """Where real images come from, if from anywhere."""
        given = self.calibration
        return self.images or (given if given is not None and given.path != SYNTHETIC else None)

    @property
    def by_latency(self) -> bool:
        """True where plans are made by what layers take on the device."""
        return isinstance(self.rule, Speedup) or (isinstance(self.rule, MaxDrop) and self.rule.by == "speed")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those to be made beside the float model: the one asked for, or all that --best chooses from."""
        if self.best:
            return ("fp16", "int8") if self.calibration is not None else ("fp16",)
        return () if self.precision == "fp32" else (self.precision,)

    @property
    def aligned(self) -> Selection:
        """The selection, with ranks in multiples that 8-bit kernels take at all: others fall back to slow ones."""
        odd = self.selection.align != "auto" and self.selection.align < INT8_CHANNELS
        return replace(self.selection, align=INT8_CHANNELS) if "int8" in self.precisions and odd else self.selection

    def __post_init__(self) -> None:
        if self.bundle is not None and (self.output is not None or self.report is not None):
            raise OptionError("--bundle is the only output, report included; leave -o and --report out.")
        if self.precision not in get_args(Precision):
            raise OptionError(f"--precision {self.precision} is unknown; one of {', '.join(get_args(Precision))}.")
        if self.precision == "int8" and self.calibration is None:
            raise OptionError("--precision int8 needs images that show the ranges of values: --calib PATH.")
        if self.best and self.precision != "fp32":
            raise OptionError("--best chooses the precision; leave --precision out.")
        if self.best and not self.benchmark.run:
            raise OptionError("--best needs the benchmark; leave --no-bench out.")
        if self.tables != LatencyTables() and not self.by_latency:
            raise OptionError("--latency and --save-latency go with --speedup, or with --by speed.")
        fixed = isinstance(self.rule, SavedPlan)
        if fixed and (self.selection.scheme != "auto" or self.selection.align != 1):
            raise OptionError("--plan says scheme and rank of every layer; leave --scheme and --align out.")
        if self.images is not None and self.evaluate is not None:
            raise OptionError("images and evaluate both measure what is lost; give one.")
        if isinstance(self.rule, MaxDrop) and self.images is None and self.evaluate is None:
            raise OptionError("--max-drop needs images to measure what is lost: --eval PATH.")
