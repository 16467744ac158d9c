"""What disturbed a measurement, as far as it can be seen, and the remedy for each disturbance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trp_export.bench.environment import Environment, Machine
from trp_export.bench.samples import Measurement

BUSY_OTHERS = 0.10  # share of all cores that other programs may take
SPREAD = 1.25  # p90 over the median
PLACEMENT = 1.10  # slowest over fastest process
DRIFT = 0.05  # last third of the rounds over the first third


class Watch:
    """How busy other programs keep this computer from now on."""

    def __init__(self) -> None:
        import psutil

        self._then = psutil.cpu_times()
        self._own_then = _own_seconds()

    def others(self) -> float:
        """The share of all cores' time that went to programs other than this one and its children, 0 to 1."""
        import psutil

        now = psutil.cpu_times()
        total = sum(now) - sum(self._then)
        idle = now.idle - self._then.idle + getattr(now, "iowait", 0.0) - getattr(self._then, "iowait", 0.0)
        if total <= 0:
            return 0.0
        return float(min(1.0, max(0.0, (total - idle - (_own_seconds() - self._own_then)) / total)))


def _own_seconds() -> float:
    """CPU seconds of this process and of its children, the ended ones too."""
    import psutil

    me = psutil.Process()
    times = me.cpu_times()
    seconds = times.user + times.system + times.children_user + times.children_system
    for child in me.children(recursive=True):
        try:
            own = child.cpu_times()
        except psutil.Error:
            continue
        seconds += own.user + own.system
    return float(seconds)


def noise_remarks(
    measurements: Sequence[Measurement], machine: Machine, others: float, environment: Environment
) -> tuple[str, ...]:
    """Remarks on the quality of a measurement. Empty if nothing was disturbed, or if nothing is timed."""
    if environment.unit != "ns":
        return ()
    notes = []
    if environment.device == "local" and others > BUSY_OTHERS:
        notes.append(f"other programs used {others:.0%} of this computer meanwhile: end them, or use a larger --budget")
    elif environment.device != "local" and machine.load > 0.5:
        notes.append(f"the device had a load of {machine.load:.1f} before the measurement: end other programs on it")
    if environment.governor not in ("unknown", "performance"):
        notes.append(
            f"the frequency governor is {environment.governor}: set performance (cpupower frequency-set -g performance)"
        )
    for one in measurements:
        notes += _spread_of(one)
    if any(_drift(one) > DRIFT for one in measurements):
        notes.append(
            "it became slower from round to round, as a CPU does when it grows hot: cool it, or use a smaller --budget"
        )
    if any(len(one.processes) < 8 for one in measurements):
        notes.append("fewer than eight processes per model make the interval wide: leave out --processes or --no-bench")
    return tuple(notes)


def _spread_of(one: Measurement) -> list[str]:
    if not one.samples:
        return []
    p50, p90 = np.quantile(one.samples, [0.5, 0.9])
    medians = [float(np.median(process.samples)) for process in one.processes]
    notes = []
    if p90 > SPREAD * p50:
        notes.append(
            f"{one.model}: one run in ten took over {p90 / p50:.2f} times the median: "
            "end other programs on its cores, or choose other cores with trp-bench --cores"
        )
    if max(medians) > PLACEMENT * min(medians):
        notes.append(
            f"{one.model}: its slowest process was {max(medians) / min(medians):.2f} times slower than its fastest: "
            f"a larger --budget evens this out"
        )
    return notes


def _drift(one: Measurement) -> float:
    medians = [float(np.median(process.samples)) for process in one.processes]
    third = len(medians) // 3
    if third < 1:
        return 0.0
    return float(np.median(medians[-third:]) / np.median(medians[:third]) - 1)
