"""What a user asks for, as values. Contradictions are refused here, before anything is read.

Each field that can be given on a command line carries its flag (see `trp_export.flags`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, get_args

from trp_export.errors import OptionError
from trp_export.flags import InvalidOptionError, flag, group, one_of, optional
from trp_export.inputs.options import InputOptions, names_function
from trp_export.inputs.preprocessing import SECTION as PREPROCESSING
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.lowrank.names import SCHEME_CHOICES
from trp_export.metrics.names import AUTO, HEADS, METRICS, read_metric, without_folder
from trp_export.rules import FIRST, RULES, SIZE, OwnPlan, Rule, SavedPlan

LAYERS, MODEL, CALIBRATION = "Layers and decompositions", "The model", "Calibration"
EVALUATION = "Evaluation"
OUTPUT, BENCHMARK, OTHER = "Output", "Benchmark", "Other"
# The headings of the help, in order.
SECTIONS = (FIRST, SIZE, LAYERS, MODEL, CALIBRATION, EVALUATION, PREPROCESSING, OUTPUT, BENCHMARK, OTHER)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to read a model. Only files that are not ONNX need the architecture.

    `inputs` are the shapes or arrays with which a PyTorch model is traced; `Options` takes them from its own `inputs`.
    """

    arch: str | None = flag(
        "--arch",
        "Architecture of a file that holds weights alone: resnet20, torchvision:resnet50 or package.module:factory.",
        section=MODEL,
        metavar="NAME",
        default=None,
    )
    inputs: InputOptions = InputOptions()
    static: bool = flag(
        "--static", "Fix the batch size at that of --shape (PyTorch models).", section=MODEL, kind="on", default=False
    )
    trust_pickle: bool = flag(
        "--trust-pickle",
        "Open pickled modules and TorchScript, which can run code. Use it only for files you trust.",
        section=MODEL,
        kind="on",
        default=False,
    )
    iterations: int | None = flag(
        "--iterations",
        "Run a network with recurrent gates, such as resnet14-rignet-t2, T times, whatever T its name has.",
        section=MODEL,
        read=int,
        metavar="T",
        default=None,
    )


def _read_align(text: str) -> int | str:
    if text != "auto" and not text.isdigit():
        raise ValueError(f"{text!r} is neither a whole number nor auto.")
    return text if text == "auto" else int(text)


# Whether channels may go by images, beside those that are equal or dead.
CHANNEL_CHOICES = ("auto", "on", "off")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which layers, which decompositions and which ranks every rule may choose from.

    `only` and `skip` are shell patterns on layer names. `align` rounds ranks up to a multiple.
    """

    scheme: str = flag(
        "--scheme",
        "How a layer is decomposed. auto, sliced and all take the best of several for each layer.",
        section=LAYERS,
        choices=SCHEME_CHOICES,
        default="auto",
    )
    only: tuple[str, ...] = flag(
        "--only",
        "Change only layers whose name matches; may be repeated.",
        section=LAYERS,
        kind="many",
        metavar="PATTERN",
        default=(),
    )
    skip: tuple[str, ...] = flag(
        "--skip",
        "Keep layers whose name matches; may be repeated.",
        section=LAYERS,
        kind="many",
        metavar="PATTERN",
        default=(),
    )
    align: int | Literal["auto"] = flag(
        "--align",
        "Round ranks up to a multiple of N; auto takes the channel block of --device.",
        section=LAYERS,
        read=_read_align,
        metavar="N|auto",
        default=1,
    )
    channels: str = flag(
        "--channels",
        "Share a budget out over pairs and channels, and refit the layers that read fewer. auto does so where your "
        "images calibrate and that does clearly less damage, or less for the time that it saves.",
        section=LAYERS,
        choices=CHANNEL_CHOICES,
        default="auto",
    )

    def __post_init__(self) -> None:
        if self.scheme not in SCHEME_CHOICES:
            raise InvalidOptionError(f"{{scheme}} must be one of {', '.join(SCHEME_CHOICES)}, not {self.scheme}.")
        if self.channels not in CHANNEL_CHOICES:
            raise InvalidOptionError(
                f"{{channels}} must be one of {', '.join(CHANNEL_CHOICES)}, not {self.channels!r}."
            )
        if self.align != "auto" and self.align < 1:
            raise InvalidOptionError(f"{{align}} must be at least 1, not {self.align}.")


@dataclass(frozen=True, slots=True)
class Tuning:
    """How long the network is distilled from the original: for some minutes, or for a number of steps."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise OptionError("Tuning takes either minutes or steps.")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise OptionError(f"tuning must take more than 0 minutes, not {self.minutes:g}.")
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"tuning must take at least 1 step, not {self.steps}.")

    def __str__(self) -> str:
        return f"{self.minutes:g}min" if self.minutes is not None else f"{self.steps}steps"


def read_tuning(text: str) -> Tuning:
    """5min, 0.5min or 3300steps. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+)steps|([0-9.]+)min", text)
    try:
        if match is None:
            raise ValueError
        return Tuning(steps=int(match[1])) if match[1] else Tuning(minutes=float(match[2]))
    except (ValueError, OptionError):
        raise ValueError(f"{text!r} is neither minutes such as 5min nor steps such as 3300steps.") from None


# In place of a path to images: synthesise them, or go by the weights alone.
SYNTHETIC: Final = "synthetic"
NONE: Final = "none"


def _read_calibration(text: str) -> Path | str:
    """A path, or one of the words; a folder of that name is ./synthetic."""
    return text if text in (SYNTHETIC, NONE) else Path(text)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Unlabelled images that show what each layer sees, and what is done with them.

    A `count` of None takes up to 1,024 images, or as many synthetic ones as some minutes allow. `recover` refits the
    factors layer after layer; `tune` then distils the whole network from the original. `statistics` is a file of
    statistics from earlier runs, which are added to those of this one; the sum is written back. `unasked`: the user
    did not mention images.
    """

    path: Path | Literal["synthetic", "none"] = flag(
        "--calib",
        "Calibrate on unlabelled images (folder, .npy, .npz), on the batches that FILE.py:FUNCTION yields, or on "
        "`synthetic` images. `none` goes by the weights alone.",
        section=FIRST,
        read=_read_calibration,
        write=lambda path: path.name if isinstance(path, Path) else path,
        metavar="PATH",
        shown_default="synthetic, where ranks are chosen and the network takes images",
    )
    count: int | None = flag(
        "--calib-count",
        "Use at most N of the images, chosen by --seed.",
        section=CALIBRATION,
        read=int,
        metavar="N",
        shown_default="1024, or what 2 GiB hold; fewer synthetic ones",
        default=None,
    )
    seed: int = flag(
        "--seed",
        "Seed for the choice of images and of positions in feature maps.",
        section=CALIBRATION,
        read=int,
        metavar="N",
        default=0,
    )
    recover: bool = flag(
        "--no-recover", "Do not refit the factors layer after layer.", section=CALIBRATION, kind="off", default=True
    )
    tune: Tuning | None = flag(
        "--tune",
        "Then distil the whole network from the original, for some minutes or a number of steps. Steps are repeatable.",
        section=CALIBRATION,
        read=read_tuning,
        metavar="5min|3300steps",
        default=None,
    )
    statistics: Path | None = flag(
        "--calib-stats",
        "Add the calibration statistics of earlier runs in FILE, if it exists, and save the sum there.",
        section=CALIBRATION,
        read=Path,
        metavar="FILE",
        default=None,
    )
    unasked: bool = False

    def __post_init__(self) -> None:
        if self.path == NONE and (self.count, self.recover, self.tune, self.statistics) != (None, True, None, None):
            raise InvalidOptionError("{path} none goes by the weights alone; leave the other calibration options out.")
        if self.statistics is not None and not self.statistics.parent.is_dir():
            raise InvalidOptionError(f"{{statistics}}: there is no folder {self.statistics.parent}.")
        if self.seed < 0:
            raise InvalidOptionError(f"{{seed}} must be at least 0, not {self.seed}.")
        if self.count is not None and self.count < 1:
            raise InvalidOptionError(f"{{count}} must be at least 1, not {self.count}.")

    @property
    def is_none(self) -> bool:
        """True where the weights alone count."""
        return self.path == NONE

    @property
    def synthetic(self) -> bool:
        """True where the images are synthesised."""
        return self.path == SYNTHETIC

    @property
    def without_tuning(self) -> Calibration:
        """The same without distillation."""
        return replace(self, tune=None)


# A measure of the user's own: what a model file is worth, a share of 1, more for better.
Evaluate = Callable[[Path], float]


@dataclass(frozen=True, slots=True)
class Images:
    """Real images on which the two models are compared, by a metric.

    Without `labels` those beside the images count, such as folders named after classes; without any, the answers of
    the original.
    """

    path: Path = flag(
        "--eval",
        "Measure quality before and after on these images: against labels, or else against the original's answers.",
        section=FIRST,
        read=Path,
        metavar="PATH",
    )
    metric: str = flag(
        "--metric",
        f"What --eval measures: {', '.join((AUTO, *METRICS))}, map:HEAD (of {', '.join(HEADS)}), "
        "sequences:ALPHABET.txt or FILE.py:FUNCTION. auto goes by labels and outputs.",
        section=EVALUATION,
        read=read_metric,
        write=without_folder,
        metavar="NAME",
        default=AUTO,
    )
    labels: Path | None = flag(
        "--labels",
        "Labels of the images: a JSON of boxes, a table (.csv, .txt) of classes, texts or pairs, or a folder of target "
        "pictures. Default: those beside the images.",
        section=EVALUATION,
        read=Path,
        metavar="PATH",
        default=None,
    )
    count: int | None = None

    def __post_init__(self) -> None:
        try:
            read_metric(self.metric)
        except ValueError as error:
            raise InvalidOptionError(f"{{metric}}: {error}") from error


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How the speed-up is measured; `require` makes an export that is not faster an error.

    `device` is one of `trp-bench --list-devices`. `table` is a file of layer latencies: those in it are used, and
    those that are measured are added.
    """

    run: bool = flag("--no-bench", "Do not measure the speed-up.", section=BENCHMARK, kind="off", default=True)
    threads: int = flag("--threads", "Threads of the benchmark.", section=BENCHMARK, read=int, metavar="N", default=1)
    budget_s: float = flag(
        "--budget",
        "Seconds that the benchmark may take.",
        section=BENCHMARK,
        read=float,
        write=lambda value: f"{value:g}",
        metavar="SECONDS",
        default=20.0,
    )
    require: bool = flag(
        "--require-speedup",
        "Write nothing, and exit with 6, unless the result is measured to be faster.",
        section=BENCHMARK,
        kind="on",
        default=False,
    )
    device: str = flag(
        "--device",
        "Device to measure on; trp-bench --list-devices lists them.",
        section=BENCHMARK,
        metavar="SPEC",
        default="local",
    )
    keep_slow_pairs: bool = flag(
        "--keep-slow-pairs",
        "Keep pairs that are not faster than their layers.",
        section=BENCHMARK,
        kind="on",
        default=False,
    )
    table: Path | None = flag(
        "--latency-table",
        "With --speedup: use the layer latencies in FILE, if it exists, and save all of them there.",
        section=BENCHMARK,
        read=Path,
        metavar="FILE",
        default=None,
    )

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InvalidOptionError(f"{{threads}} must be at least 1, not {self.threads}.")
        if not self.budget_s > 0:
            raise InvalidOptionError(f"{{budget_s}} must be above 0 seconds, not {self.budget_s:g}.")
        if self.require and not self.run:
            raise InvalidOptionError("{require} needs the benchmark; leave {run} out.")
        if self.table is not None and not self.table.parent.is_dir():
            raise InvalidOptionError(f"{{table}}: there is no folder {self.table.parent}.")


# The kind of processor that a model in ORT format is laid out for.
Target = Literal["arm", "x86"]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder to ship. `ort` adds the model in ORT format for one kind of processor."""

    folder: Path = flag(
        "--bundle",
        "Write a folder to ship instead: the model, a report page, a card and loaders. An intact bundle in its place "
        "is replaced.",
        section=OUTPUT,
        read=Path,
        write=lambda path: "DIR",
        metavar="DIR",
    )
    ort: Target | None = flag(
        "--ort",
        "Add the model in ORT format, laid out for this kind of processor.",
        section=OUTPUT,
        choices=get_args(Target),
        default=None,
    )


Precision = Literal["fp32", "fp16", "int8"]
# `best` chooses among all that can be had.
PrecisionChoice = Literal["fp32", "fp16", "int8", "best"]
# onnxruntime's fast 8-bit convs take input channels four at a time.
INT8_CHANNELS = 4


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that `compress` takes. `rule` None: the plan inside the checkpoint.

    `output` None: `<stem>.trp.onnx` in the current folder. `<output>.json` always lies beside it. A `bundle` takes
    the place of both and of `report`. `preprocessing` holds for all images: of calibration, of evaluation, and of the
    app that reads the bundle.
    `evaluate` stands in for `images` where a network answers something other than classes: it takes the path of an
    ONNX file and returns a share of 1, more for better, such as 0.387 for a mAP of 38.7.
    """

    rule: Rule | None = one_of(*RULES, default=None)
    calibration: Calibration | None = optional(Calibration)
    images: Images | None = optional(Images)
    evaluate: Evaluate | None = None
    precision: PrecisionChoice = flag(
        "--precision",
        "Precision of the result; int8 needs --calib. best takes the fastest that stays close to fp32.",
        section=FIRST,
        choices=get_args(PrecisionChoice),
        default="fp32",
    )
    output: Path | None = flag(
        "-o/--output",
        "Where to write the model. Default: <stem>.trp.onnx in this folder.",
        section=FIRST,
        read=Path,
        metavar="FILE",
        default=None,
    )
    selection: Selection = group(Selection)
    load: LoadOptions = group(LoadOptions)
    inputs: InputOptions = group(InputOptions)
    preprocessing: Preprocessing = group(Preprocessing)
    report: Path | None = flag(
        "--report", "Also write an HTML page with plots.", section=OUTPUT, read=Path, metavar="FILE", default=None
    )
    bundle: Bundle | None = optional(Bundle)
    dry_run: bool = flag("--dry-run", "Print the plan and write nothing.", section=OUTPUT, kind="on", default=False)
    benchmark: Benchmark = group(Benchmark)

    @property
    def effective_rule(self) -> Rule:
        """The rule, or without one the plan inside the checkpoint."""
        return self.rule or OwnPlan()

    @property
    def with_calibration(self) -> Options:
        """The same with the calibration that takes place: on synthetic images where ranks are chosen and the user did
        not mention images, and None where the weights alone count.
        """
        calibration = self.calibration
        if calibration is None and self.effective_rule.chooses_ranks:
            return replace(self, calibration=Calibration(SYNTHETIC, unasked=True))
        return replace(self, calibration=None) if calibration is not None and calibration.is_none else self

    @property
    def load_with_inputs(self) -> LoadOptions:
        """How to read the model, with what the user says about its inputs."""
        return replace(self.load, inputs=self.inputs)

    @property
    def images_for_report(self) -> Images | Calibration | None:
        """Where images in files come from, if from anywhere: not generated ones, nor what a function yields."""
        calibration = self.calibration
        if self.images is not None or calibration is None:
            return self.images
        in_files = isinstance(calibration.path, Path) and not names_function(str(calibration.path))
        return calibration if in_files else None

    @property
    def choose_precision(self) -> bool:
        """True where the fastest precision that stays close is asked for."""
        return self.precision == "best"

    @property
    def planned_precision(self) -> Precision:
        """The precision whose latency plans are made for."""
        return "fp32" if self.precision == "best" else self.precision

    @property
    def extra_precisions(self) -> tuple[Precision, ...]:
        """Those to be made beside the float model: the one asked for, or all that `best` chooses from."""
        if self.precision == "best":
            return ("fp16", "int8") if self._has_images else ("fp16",)
        return () if self.precision == "fp32" else (self.precision,)

    @property
    def is_timed(self) -> bool:
        """True where the user or the rule wants times."""
        by_speed = self.effective_rule.needs_latency and self.effective_rule.largest_drop is None
        return self.benchmark.run or by_speed

    @property
    def selection_with_int8_alignment(self) -> Selection:
        """The selection, with ranks in multiples that 8-bit kernels take at all: others fall back to slow ones."""
        odd = self.selection.align != "auto" and self.selection.align < INT8_CHANNELS
        return (
            replace(self.selection, align=INT8_CHANNELS) if "int8" in self.extra_precisions and odd else self.selection
        )

    def __post_init__(self) -> None:
        self._require_files_that_are_written()
        if self.precision not in get_args(PrecisionChoice):
            allowed = ", ".join(get_args(PrecisionChoice))
            raise InvalidOptionError(f"{{precision}} must be one of {allowed}, not {self.precision}.")
        if self.precision == "int8" and not self._has_images:
            raise InvalidOptionError("int8 needs images that show the ranges of values; give {calibration} PATH.")
        if self.precision == "best" and not self.benchmark.run:
            raise InvalidOptionError("{precision} best needs the benchmark; leave {benchmark.run} out.")
        if self.benchmark.table is not None and not self.effective_rule.needs_latency:
            raise InvalidOptionError("{benchmark.table} goes with a rule that uses latency, such as a speed-up.")
        saved = isinstance(self.rule, SavedPlan)
        if saved and (self.selection.scheme != "auto" or self.selection.align != 1):
            raise InvalidOptionError(
                "a saved plan gives scheme and rank of every layer; leave {selection.scheme} and {selection.align} out."
            )
        if self.images is not None and self.evaluate is not None:
            raise InvalidOptionError("{images} and {evaluate} both measure what is lost; give one.")
        if self.effective_rule.largest_drop is not None and self.images is None and self.evaluate is None:
            raise InvalidOptionError("a limit on the drop needs a measure of what is lost; give {images} PATH.")
        if self.load.inputs != InputOptions():
            raise InvalidOptionError("load.inputs belongs into inputs: inputs=InputOptions.of(1, 3, 224, 224).")
        self._require_budget_for_channels()
        self._require_used_preprocessing()

    def _require_files_that_are_written(self) -> None:
        if self.bundle is not None and (self.output is not None or self.report is not None):
            raise InvalidOptionError("{bundle} holds the model and the report; leave {output} and {report} out.")
        if self.dry_run and (self.bundle is not None or self.report is not None):
            raise InvalidOptionError("{dry_run} writes nothing; leave {bundle} and {report} out.")

    def _require_budget_for_channels(self) -> None:
        if self.selection.channels != "on":
            return
        if not self.effective_rule.needs_sensitivities:
            raise InvalidOptionError(
                "{selection.channels} on shares out a budget: give --speedup, --macs, --params or --max-drop."
            )
        if not self._has_own_images:
            raise InvalidOptionError("{selection.channels} on goes by your images: give {calibration} PATH.")

    @property
    def may_remove_channels(self) -> bool:
        """True where a budget may be shared out over channels as well: the user's own images say which."""
        shares_out = self.effective_rule.needs_sensitivities
        return self.selection.channels != "off" and shares_out and self._has_own_images

    @property
    def _has_own_images(self) -> bool:
        """True where the user gave images to calibrate on."""
        return self._has_images and not (self.calibration is not None and self.calibration.synthetic)

    @property
    def _has_images(self) -> bool:
        """True where the user gave images to calibrate on, or asked for synthetic ones."""
        return self.calibration is not None and not (self.calibration.is_none or self.calibration.unasked)

    def _require_used_preprocessing(self) -> None:
        if self.preprocessing == Preprocessing() or self.bundle is not None:
            return
        unasked = self.calibration is None or self.calibration.unasked
        synthesised = unasked and self.effective_rule.chooses_ranks
        if not (self._has_images or synthesised) and self.images is None and self.evaluate is None:
            raise InvalidOptionError(
                "preprocessing prepares images; give {calibration}, {images} or {bundle}, or leave it out."
            )
