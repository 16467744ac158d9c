"""Choose a plan by what it does to the network: the smallest that stays within a limit, on the user's own images.

The images that calibrate have been looked at by then. Each ratio costs one plan, one build in closed form and one
round of the judge; what is chosen is built once more, like any other plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trp_export.errors import OptionError
from trp_export.network import Network
from trp_export.options import Calibration, MaxDrop, Rule
from trp_export.planning.frontier import Frontier, Point, explore
from trp_export.planning.plan import Plan
from trp_export.report.document import Cost
from trp_export.steps.build import build
from trp_export.steps.calibrate import CalibrationData
from trp_export.system.progress import Progress
from trp_export.verify import Agreement, Deviation, Evaluator, Score

if TYPE_CHECKING:
    from trp_export.latency.network import NetworkLatency


# A share that equals the limit but for rounding is within it.
_ROUNDING = 1e-9
# The share of the limit up to which a tuned network leaves room.
_MUCH = 0.5


def search_max_drop(
    rule: MaxDrop,
    plan_by: Callable[[Rule], Plan],
    network: Network,
    known: CalibrationData | None,
    judge: Evaluator,
    latency: NetworkLatency | None,
    calibration: Calibration | None,
    folder: Path,
    progress: Progress,
) -> tuple[Plan, Frontier]:
    """The plan of the smallest network seen within the limit, and all that was seen.

    `plan_by` makes the plan for a budget. Raises OptionError, naming the nearest, where none is.
    """
    trials = _Trials(rule, plan_by, network, known, judge, latency, without_tuning(calibration), folder, progress)
    explore(trials.see)
    return trials.outcome()


def holds(found: Agreement | Score, rule: MaxDrop) -> bool:
    """True where no more than the limit is lost."""
    return found.before - found.after <= rule.points / 100 + _ROUNDING


def within(deviation: Deviation, rule: MaxDrop) -> bool:
    """The same for a result; true where nothing was judged."""
    return deviation.judged is None or holds(deviation.judged, rule)


def room_left(deviation: Deviation, rule: MaxDrop) -> str | None:
    """A word where tuning won back so much that a smaller network may do."""
    found = deviation.judged
    if found is None or found.before - found.after > _MUCH * rule.points / 100:
        return None
    lost = max(0.0, found.before - found.after) * 100
    return f"after tuning {lost:.2f} of {rule.points:g} pp are lost: tuned, a smaller network may hold as well"


def without_tuning(calibration: Calibration | None) -> Calibration | None:
    """The same without distillation: for candidates, of which there are many."""
    return replace(calibration, tune_minutes=None, tune_steps=None) if calibration is not None else None


@dataclass(slots=True)
class _Trials:
    """What has been tried, so that no network is built twice."""

    rule: MaxDrop
    plan_by: Callable[[Rule], Plan]
    network: Network
    known: CalibrationData | None
    judge: Evaluator
    latency: NetworkLatency | None
    calibration: Calibration | None
    folder: Path
    progress: Progress
    seen: list[tuple[Plan, Point]] = field(default_factory=list)
    found: Agreement | Score | None = None

    def see(self, ratio: float) -> bool | None:
        """Whether the plan for this ratio holds; None where there is no such plan."""
        try:
            plan = self.plan_by(self.rule.budget(ratio))
        except OptionError:
            return None
        if not plan.changed:
            return None
        point = next((point for seen, point in self.seen if seen.changed == plan.changed), None)
        if point is None:
            point = self._try(ratio, plan)
            self.seen.append((plan, point))
        return point.holds

    def _try(self, ratio: float, plan: Plan) -> Point:
        def progress(step: str, share: float) -> None:
            self.progress(f"{ratio:.2f}x: {step}", share)

        result = self.folder / "candidate.onnx"
        made = build(self.network, plan, self.known, self.calibration, result, self.folder, progress)
        self.found = found = self.judge(result, lambda share: progress("compare", share))
        reached = self._reached(plan, made.cost)
        return Point(
            ratio, reached, made.cost.params, made.cost.macs, found.after, found.error, holds(found, self.rule)
        )

    def _reached(self, plan: Plan, cost: Cost) -> float:
        """How many times smaller, or as fast, the network has become, by what is searched over."""
        match self.rule.by:
            case "macs":
                return self.network.macs / cost.macs
            case "params":
                return self.network.original_params / cost.params
            case "speed":
                assert self.latency is not None
                return self.latency.measured(plan)

    def outcome(self) -> tuple[Plan, Frontier]:
        """Raises OptionError where nothing that was tried holds."""
        if self.found is None:
            raise OptionError("--max-drop: no plan makes this network smaller; --dry-run --energy 0.9 says why.")
        seen = sorted(self.seen, key=lambda pair: pair[1].reached)
        held = [index for index, (_, point) in enumerate(seen) if point.holds]
        frontier = Frontier(
            what=self.found.what,
            images=self.found.images,
            before=self.found.before,
            max_drop=self.rule.points,
            by=self.rule.by,
            points=tuple(point for _, point in seen),
            chosen=held[-1] if held else 0,
        )
        if not held:
            raise OptionError(_nothing_holds(frontier, self.calibration is not None))
        plan = seen[held[-1]][0]
        return replace(plan, rule=f"at most {self.rule.points:g} pp lost: {plan.rule}"), frontier


def _nothing_holds(frontier: Frontier, calibrated: bool) -> str:
    nearest = max(frontier.points, key=lambda point: point.after)
    lost = f"{(frontier.before - nearest.after) * 100:.2f}"
    if nearest.error:
        lost += f" +- {nearest.error * 100:.2f}"
    on = f" on {frontier.images:,} images" if frontier.images else ""
    return (
        f"--max-drop {frontier.max_drop:g} is out of reach: of {len(frontier.points)} networks the nearest, "
        f"{nearest.reached:.2f}x by {frontier.by}, loses {lost} pp of {frontier.what}{on}.\n"
        f"Allow more{'' if calibrated else ', or give images with --calib'}; nothing was written."
    )
