"""The result in the precisions asked for, and which of them ships."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.graph.model_files import save_model, size_bytes
from trp_export.network import Network
from trp_export.options import MaxDrop, Options
from trp_export.planning.plan import Plan
from trp_export.precision.convert import Variant, convert
from trp_export.runtime.distance import distance
from trp_export.runtime.sessions import noise, run
from trp_export.steps.max_drop import holds
from trp_export.system.progress import Progress
from trp_export.verify import Agreement, Deviation, Evaluator, Files, Score

if TYPE_CHECKING:
    from trp_export.bench import Comparison

Batches = Sequence[NDArray[Any]]

# Without --max-drop: the share of calibration images on which --best wants the float model's class, and where the
# outputs are no classes, the most that they may diverge.
LEAST_AGREEMENT = 0.99
MOST_DIVERGENCE = 0.01


@dataclass(frozen=True, slots=True)
class Precisions:
    """All forms of the model side by side, and the place among them of the one that ships; the float model is first.

    `missed` says why the precision that was asked for could not ship, `passed_over` what --best may not ship and why.
    """

    variants: tuple[Variant, ...]
    shipped: int
    missed: str | None = None
    passed_over: tuple[str, ...] = ()

    @property
    def chosen(self) -> Variant:
        return self.variants[self.shipped]

    def alone(self, precision: str) -> Variant | None:
        """The same precision without low rank."""
        return next((one for one in self.variants if (one.precision, one.low_rank) == (precision, False)), None)


def make_variants(
    plan: Plan,
    files: Files,
    cleaned: Path | None,
    batches: Batches,
    judge: Evaluator | None,
    options: Options,
    folder: Path,
    progress: Progress,
) -> tuple[Variant, ...]:
    """The float model and what was asked for; beside them, where `cleaned` is there, the same without low rank.

    None at all where no precision was asked for.
    """
    wanted = options.precisions
    if not wanted:
        return ()
    low_rank = bool(plan.changed)
    made = [Variant("fp32", low_rank, files.result, size_bytes(files.result))]
    made += [convert(one, files.result, folder / f"low-rank-{one}.onnx", batches, low_rank, progress) for one in wanted]
    if low_rank and cleaned is not None:
        made.append(Variant("fp32", False, cleaned, size_bytes(cleaned)))
        if "int8" in wanted:
            made.append(convert("int8", cleaned, folder / "int8.onnx", batches, False, progress))
    return tuple(_judged(one, judge, progress) for one in made)


def judge_as_shipped(judge: Evaluator, options: Options, batches: Batches, folder: Path) -> Evaluator:
    """A judge who sees every model in the precision that ships, under --best in the one that may ship and loses most;
    the float model where it cannot be had in that."""
    if not options.precisions:
        return judge
    precision = options.precisions[-1]

    def judged(model: Path, progress: Callable[[float], None]) -> Agreement | Score:
        file = folder / f"{model.stem}-{precision}.onnx"
        made = convert(precision, model, file, batches, True, lambda step, share: None)
        return judge(made.file or model, progress)

    return judged


def _judged(variant: Variant, judge: Evaluator | None, progress: Progress) -> Variant:
    if judge is None or variant.file is None:
        return variant
    return replace(variant, judged=judge(variant.file, lambda share: progress(f"judge {variant.name}", share)))


def timed(variants: Sequence[Variant], models: Sequence[Path], latency: Comparison | None) -> tuple[Variant, ...]:
    """The variants with their measurements, where there are any; `models` are the files that were compared."""
    if latency is None:
        return tuple(variants)
    found = dict(zip(models, latency.measurements, strict=True))
    return tuple(replace(one, latency=found[one.file]) if one.file in found else one for one in variants)


def choose_precision(variants: Sequence[Variant], options: Options) -> Precisions | None:
    """What ships: the precision asked for, or under --best the fastest that is near enough; else the float model."""
    if not variants:
        return None
    if options.best:
        return _fastest(variants, options)
    asked = variants[1]
    why = asked.refused or _beyond(asked, options)
    return Precisions(tuple(variants), 0 if why else 1, f"{asked.precision}: {why}" if why else None)


def _fastest(variants: Sequence[Variant], options: Options) -> Precisions:
    """By median; another than the float model only where it is near enough and surely faster than that."""
    from trp_export.bench import ratio, summary

    fp32 = variants[0]
    others = [(index, one) for index, one in enumerate(variants) if index and one.low_rank == fp32.low_rank]
    passed_over = tuple(f"{one.name} may not ship: {why}" for _, one in others if (why := _too_far(one, options)))
    faster = [
        (summary(one.latency).median, index)
        for index, one in others
        if not _too_far(one, options)
        and one.latency is not None
        and fp32.latency is not None
        and ratio(fp32.latency, one.latency).verdict == "faster"
    ]
    return Precisions(tuple(variants), min(faster)[1] if faster else 0, passed_over=passed_over)


def _too_far(variant: Variant, options: Options) -> str | None:
    """Why --best may not ship a variant, however fast it is."""
    why = variant.refused or _beyond(variant, options)
    if why or isinstance(options.rule, MaxDrop) or variant.parity is None:
        return why
    agreement, divergence = variant.parity.agreement, variant.parity.divergence
    if agreement is None:
        far = divergence > MOST_DIVERGENCE
        return f"its outputs diverge by {divergence:.2g}, and {MOST_DIVERGENCE:g} is allowed" if far else None
    if agreement >= LEAST_AGREEMENT:
        return None
    return (
        f"it keeps the class on {100 * agreement:.1f}% of {variant.parity.images:,} images, "
        f"and {100 * LEAST_AGREEMENT:g}% is asked for"
    )


def _beyond(variant: Variant, options: Options) -> str | None:
    """What is said of a variant that loses more than --max-drop allows."""
    rule, judged = options.rule, variant.judged
    if not isinstance(rule, MaxDrop) or judged is None or holds(judged, rule):
        return None
    return f"it loses {100 * (judged.before - judged.after):.2f} pp, and --max-drop allows {rule.points:g}"


def ship(forms: Precisions, result: Path) -> None:
    """Put the chosen form in the place of the result."""
    chosen = forms.chosen.file
    assert chosen is not None
    if chosen != result:
        result.with_name(f"{result.name}.data").unlink(missing_ok=True)
        save_model(ir.load(chosen), result)


def as_shipped(deviation: Deviation, forms: Precisions | None, network: Network, files: Files) -> Deviation:
    """How far the shipped form is from the original, where that is another than the one that was verified."""
    if forms is None or forms.shipped == 0:
        return deviation
    inputs = noise(files.original, network.inputs)
    truncation = distance(run(files.original, [inputs]), run(files.result, [inputs]))
    judged = forms.chosen.judged
    return replace(
        deviation,
        truncation=truncation if deviation.truncation is not None else None,
        agreement=judged if isinstance(judged, Agreement) else None,
        score=judged if isinstance(judged, Score) else None,
    )


def as_compared(latency: Comparison, forms: Precisions | None) -> Comparison:
    """Original, result, and the original cleaned up without low rank: what is compared under any precision."""
    original, result, cleaned = latency.measurements[:3]
    shipped = forms.chosen.latency if forms is not None else None
    return replace(latency, measurements=(original, shipped or result, cleaned))


def precision_remarks(forms: Precisions) -> Iterator[str]:
    """What a user should act on."""
    from trp_export.bench import ratio

    fp32, shipped = forms.variants[0], forms.chosen
    if forms.missed:
        yield f"{forms.missed}. The float model is what was written"
    yield from forms.passed_over
    for one in forms.variants[1:]:
        if fp32.latency is None or one.latency is None or one.low_rank != fp32.low_rank:
            continue
        against = ratio(fp32.latency, one.latency)
        if against.verdict in ("slower", "no difference"):
            word = "SLOWER than" if against.verdict == "slower" else "no faster than"
            yield f"{one.name} is {word} fp32 here ({against})"
    alone = forms.alone("int8")
    if alone is None or alone is shipped or alone.refused or alone.latency is None or shipped.latency is None:
        return
    against = ratio(alone.latency, shipped.latency)
    if against.verdict in ("slower", "no difference"):
        yield (
            f"low rank adds nothing to int8 alone here ({against}): ship int8 alone, "
            "which keeps the network as it is: --precision int8 without a rule"
        )
