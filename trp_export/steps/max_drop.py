"""Choose a plan by what it does to the network: the smallest within a limit, on the user's own evaluation.

Each ratio costs one plan, one build in closed form and one evaluation; the plan that is chosen is built once more,
like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from trp_export.errors import OptionError
from trp_export.graph.cost import Cost
from trp_export.metrics.score import Score, amount, change, holds, points, scale
from trp_export.options import Options, Precision
from trp_export.planning.frontier import Frontier, Point, explore
from trp_export.planning.plan import Plan
from trp_export.rules import MaxDrop
from trp_export.steps.best_plan import best_plan
from trp_export.steps.build import build
from trp_export.steps.knowledge import Knowledge
from trp_export.steps.precisions import judge_as_shipped, judged_precisions
from trp_export.steps.slow_pairs import FastPlan
from trp_export.steps.thin_channels import Thinner
from trp_export.workspace import Workspace


@dataclass(frozen=True, slots=True, eq=False)
class _Trials:
    """Builds plans without tuning and evaluates them in a precision, as far as they may ship in it."""

    options: Options
    work: Workspace
    precision: Precision

    def try_plan(self, plan: Plan, knowledge: Knowledge, name: str) -> tuple[Cost, Score, Precision]:
        """The cost of the network that the plan makes, and what it keeps in which precision.

        Progress is shown under `name`.
        """

        def progress(step: str, share: float) -> None:
            self.work.progress(f"{name}: {step}", share)

        calibration = self.options.calibration and self.options.calibration.without_tuning
        work = replace(self.work, progress=progress)
        built = build(plan, knowledge, calibration, self.work.scratch / "candidate.onnx", work)
        score, precision = judge_as_shipped(
            built.files.result, self.precision, knowledge, work.scratch, lambda share: progress("compare", share)
        )
        return built.cost, score, precision


def smallest_within_drop(
    rule: MaxDrop, knowledge: Knowledge, options: Options, work: Workspace
) -> tuple[FastPlan, Knowledge, Frontier]:
    """The plan of the smallest network tried within the limit, what it is for, and all that were tried.

    Raises OptionError, naming the nearest, where none is within it.
    """
    thinner = Thinner(knowledge, options, work)
    for precision in judged_precisions(options):
        search = _Search(rule, thinner, _Trials(options, work, precision))
        explore(search.try_ratio)
        if not search.missed_in_precision:
            break
    return search.outcome()


@dataclass(slots=True)
class _Search:
    """What has been tried, so that no network is built twice."""

    rule: MaxDrop
    thinner: Thinner
    trials: _Trials
    tried: list[tuple[FastPlan, Point]] = field(default_factory=list)
    evaluation: Score | None = None
    best: tuple[float, Knowledge] | None = None  # How far the smallest within the limit went, and what is known of it.

    def try_ratio(self, ratio: float) -> bool | None:
        """True where the plan for this ratio is within the limit; None where there is no such plan."""
        budget = self.rule.budget(ratio)
        try:
            fast, knowledge = best_plan(budget, self.thinner, self.trials.work.progress)
        except OptionError:
            return None
        plan = replace(fast.plan, align=knowledge.align, channels=knowledge.network.channels)
        if not plan.changed and knowledge.network is self.thinner.wide.network:
            return None
        point = next((point for earlier, point in self.tried if _same(earlier.plan, plan)), None)
        if point is None:
            point = self._try(ratio, plan, knowledge)
            self.tried.append((replace(fast, plan=plan), point))
            if point.holds and (self.best is None or point.reached >= self.best[0]):
                self.best = point.reached, knowledge
        return point.holds

    def _try(self, ratio: float, plan: Plan, knowledge: Knowledge) -> Point:
        cost, evaluation, precision = self.trials.try_plan(plan, knowledge, f"{ratio:.2f}x")
        self.evaluation = evaluation
        _require_something_to_lose(evaluation, self.rule.points)
        return Point(
            ratio=ratio,
            reached=self._reached(plan, knowledge, cost),
            params=cost.params,
            macs=cost.macs,
            after=evaluation.after,
            error=evaluation.error,
            holds=holds(evaluation, self.rule.largest_drop),
            precision=precision,
        )

    def _reached(self, plan: Plan, knowledge: Knowledge, cost: Cost) -> float:
        """How many times smaller, or as fast, the network has become, by what is minimised."""
        network = knowledge.network
        match self.rule.minimise:
            case "macs":
                before = network.budget_macs * network.fewer_macs
                return before / (cost.macs or sum(decision.macs for decision in plan.decisions))
            case "params":
                return network.original_params / cost.params
            case "latency":
                return knowledge.measured_latency.measured(plan)

    @property
    def missed_in_precision(self) -> bool:
        """True where nothing holds, and not all were judged as float models."""
        return self.best is None and any(point.precision != "fp32" for _, point in self.tried)

    def outcome(self) -> tuple[FastPlan, Knowledge, Frontier]:
        """Raises OptionError where nothing that was tried is within the limit."""
        if self.evaluation is None:
            raise OptionError("--max-drop: no plan makes this network smaller; --dry-run --energy 0.9 says why.")
        tried = sorted(self.tried, key=lambda pair: pair[1].reached)
        within = [index for index, (_, point) in enumerate(tried) if point.holds]
        frontier = Frontier(
            what=self.evaluation.what,
            images=self.evaluation.images,
            before=self.evaluation.before,
            max_drop=self.rule.points,
            by=self.rule.minimise,
            points=tuple(point for _, point in tried),
            chosen=within[-1] if within else 0,
            unit=self.evaluation.unit,
            counted=self.evaluation.counted,
        )
        if not within or self.best is None:
            raise OptionError(_out_of_reach(frontier, calibrated=self.thinner.wide.calibration is not None))
        fast = tried[within[-1]][0]
        lost = points(self.rule.points, frontier.unit)
        plan = replace(fast.plan, rule=f"at most {lost} lost: {fast.plan.rule}")
        return replace(fast, plan=plan), self.best[1], frontier


def _require_something_to_lose(evaluation: Score, limit: float) -> None:
    """Raises OptionError where the original's score is 0, or within the limit: any network would do."""
    before = evaluation.before * scale(evaluation.unit)
    if before == 0 and evaluation.unit == "%":
        raise OptionError(
            f"--max-drop: the original's {evaluation.what} is 0, so nothing is left to lose. Check the labels, "
            "--metric, and how images are prepared (--resize, --mean, --std, --scale, --colour)."
        )
    if 0 < before <= limit:
        remedy = "give less" if evaluation.unit else "it counts in the unit of your function"
        raise OptionError(
            f"--max-drop {points(limit, evaluation.unit)} allows a loss of all of {evaluation.what}, "
            f"{amount(evaluation.before, evaluation.unit)}: {remedy}."
        )


def _same(one: Plan, other: Plan) -> bool:
    return one.changed == other.changed and one.channels == other.channels


def _out_of_reach(frontier: Frontier, *, calibrated: bool) -> str:
    nearest = max(frontier.points, key=lambda point: point.after)
    lost = change(nearest.after, frontier.before, nearest.error, frontier.unit).lstrip("+").replace("±", "+-")
    on = f" on {frontier.images:,} {frontier.counted}" if frontier.images else ""
    remedies = ["allow more"]
    if not calibrated:
        remedies.append("give images with --calib")
    where = ""
    if nearest.precision != "fp32":
        where = f" in {nearest.precision}"
        remedies.append(f"leave out --precision {nearest.precision}")
    return (
        f"--max-drop {frontier.max_drop:g} is out of reach{where}: of {len(frontier.points)} networks the nearest, "
        f"{nearest.reached:.2f}x by {frontier.by}, loses {lost} of {frontier.what}{on}.\n"
        f"{', or '.join(remedies).capitalize()}; nothing was written."
    )
