"""What a report says in words: the outcome in one sentence, and numbers as people read them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trp_export.lowrank.names import SHORT_NAMES
from trp_export.lowrank.schemes import Branches
from trp_export.report.document import Report
from trp_export.report.page.markup import plain

if TYPE_CHECKING:
    from trp_export.bench import Ratio
    from trp_export.verify import Deviation

# The names of --scheme: short enough for a table.
_SHORT = {name: short for short, name in SHORT_NAMES.items()}


def headline(report: Report) -> str:
    """The outcome in one plain sentence: how much smaller, how much faster and how sure, what it does to the answers.

    With a second, short one where the result is not what one exports a model for.
    """
    name = plain(shorten(report.source.name, 60))
    changed = len(report.plan.changed)
    if not changed and (report.forms is None or report.forms.chosen.precision == "fp32"):
        return f"No layer of {name} gains under this rule, so the model stays as it is."
    if report.after is None:
        return (
            f"{changed} of {len(report.plan.decisions)} layers of {name} would become factor pairs{_planned(report)}."
        )
    return f"{name} became {_size(report)}{_speed(report.ratio)}, and {_answers(report.deviation)}.{_advice(report)}"


def _planned(report: Report) -> str:
    """What the plan alone says of the cost."""
    saved = sum(decision.site.macs - decision.macs for decision in report.plan.decisions)
    after = report.before.macs - saved
    return f": {report.before.macs / after:.2f} times fewer MACs" if report.before.macs and after > 0 else ""


def _size(report: Report) -> str:
    before, after = report.before, report.after
    assert after is not None
    what, old, new = "", before.bytes, after.bytes
    if not old or not new:
        what, old, new = " in parameters", before.params, after.params
    ratio = old / max(new, 1)
    return f"{ratio:.2f} times smaller{what}" if ratio >= 1.005 else f"no smaller{what}"


def _speed(ratio: Ratio | None) -> str:
    if ratio is None:
        return "; its speed was not measured"
    fast, sure = f"{ratio.value:.2f} times as fast here", sureness(ratio)
    if ratio.verdict == "faster":
        return f" and {fast} ({sure})"
    if ratio.verdict == "unknown":
        return f"; it was {fast}, {sure}"
    return f" but {'SLOWER' if ratio.verdict == 'slower' else 'NOT faster'} ({fast}, {sure})"


def sureness(ratio: Ratio) -> str:
    """The interval in words."""
    if not math.isfinite(ratio.high):
        return "from too few processes to be sure"
    ends = f"{ratio.low:.2f} to {ratio.high:.2f}"
    return f"{ratio.confidence:.0%} sure of {ends}" if ratio.confidence else f"{ends} by the round"


def _advice(report: Report) -> str:
    """A second sentence where the result is not what one exports a model for."""
    ratio, own = report.ratio, report.low_rank_ratio
    if ratio is not None and ratio.verdict == "slower":
        return " Do not ship it for speed."
    if ratio is None or ratio.verdict != "faster" or own is None or own.verdict == "unknown":
        return ""
    precision = report.forms.chosen.precision if report.forms else "fp32"
    what = "cleaning the graph up" if precision == "fp32" else precision
    if own.verdict == "faster":
        return "" if abs(own.value / ratio.value - 1) < _NO_MATTER else f" Low rank itself gives {own} of that."
    if own.verdict == "slower":
        return f" {what[0].upper()}{what[1:]} without low rank gains more: low rank itself makes it SLOWER, {own}."
    return f" All of the speed comes from {what}, none from low rank ({own})."


_NO_MATTER = 0.03


def tone(report: Report) -> str | None:
    """How to colour the outcome: as its verdict, but not as faster where that is not known, or low rank has no part."""
    ratio, own = report.ratio, report.low_rank_ratio
    if ratio is None:
        return None
    if ratio.verdict == "faster" and own is not None and own.verdict != "faster":
        return "no difference"
    return ratio.verdict if ratio.verdict != "unknown" else "no difference"


def _answers(deviation: Deviation | None) -> str:
    if deviation is None:
        return "its outputs were not compared"
    agreement = deviation.agreement
    graded = deviation.graded
    if graded is not None:
        before, after = percent(graded.before), percent(graded.after)
        how = "stays at" if before == after else f"goes from {before} to"
        return f"its {graded.what} {how} {after}" + (f" on {graded.images:,} images" if graded.images else "")
    if agreement is not None:
        return f"it answers with the same class on {percent(agreement.top1)} of {agreement.images:,} images"
    seen = deviation.seen
    if seen is not None and seen.top1 is not None:
        return f"it answers with the same class on {percent(seen.top1)} of {seen.fitted}"
    if seen is not None:
        return f"its outputs on {seen.fitted} move by {change(seen.distance.relative_l2)} (relative L2)"
    if deviation.truncation is None:
        return "what truncation does to its outputs could not be compared"
    return f"its outputs on noise move by {change(deviation.truncation.relative_l2)} (relative L2)"


def percent(share: float, digits: int = 2) -> str:
    """A share of 1 in percent."""
    return f"{share:.{digits}%}"


def points(before: float, after: float, error: float | None = None) -> str:
    """The change of a share in percentage points, with its standard error where that is known."""
    moved = f"{(after - before) * 100:+.2f}"
    return f"{moved} ± {error * 100:.2f} pp" if error else f"{moved} pp"


def change(relative: float) -> str:
    """A relative change in percent, two digits of it, however small; infinite where nothing can be compared."""
    if not relative < 1e4:
        return "beyond all measure"
    return f"{relative:.0%}" if relative >= 0.0995 else f"{relative * 100:.2g}%"


def count(number: float) -> str:
    """A count with three digits and a unit: 40.6 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * 0.9995:
            return f"{_three(number / size)} {unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes with three digits: 1.13 MB."""
    return f"{count(number)}B" if number >= 999.5 else f"{number:.0f} bytes"


def times(before: float, after: float) -> str:
    """How many times smaller: 1.41x; nothing where there is nothing to divide by."""
    return f"{before / after:.2f}x" if after else "-"


def kernel(shape: tuple[int, ...], group: int) -> str:
    """16x16x3x3, and /4 for four groups."""
    return "x".join(map(str, shape)) + (f" /{group}" if group > 1 else "")


def short_schemes(branches: Branches) -> str:
    """The schemes of a layer's pairs: spatial + channel, and in-4 for four slices of the input."""
    return " + ".join(
        _SHORT.get(one.scheme.name) or one.scheme.name.replace("input-sliced", "in").replace("output-sliced", "out")
        for one in branches
    )


def shorten(text: str, width: int) -> str:
    """At most `width` characters; what is cut is cut from the middle, since names differ at their ends."""
    if len(text) <= width:
        return text
    tail = (width - 3) * 2 // 3
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
