"""Choose a plan by what it does to the network: the smallest within a limit, on the user's own evaluation.

Each ratio costs one plan, one build in closed form and one evaluation; the plan that is chosen is built once more,
like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from trp_export.errors import OptionError
from trp_export.graph.cost import Cost
from trp_export.metrics.score import Score, change, holds, points
from trp_export.options import Options
from trp_export.planning.frontier import Frontier, Point, explore
from trp_export.planning.plan import Plan
from trp_export.rules import MaxDrop
from trp_export.steps.build import build
from trp_export.steps.knowledge import Knowledge
from trp_export.steps.precisions import judge_as_shipped
from trp_export.steps.slow_pairs import FastPlan, plan_fast
from trp_export.workspace import Workspace


@dataclass(frozen=True, slots=True, eq=False)
class _Trials:
    """Builds plans without tuning and evaluates them in the precision that ships."""

    knowledge: Knowledge
    options: Options
    work: Workspace

    def try_plan(self, plan: Plan, name: str) -> tuple[Cost, Score]:
        """The cost of the network that the plan makes, and what it keeps; progress is shown under `name`."""

        def progress(step: str, share: float) -> None:
            self.work.progress(f"{name}: {step}", share)

        calibration = self.options.calibration and self.options.calibration.without_tuning
        work = replace(self.work, progress=progress)
        built = build(plan, self.knowledge, calibration, self.work.scratch / "candidate.onnx", work)
        evaluator, batches = self.knowledge.required_evaluator, self.knowledge.batches
        evaluate = judge_as_shipped(evaluator, self.options, batches, self.work.scratch)
        return built.cost, evaluate(built.files.result, lambda share: progress("compare", share))


def smallest_within_drop(
    rule: MaxDrop, knowledge: Knowledge, options: Options, work: Workspace
) -> tuple[FastPlan, Frontier]:
    """The plan of the smallest network tried within the limit, and all that were tried.

    Raises OptionError, naming the nearest, where none is within it.
    """
    search = _Search(rule, knowledge, _Trials(knowledge, options, work))
    explore(search.try_ratio)
    return search.outcome()


@dataclass(slots=True)
class _Search:
    """What has been tried, so that no network is built twice."""

    rule: MaxDrop
    knowledge: Knowledge
    trials: _Trials
    tried: list[tuple[FastPlan, Point]] = field(default_factory=list)
    evaluation: Score | None = None

    def try_ratio(self, ratio: float) -> bool | None:
        """True where the plan for this ratio is within the limit; None where there is no such plan."""
        try:
            fast = plan_fast(self.rule.budget(ratio), self.knowledge, self.trials.work.progress)
        except OptionError:
            return None
        plan = replace(fast.plan, align=self.knowledge.align)
        if not plan.changed:
            return None
        point = next((point for earlier, point in self.tried if earlier.plan.changed == plan.changed), None)
        if point is None:
            point = self._try(ratio, plan)
            self.tried.append((replace(fast, plan=plan), point))
        return point.holds

    def _try(self, ratio: float, plan: Plan) -> Point:
        cost, evaluation = self.trials.try_plan(plan, f"{ratio:.2f}x")
        self.evaluation = evaluation
        if not evaluation.unit and 0 < evaluation.before <= self.rule.points:
            raise OptionError(
                f"--max-drop {self.rule.points:g} allows a loss of all of {evaluation.what}, {evaluation.before:g}: "
                "it counts in the unit of your function."
            )
        return Point(
            ratio=ratio,
            reached=self._reached(plan, cost),
            params=cost.params,
            macs=cost.macs,
            after=evaluation.after,
            error=evaluation.error,
            holds=holds(evaluation, self.rule.largest_drop),
        )

    def _reached(self, plan: Plan, cost: Cost) -> float:
        """How many times smaller, or as fast, the network has become, by what is minimised."""
        network = self.knowledge.network
        match self.rule.minimise:
            case "macs":
                return network.budget_macs / (cost.macs or sum(decision.macs for decision in plan.decisions))
            case "params":
                return network.original_params / cost.params
            case "latency":
                return self.knowledge.measured_latency.measured(plan)

    def outcome(self) -> tuple[FastPlan, Frontier]:
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
        )
        if not within:
            raise OptionError(_out_of_reach(frontier, calibrated=self.knowledge.calibration is not None))
        fast = tried[within[-1]][0]
        lost = points(self.rule.points, frontier.unit)
        plan = replace(fast.plan, rule=f"at most {lost} lost: {fast.plan.rule}")
        return replace(fast, plan=plan), frontier


def _out_of_reach(frontier: Frontier, *, calibrated: bool) -> str:
    nearest = max(frontier.points, key=lambda point: point.after)
    lost = change(nearest.after, frontier.before, nearest.error, frontier.unit).lstrip("+").replace("±", "+-")
    on = f" on {frontier.images:,} images" if frontier.images else ""
    advice = "Allow more" if calibrated else "Allow more, or give images with --calib"
    return (
        f"--max-drop {frontier.max_drop:g} is out of reach: of {len(frontier.points)} networks the nearest, "
        f"{nearest.reached:.2f}x by {frontier.by}, loses {lost} of {frontier.what}{on}.\n"
        f"{advice}; nothing was written."
    )
