"""Refuse a result that is far from the original where no image of the user's shows what that costs."""

from __future__ import annotations

from trp_export.errors import FarFromOriginalError
from trp_export.options import Options
from trp_export.planning.plan import Plan
from trp_export.steps.build import Built
from trp_export.steps.knowledge import Knowledge
from trp_export.system.text import percent

# The largest divergence on images that batch norm statistics made: ResNet-20 at 2x has 7 % and loses 2.1 points.
_MOST_BY_STATISTICS = 0.1
# The same on drawn images, which say less.
_MOST_DRAWN = 0.03
# The largest relative L2 on noise, which says least.
_MOST_ON_NOISE = 0.1


def require_close(plan: Plan, built: Built, knowledge: Knowledge, options: Options) -> None:
    """Raises FarFromOriginalError where the user neither gave images nor said that there are none.

    Synthetic images and noise tell large damage from small, not more.
    """
    calibration = options.calibration
    if calibration is None or not calibration.unasked or knowledge.evaluator is not None or not plan.changed:
        return
    score, data = built.held_out, knowledge.calibration
    if score is not None and data is not None:
        limit, apart = _MOST_DRAWN if data.drawn else _MOST_BY_STATISTICS, score.divergence
        where = f"{percent(apart)} % of their variance on {score.images:,} synthetic images"
    elif built.deviation is not None and built.deviation.truncation is not None:
        limit, apart = _MOST_ON_NOISE, built.deviation.truncation.relative_l2
        where = f"{percent(apart)} % on {built.deviation.fed}"
    else:
        return
    if apart > limit:
        insist = "none" if data is None else "synthetic"
        raise FarFromOriginalError(
            f"the outputs would differ from the original's by {where}, so the result may be useless; nothing was "
            f"written.\nGive images with --calib PATH, or cut less; --calib {insist} writes it all the same."
        )
