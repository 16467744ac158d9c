"""The plan for a speed-up: predicted by the table, measured whole, and the budget corrected until the two agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from trp_export.errors import OptionError
from trp_export.latency.network import NetworkLatency
from trp_export.planning.budgets import Damage, plan_by_latency
from trp_export.planning.curves import Layer
from trp_export.planning.plan import Plan

# A plan this close to the target is accepted; whole blocks of channels are coarser steps in a small network.
_NEAR = 0.01
# A plan below this share of the target is refused.
REACHED = 0.95
_MOST_TRIES = 6


def plan_for_speedup(
    layers: Sequence[Layer],
    latency: NetworkLatency,
    ratio: float,
    damage: Damage,
) -> Plan:
    """The plan of least predicted damage that measures `ratio` times as fast as the original.

    Raises OptionError, naming the best that was measured, where no plan is fast enough; DeviceError.
    """
    return plan_at_speed(latency, ratio, lambda budget: predicted_plan(layers, latency, budget, ratio, damage))


def plan_at_speed(latency: NetworkLatency, ratio: float, plan_by: Callable[[float], Plan]) -> Plan:
    """The same for any function that makes a plan for a cost of the whole network."""
    budget = latency.original / ratio
    tried: dict[float, Plan] = {}
    # The predicted cost of each network that was measured, and its share of the original's time.
    shares = {latency.original: 1.0}
    for attempt in range(_MOST_TRIES):
        latency.progress("speed-up", attempt / _MOST_TRIES)
        plan = plan_by(budget)
        found = latency.measured(plan)
        again = found in tried
        tried[found] = plan
        predicted = latency.predicted(plan)
        fastest = predicted > budget * (1 + 1e-6)
        if fastest and found < ratio * REACHED:
            raise OptionError(
                f"--speedup {ratio:g} is out of reach on this device: the fastest plan measured {max(tried):.2f}x."
            )
        if again or abs(found / ratio - 1) <= _NEAR or (fastest and found < ratio):
            break
        shares[predicted] = 1 / found
        budget = _corrected(max(budget, predicted) * found / ratio, shares, 1 / ratio)
    nearest = min(tried, key=lambda found: abs(math.log(found / ratio)))
    if nearest < ratio * REACHED:
        raise OptionError(f"--speedup {ratio:g} is not met on this device: the nearest plan measured {nearest:.2f}x.")
    return tried[nearest]


def _corrected(in_proportion: float, shares: Mapping[float, float], wanted: float) -> float:
    """The predicted cost at which a plan takes the `wanted` share of the original's time, going by what was measured.

    At first in proportion, if that lies between the nearest networks that are slower and faster; else on the line
    between these.
    """
    slow, more = min(((cost, share) for cost, share in shares.items() if share > wanted), key=lambda point: point[1])
    faster = [(cost, share) for cost, share in shares.items() if share <= wanted]
    fast, less = max(faster, key=lambda point: point[1]) if faster else (0.0, 0.0)
    is_first = len(shares) == 2  # The original and one plan.
    if is_first and fast < in_proportion < slow:
        return in_proportion
    return fast + (slow - fast) * (wanted - less) / (more - less)


def predicted_plan(
    layers: Sequence[Layer], latency: NetworkLatency, budget: float, ratio: float, damage: Damage
) -> Plan:
    """The plan of least damage that is predicted to cost at most `budget`, or the fastest where none does."""
    left = latency.of_layers(budget)
    return plan_by_latency(layers, latency.timings, left, latency.unit, f"speed-up {ratio:g}x", damage)
