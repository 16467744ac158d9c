"""Convert a model to another precision and compare it with the float model before it may ship."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trp_export.calibration.answers import find_answers, reference_to, run_answers, values_of
from trp_export.calibration.divergence import agreement, divergence
from trp_export.calibration.held_out import with_room
from trp_export.errors import TrpError, first_line
from trp_export.graph.fold import fold_weights
from trp_export.graph.large_files import read_model
from trp_export.graph.model_files import save_model, size_bytes
from trp_export.graph.prepare import remove_unused
from trp_export.inputs.description import NetworkInputs
from trp_export.inputs.samples import Batch
from trp_export.metrics.recognise import are_scores
from trp_export.metrics.score import Score
from trp_export.precision.fp16 import require_opens, to_fp16
from trp_export.precision.int8 import shown_and_held_out, to_int8
from trp_export.precision.rounding import ROUNDED
from trp_export.runtime.partial import Tap, is_tensor
from trp_export.runtime.sessions import Array, CannotRunError
from trp_export.system.progress import Progress
from trp_export.system.text import name_some

if TYPE_CHECKING:
    from trp_export.bench import Measurement

Batches = Sequence[Batch]

# The largest divergence from the float model that a variant may have (see calibration/divergence.py): a classifier that
# is so far from the original loses about a point, a detector of text more.
LARGEST_DIVERGENCE = 0.04
_UNITS = 2
# Images whose inner values are looked at in fp16; they are all in memory at once.
_IMAGES = 4
_LARGEST_HALF = "fp16 holds at most 65,504"


@dataclass(frozen=True, slots=True)
class Parity:
    """How the answers of a variant compare with those of the float model that it was made from.

    `agreement` is the share of images with the same class, None where the first answer does not hold classes.
    """

    images: int
    agreement: float | None
    divergence: float

    def to_json(self) -> dict[str, Any]:
        """A divergence that is no number is null."""
        return asdict(self) | {"divergence": self.divergence if np.isfinite(self.divergence) else None}


@dataclass(frozen=True, slots=True)
class Variant:
    """One form of the model. `refused` says why there is none, or why it may not ship; it may stand in a sentence.

    Without `low_rank` it is the original in that precision, which one could ship instead; `reduction` says what makes
    it smaller otherwise. `how` tells how it was made, `in_float` which operators int8 left in float, `judged` what
    --eval says of it, `latency` how long it takes.
    """

    precision: str
    low_rank: bool
    file: Path | None
    bytes: int | None
    how: str = ""
    parity: Parity | None = None
    refused: str | None = None
    judged: Score | None = None
    latency: Measurement | None = None
    in_float: tuple[str, ...] = ()
    reduction: str = "low rank"

    @property
    def name(self) -> str:
        return f"{self.reduction}, {self.precision}" if self.low_rank else f"{self.precision} alone"

    def to_json(self, shipped: bool) -> dict[str, Any]:
        """Without the file, which is gone when the export is over."""
        from trp_export.bench import summary

        return {
            "name": self.name,
            "precision": self.precision,
            "low_rank": self.low_rank,
            "shipped": shipped,
            "bytes": self.bytes,
            "how": self.how,
            "in_float": list(self.in_float),
            "refused": self.refused,
            "parity": self.parity.to_json() if self.parity else None,
            "judged": asdict(self.judged) if self.judged else None,
            "median_ms": summary(self.latency).median / 1e6 if self.latency else None,
        }


def convert(
    precision: str,
    source: Path,
    file: Path,
    inputs: NetworkInputs,
    batches: Batches,
    low_rank: bool,
    progress: Progress,
    held_out: Batches = (),
) -> Variant:
    """The model in `source` in another precision, written to `file`; `batches` of samples are what int8 needs.

    It is compared with `source` on images `held_out`, or on those of `batches` that showed no ranges, or on what is
    typical of the `inputs`, all of whose sizes are known. A failure makes a refused variant and no error: the float
    model can ship.
    """
    model = read_model(source)
    ir.external_data.load_to_model(model)
    fold_weights(model)  # Weights that are stored behind a Cast or a DequantizeLinear.
    remove_unused(model)
    try:
        made, how, in_float = _in(precision, model, batches, progress)
        save_model(made, file)
        if precision == "fp16":
            require_opens(file)
        _forget_types(made)
        judges = held_out or (shown_and_held_out(batches)[1] if batches else ())
        parity = _compare(model, made, with_room(model, judges)) if judges else None
        refused = _too_far(parity) if parity else _too_far_without_images(model, made, inputs)
        if precision == "fp16" and refused is None:
            refused = _overflow(model, made, judges, inputs)
    except (TrpError, CannotRunError) as error:
        return Variant(precision, low_rank, None, None, refused=first_line(error).removesuffix("."))
    return Variant(precision, low_rank, file, size_bytes(file), how, parity, refused, in_float=in_float)


def _in(precision: str, model: ir.Model, batches: Batches, progress: Progress) -> tuple[ir.Model, str, tuple[str, ...]]:
    if precision == "fp16":
        return to_fp16(model), "", ()
    made = to_int8(model, batches, lambda share: progress("int8", share))
    kept = f"; in float: {name_some(made.in_float)}" if made.in_float else ""
    return made.model, f"grids by {made.method}{kept}", made.in_float


def _compare(model: ir.Model, made: ir.Model, batches: Batches) -> Parity:
    answers = find_answers(model)
    before, after = run_answers(model, answers, batches), run_answers(made, answers, batches, ROUNDED)
    first = next(iter(before.values()), None)
    images = sum(len(batch) for batch in batches)
    classes = first is not None and are_scores(first, images)
    apart = reference_to(answers, before).divergence(after)
    return Parity(images, agreement(before, after) if classes else None, apart)


def _forget_types(model: ir.Model) -> None:
    """The types of inner values, which the converter to fp16 leaves as they were."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = None


def _too_far_without_images(model: ir.Model, made: ir.Model, inputs: NetworkInputs) -> str | None:
    """Why a variant may not ship that no images can judge: it must keep to the same limit, mostly on noise."""
    feeds = inputs.typical()
    answers = values_of(find_answers(model))
    names = [value.name or "" for value in model.graph.inputs]
    before, after = (Tap(one, names, answers)(feeds) for one in (model, made))
    apart = divergence(before, {name: _but_for_rounding(before[name], array) for name, array in after.items()})
    return None if apart <= LARGEST_DIVERGENCE else f"on {inputs.kind} {_apart(apart)}"


def _but_for_rounding(before: Array, after: Array) -> Array:
    """Without differences of some units of float16's last place: on noise an answer may hardly vary."""
    if before.shape != after.shape:
        return after
    unit = _UNITS * float(np.finfo(np.float16).eps) * np.abs(before).max(initial=0.0)
    return np.where(np.abs(after.astype(np.float64) - before) <= unit, before, after)


def _overflow(model: ir.Model, made: ir.Model, images: Batches, inputs: NetworkInputs) -> str | None:
    """Why a model may not ship in fp16 whose inner values are beyond its range, on some images or without any.

    onnxruntime computes in float32 on a CPU, where only a value that is asked for is rounded to fp16.
    """
    feeds = images[0].first(_IMAGES).arrays if images else inputs.typical()
    values = {value.name: value for node in made.graph for value in node.outputs if value.name and is_tensor(value)}
    halves = Tap(made, list(feeds), list(values))(feeds)
    beyond = [name for name, array in halves.items() if array.dtype == np.float16 and not np.isfinite(array).all()]
    known = {*feeds, *(value.name for node in model.graph for value in node.outputs)}
    names = [name for half in beyond if (name := _uncast(values[half], known)) is not None]
    computed = [name for name in names if name not in feeds]
    floats = {**feeds, **(Tap(model, list(feeds), computed)(feeds) if computed else {})}
    for name, array in ((name, floats[name]) for name in names):
        if np.isfinite(array).all():
            return f"{name} reaches {np.abs(array).max():.2g} on {'images' if images else inputs.kind}; {_LARGEST_HALF}"
    return None


def _uncast(half: ir.Value, known: Container[str | None]) -> str | None:
    """The name of a value in the float model. The converter has names of its own for what it casts at the ends."""
    maker, readers = half.producer(), half.consumers()
    casts = [node for node in (maker, *readers) if node is not None and node.op_type == "Cast"]
    beside = [value for node in casts for value in (*node.inputs, *node.outputs) if value is not None]
    return next((value.name for value in (half, *beside) if value.name in known), None)


def _too_far(parity: Parity) -> str | None:
    if parity.divergence <= LARGEST_DIVERGENCE:
        return None
    return f"on {parity.images} images {_apart(parity.divergence)}"


def _apart(apart: float) -> str:
    if not np.isfinite(apart):
        return "it gives infinite values, NaN, or other numbers of rows than the float model"
    return (
        f"its outputs diverge from the float model's by {apart:.0%} of their spread; "
        f"{LARGEST_DIVERGENCE:.0%} is allowed"
    )
