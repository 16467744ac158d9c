"""The result in the precisions asked for, and which of them ships."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trp_export.graph.large_files import read_model
from trp_export.graph.model_files import save_model, size_bytes
from trp_export.metrics.evaluator import Evaluator
from trp_export.metrics.score import NAMES, Score, holds, points, scale
from trp_export.network import Network
from trp_export.options import Options, Precision
from trp_export.planning.plan import Plan
from trp_export.precision.convert import Variant, convert
from trp_export.precision.forms import Precisions
from trp_export.runtime.distance import distance
from trp_export.steps.benchmark import without_low_rank
from trp_export.steps.build import Built, share_of_variance
from trp_export.steps.knowledge import Knowledge
from trp_export.system.progress import Progress, Share
from trp_export.verify import Deviation, Files, run_both
from trp_export.workspace import Workspace

# What --precision best asks for without --max-drop: the share of calibration images that keep the float model's class,
# and where the outputs hold no classes, the largest divergence.
LEAST_AGREEMENT = 0.99
MOST_DIVERGENCE = 0.01
# What a variant may lose of the score beside the float model without --max-drop, in points, but for its standard error.
MOST_LOST = 1.0


def make_variants(
    plan: Plan, built: Built, knowledge: Knowledge, options: Options, work: Workspace
) -> tuple[Variant, ...]:
    """The float model and what was asked for; where there is a benchmark, also the same without low rank.

    Empty where no other precision was asked for.
    """
    precisions = options.extra_precisions
    if not precisions:
        return ()
    low_rank, result, batches = bool(plan.reduction), built.files.result, knowledge.batches
    inputs = knowledge.network.described
    held_out = knowledge.held_out
    variants = [Variant("fp32", low_rank, result, size_bytes(result))]
    for precision in precisions:
        file = work.scratch / f"low-rank-{precision}.onnx"
        variants.append(convert(precision, result, file, inputs, batches, low_rank, work.progress, held_out))
    if low_rank and options.is_timed:
        cleaned = without_low_rank(built.files.wide or built.files.dense, knowledge.network.rewrites, work.scratch)
        variants.append(Variant("fp32", False, cleaned, size_bytes(cleaned)))
        if "int8" in precisions:
            variants.append(
                convert("int8", cleaned, work.scratch / "int8.onnx", inputs, batches, False, work.progress, held_out)
            )
    named = (replace(variant, reduction=plan.reduction) for variant in variants)
    return tuple(_judged(variant, knowledge.evaluator, work.progress) for variant in named)


def judged_precisions(options: Options) -> tuple[Precision, ...]:
    """What --max-drop judges plans in, one after the other while no plan holds: what ships.

    For `best` that which loses most comes first, else the float model would use up all that may be lost.
    """
    last = options.extra_precisions[-1:] or ("fp32",)
    return (*last, "fp32") if options.choose_precision else last


def judge_as_shipped(
    model: Path, precision: Precision, knowledge: Knowledge, folder: Path, progress: Share
) -> tuple[Score, Precision]:
    """What --eval says of a model in a precision, or of the float model where that is refused; and which of them."""
    evaluator = knowledge.required_evaluator
    if precision == "fp32":
        return evaluator(model, progress), precision
    file, inputs = folder / f"{model.stem}-{precision}.onnx", knowledge.network.described
    made = convert(
        precision, model, file, inputs, knowledge.batches, True, lambda step, share: None, knowledge.held_out
    )
    if made.file is None or made.refused:
        return evaluator(model, progress), "fp32"
    return evaluator(made.file, progress), precision


def _judged(variant: Variant, judge: Evaluator | None, progress: Progress) -> Variant:
    if judge is None or variant.file is None:
        return variant
    return replace(variant, judged=judge(variant.file, lambda share: progress(f"judge {variant.name}", share)))


def choose_precision(variants: Sequence[Variant], options: Options) -> Precisions | None:
    """What ships: the precision asked for, or for `best` the fastest that is close enough; else the float model."""
    if not variants:
        return None
    if options.choose_precision:
        return _fastest(variants, options)
    fp32, asked = variants[:2]
    why = asked.refused or _beyond(asked, fp32, options)
    return Precisions(tuple(variants), 0 if why else 1, f"{asked.precision}: {why}" if why else None)


def _fastest(variants: Sequence[Variant], options: Options) -> Precisions:
    """By median; another than the float model only where it is near enough and surely faster than that."""
    from trp_export.bench import ratio, summary

    fp32 = variants[0]
    others = [(index, one) for index, one in enumerate(variants) if index and one.low_rank == fp32.low_rank]
    passed_over = tuple(f"{one.name} may not ship: {why}" for _, one in others if (why := _too_far(one, fp32, options)))
    faster = [
        (summary(one.latency).median, index)
        for index, one in others
        if not _too_far(one, fp32, options)
        and one.latency is not None
        and fp32.latency is not None
        and ratio(fp32.latency, one.latency).verdict == "faster"
    ]
    return Precisions(tuple(variants), min(faster)[1] if faster else 0, passed_over=passed_over)


def _too_far(variant: Variant, fp32: Variant, options: Options) -> str | None:
    """Why --precision best may not ship a variant, however fast it is."""
    why = variant.refused or _beyond(variant, fp32, options)
    if why or options.effective_rule.largest_drop is not None or variant.parity is None:
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


def _beyond(variant: Variant, fp32: Variant, options: Options) -> str | None:
    """Why a variant may not ship that was evaluated; None where it may."""
    limit, judged = options.effective_rule.largest_drop, variant.judged
    if limit is None:
        return _loses(variant, fp32)
    if judged is None or holds(judged, limit):
        return None
    return f"it loses {judged.drop:.4g} {NAMES[judged.unit]}".rstrip() + f", and --max-drop allows {limit:g}"


def _loses(variant: Variant, fp32: Variant) -> str | None:
    """What a variant loses beside its float model, where that is surely more than MOST_LOST points by labels.

    Without labels a score counts what changes, for better or worse.
    """
    judged = variant.judged
    if judged is None or judged.unit != "%" or not judged.labelled:
        return None
    if fp32.judged is not None and fp32.low_rank == variant.low_rank:
        judged = replace(judged, before=fp32.judged.after)
    if judged.drop <= MOST_LOST + (judged.error or 0.0) * scale(judged.unit):
        return None
    lost = points(judged.drop, judged.unit)
    return f"it loses {lost} of {judged.what} beside the float model, and {points(MOST_LOST, judged.unit)} is allowed"


def put_in_place(precisions: Precisions | None, result: Path) -> None:
    """Save the chosen variant in the place of the result."""
    chosen = precisions.chosen.file if precisions is not None else None
    if chosen is not None and chosen != result:
        result.with_name(f"{result.name}.data").unlink(missing_ok=True)
        save_model(read_model(chosen), result)


def as_shipped(
    deviation: Deviation | None, precisions: Precisions | None, network: Network, files: Files
) -> Deviation | None:
    """How far the shipped variant is from the original, where that is another than the one that was verified."""
    if deviation is None or precisions is None or precisions.shipped == 0:
        return deviation
    answers = (
        None if deviation.truncation is None else run_both(files.original, files.result, [network.described.feeds()])
    )
    judged = precisions.chosen.judged
    return replace(
        deviation,
        truncation=None if answers is None else distance(*answers),
        score=judged,
    )


def outputs_as_shipped(notes: Sequence[str], precisions: Precisions | None) -> tuple[str, ...]:
    """Notes on the float model's outputs; with how far the shipped variant is from these, where that is another."""
    if precisions is None or precisions.shipped == 0:
        return tuple(notes)
    shipped = precisions.chosen
    more = f"; this is before {shipped.precision}"
    if shipped.parity is not None:
        more += f", which moves the outputs by {share_of_variance(shipped.parity.divergence)} % of their variance"
    return tuple(f"{note}{more}" for note in notes)


def precision_remarks(forms: Precisions) -> Iterator[str]:
    """Notes that a user should act on."""
    from trp_export.bench import ratio

    fp32, shipped = forms.variants[0], forms.chosen
    if forms.rejected_because:
        yield f"{forms.rejected_because}. The float model was written instead"
    yield from forms.passed_over
    for one in forms.variants[1:]:
        if fp32.latency is None or one.latency is None or one.low_rank != fp32.low_rank:
            continue
        against = ratio(fp32.latency, one.latency)
        if against.verdict in ("slower", "no difference"):
            word = "SLOWER than" if against.verdict == "slower" else "no faster than"
            yield f"{one.name} is {word} fp32 here ({against})"
    alone = forms.alone("int8")
    if alone is None or alone is shipped or alone.latency is None or shipped.latency is None:
        return
    if alone.refused or _loses(alone, fp32):
        return
    against = ratio(alone.latency, shipped.latency)
    if against.verdict in ("slower", "no difference"):
        yield (
            f"low rank adds nothing to int8 alone here ({against}): ship int8 alone, "
            "which keeps the network as it is: --precision int8 without a rule"
        )
