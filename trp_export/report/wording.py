"""The wording of a report: the outcome in a sentence or two, and how numbers are written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trp_export.lowrank.names import SHORT_NAMES
from trp_export.lowrank.schemes import Branches
from trp_export.metrics.score import Score, amount, of_all_images, part_of
from trp_export.report.document import Report
from trp_export.rules import OwnPlan
from trp_export.system.text import name_some, plain

if TYPE_CHECKING:
    from trp_export.bench import Ratio
    from trp_export.verify import Deviation

# The names of --scheme: short enough for a table.
_SHORT_SCHEMES = {name: short for short, name in SHORT_NAMES.items()}
_NOT_COMPARABLE = 1e4
_LEAST_CHANGE = 1e-4
# What stays the same on a share of the inputs, by metric.
_STAYS = {"top1": "predicted class", "sequences": "text"}
# A share of low rank in the speed-up is worth a sentence if it differs from the whole by more than this.
_NEGLIGIBLE = 0.03


def headline(report: Report) -> str:
    """The outcome: how much smaller, how much faster and how certain, and what happens to the outputs.

    A second, short sentence follows if the result does not serve the purpose of an export.
    """
    name = plain(shorten(report.source.name, 60), keep_lines=False)
    changed, layers = len(report.plan.changed), len(report.plan.decisions)
    if not changed and not report.plan.thinner and report.precision == "fp32":
        if isinstance(report.options.effective_rule, OwnPlan) and not report.options.extra_precisions:
            return _nothing_to_remove(report, name)
        return f"No layer of {name} gains under this rule{_cleaned_up(report)}."
    if report.after is None:
        parts = [f"{changed} of {layers} layers of {name} would become factor pairs"] if changed else []
        if report.plan.thinner:
            whose = "" if parts else f" of {name}"
            groups = f"{len(report.plan.thinner)} of {len(report.plan.channels)} channel groups{whose}"
            loss = "" if report.plan.fits_channels else " at no loss"
            parts.append(f"{groups} would lose channels{loss}")
        return f"{' and '.join(parts)}{_planned(report)}."
    outcome = f"{name} is {_size(report)}{_speed(report.ratio)}; {_outputs(report.deviation)}."
    advice = _advice(report)
    return f"{outcome} {advice}" if advice else outcome


def _planned(report: Report) -> str:
    """The cost that the plan predicts."""
    saved = sum(decision.site.macs - decision.macs for decision in report.plan.decisions)
    before = report.before.macs or 0
    saved += round(before - before / report.fewer_macs)
    return f": {before / (before - saved):.2f} times fewer MACs" if before > saved else ""


def _nothing_to_remove(report: Report, name: str) -> str:
    """The outcome where no rule was given and no channel can go."""
    found = f"No two channels of {name} are equal and none is constant"
    if report.after is None:
        return f"{found}. --energy 0.98 is a rule to start with for low rank."
    return f"{found}{_cleaned_up(report)}."


def _cleaned_up(report: Report) -> str:
    """What happened where neither ranks nor channels went."""
    if report.after is None:
        return ""
    larger = f", and the file is {_larger(report)}: keep the original" if report.is_larger else ""
    return f": its graph was cleaned up{_speed(report.ratio)}{larger}"


def _size(report: Report) -> str:
    before, after = report.before, report.after
    assert after is not None
    if before.bytes and after.bytes:
        ratio, unit = before.bytes / after.bytes, ""
    else:
        ratio, unit = before.params / max(after.params, 1), " in parameters"
    if report.is_larger:
        return _larger(report)
    return f"{ratio:.2f} times smaller{unit}" if ratio >= 1.005 else f"not smaller{unit}"


def _larger(report: Report) -> str:
    before, after = report.before.bytes or 1, (report.after and report.after.bytes) or 1
    return f"LARGER than the original ({after / before:.2f} times its bytes)"


def _speed(ratio: Ratio | None) -> str:
    if ratio is None:
        return "; its speed was not measured"
    speed, certainty = f"{ratio.value:.2f} times as fast here", interval(ratio)
    if ratio.verdict == "faster":
        return f" and {speed} ({certainty})"
    if ratio.verdict == "slower":
        return f" but SLOWER ({speed}, {certainty})"
    if ratio.verdict == "unknown":
        return f"; it ran {speed} ({certainty})"
    return f" but NOT faster ({speed}, {certainty})"


def interval(ratio: Ratio) -> str:
    """The confidence interval in words."""
    if not math.isfinite(ratio.high):
        return "too few processes for a confidence interval"
    ends = f"{ratio.low:.2f} to {ratio.high:.2f}"
    if ratio.confidence is None:
        return f"{ends} over the rounds"
    return f"{ratio.confidence:.0%} confidence: {ends}"


def _advice(report: Report) -> str:
    ratio, low_rank = report.ratio, report.low_rank_ratio
    if report.gains_nothing:
        return "Nothing was gained: keep the original."
    if ratio is not None and ratio.verdict == "slower":
        return "Do not ship it for speed."
    if not report.plan.reduction and report.precision == "fp32":
        return ""
    if ratio is None or ratio.verdict != "faster" or low_rank is None or low_rank.verdict == "unknown":
        return ""
    other = "cleaning up the graph" if report.precision == "fp32" else report.precision
    what = report.plan.reduction or "low rank"
    makes, contributes = ("makes", "contributes") if what == "low rank" else ("make", "contribute")
    if low_rank.verdict == "slower":
        return f"{other[0].upper()}{other[1:]} alone is faster: {what} {makes} it SLOWER, {low_rank}."
    if low_rank.verdict != "faster":
        return f"All of the speed-up comes from {other}, none from {what} ({low_rank})."
    if abs(low_rank.value / ratio.value - 1) < _NEGLIGIBLE:
        return ""
    return f"{what[0].upper()}{what[1:]} {contributes} {low_rank} of that."


def tone(report: Report) -> str | None:
    """The verdict that colours the outcome: "faster" only if low rank is known to contribute; None if not measured."""
    ratio, low_rank = report.ratio, report.low_rank_ratio
    if ratio is None:
        return None
    if ratio.verdict == "unknown":
        return "no difference"
    if ratio.verdict == "faster" and low_rank is not None and low_rank.verdict != "faster":
        return "no difference"
    return ratio.verdict


def _outputs(deviation: Deviation | None) -> str:
    """What happens to the outputs, by the best evidence that there is."""
    if deviation is None:
        return "its outputs were not compared"
    score, seen = deviation.score, deviation.seen
    if score is not None:
        return _evaluated(score)
    if seen is not None and seen.top1 is not None:
        part = part_of(seen.top1, seen.images)
        kept = f"all {seen.fitted.removeprefix('the ')}" if part == "all" else f"{part} of {seen.fitted}"
        return f"its predicted class stays the same on {kept}{_where_unreached(deviation)}"
    if seen is not None:
        return f"its outputs on {seen.fitted} {moved(seen.distance.relative_l2)}{_where_unreached(deviation)}"
    if deviation.truncation is None:
        return "the effect on its outputs could not be measured"
    outcome = moved(deviation.truncation.relative_l2)
    return f"its outputs on {deviation.fed} {outcome}{_where_unreached(deviation)}"


def _evaluated(score: Score) -> str:
    """The outcome of the evaluation."""
    before, after = amount(score.before, score.unit), amount(score.after, score.unit)
    if not score.labelled and score.metric in _STAYS:
        kept = of_all_images(score.after, score.images or 1)
        return f"its {_STAYS[score.metric]} stays the same on {kept} {score.counted}"
    on = f" on {score.images:,} {score.counted}" if score.images else ""
    if not score.labelled:
        return f"its {score.what} is {after}{on}"
    moved = f"stays at {after}" if before == after else f"changes from {before} to {after}"
    return f"its {score.what} {moved}{on}"


def behind_score(score: Score) -> str:
    """What lies behind the figures of an evaluation, as a sentence, or nothing."""
    error = "± is the standard error of the change" if score.error else ""
    words = "; ".join(filter(None, (score.remark, error if score.labelled else "")))
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _where_unreached(deviation: Deviation) -> str:
    """The layers that figures on the outputs say nothing of."""
    return f", where {name_some(deviation.unreached)} did not run" if deviation.unreached else ""


def change_in(relative: float) -> str:
    """A relative change with two digits: in percent, or in multiples from 10 on."""
    if relative < _LEAST_CHANGE:
        return f"less than {_LEAST_CHANGE:.2%}" if relative else "none"
    if not relative < _NOT_COMPARABLE:
        return f"more than {_NOT_COMPARABLE:,.0f}x"
    if relative >= 10:
        return f"{relative:,.0f}x"
    return f"{relative:.0%}" if relative >= 0.0995 else f"{relative * 100:.2g}%"


def moved(relative: float) -> str:
    """What outputs did: moved by 1.2% (relative L2), or did not move."""
    return f"moved by {change_in(relative)} (relative L2)" if relative else "did not move"


def count(number: float) -> str:
    """A count with three digits and a unit: 40.6 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * 0.9995:
            return f"{_three_digits(number / size)} {unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes with three digits: 1.13 MB."""
    return f"{count(number)}B" if number >= 999.5 else f"{number:.0f} bytes"


def times(before: float, after: float) -> str:
    """How many times smaller: 1.41x, or a dash if `after` is 0."""
    return f"{before / after:.2f}x" if after else "-"


def kernel(shape: tuple[int, ...], group: int) -> str:
    """16x16x3x3, with /4 for four groups."""
    return "x".join(map(str, shape)) + (f" /{group}" if group > 1 else "")


def short_schemes(branches: Branches) -> str:
    """The schemes of a layer's pairs: spatial + channel, or in-4 for four slices of the input."""
    return " + ".join(
        _SHORT_SCHEMES.get(branch.scheme.name)
        or branch.scheme.name.replace("input-sliced", "in").replace("output-sliced", "out")
        for branch in branches
    )


def shorten(text: str, width: int) -> str:
    """At most `width` characters. The middle is cut, since names differ at their ends."""
    if len(text) <= width:
        return text
    tail = (width - 3) * 2 // 3
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


def _three_digits(value: float) -> str:
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
