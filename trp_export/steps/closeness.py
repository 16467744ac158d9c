"""Refuse a result that is broken, as far as anything shows it, where there is no image of the user's."""

from __future__ import annotations

from dataclasses import replace

from trp_export.errors import FarFromOriginalError
from trp_export.options import Options
from trp_export.report.document import Report
from trp_export.steps.build import Built
from trp_export.steps.knowledge import Knowledge
from trp_export.system.text import percent

# The largest divergence on synthetic images. They show too little of the damage: what is far on them is lost. ResNet-20
# at 3x has 0.2 and loses 6.5 points; networks that lost all by the weights alone move by 1 and more on noise.
_MOST_DIVERGENCE = 0.3
# The largest relative L2 on noise.
_MOST_ON_NOISE = 0.5


def require_close(report: Report, built: Built, knowledge: Knowledge, options: Options) -> None:
    """Raises FarFromOriginalError where the outputs move far and the user neither gave images nor said so.

    Synthetic images and noise tell large damage from small, not more. Where their scale is not known, the scale counts
    at which the outputs move least: a network may answer anything at those that it was not made for.
    """
    calibration = options.calibration
    if calibration is None or not calibration.unasked or knowledge.evaluator is not None or not report.plan.changed:
        return
    if built.deviation is not None and built.deviation.is_within_rounding:
        return
    score = built.held_out
    if score is not None:
        limit, apart = _MOST_DIVERGENCE, score.least
        where = f"{percent(apart)} % of their variance on {score.images:,} synthetic images"
    elif built.deviation is not None and built.deviation.truncation is not None:
        limit, apart = _MOST_ON_NOISE, built.deviation.truncation.relative_l2
        where = f"{percent(apart)} % on {built.deviation.fed}"
    else:
        return
    if apart > limit:
        data = "images" if knowledge.network.described.takes_images else "real inputs (.npz or FILE.py:FUNCTION)"
        insist = "synthetic" if score is not None else "none"
        samples = knowledge.calibration.samples if knowledge.calibration is not None else None
        scale = ", the scale of the pixels (--scale 1/255 or 1)" if samples and samples.groups is not None else ""
        raise FarFromOriginalError(
            f"the outputs would differ from the original's by {where}, so the result may be useless; nothing was "
            f"written.\nGive {data} with --calib PATH{scale}, or cut less; --calib {insist} writes it all the same.",
            replace(report, notes=tuple(dict.fromkeys((*report.notes, *built.notes, *built.on_outputs)))),
        )
