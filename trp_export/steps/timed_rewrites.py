"""Choose the rewrites without loss that pay on some devices only: by the clock of the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trp_export.errors import DeviceError, LoadError, UnsupportedError, first_line
from trp_export.graph.exact import TIMED, timed_rewrites
from trp_export.network import Network
from trp_export.options import Options
from trp_export.planning.plan import Plan
from trp_export.planning.saved_plan import Choices
from trp_export.rules import SavedPlan
from trp_export.system.text import name_some
from trp_export.workspace import Workspace

# A rewrite must make the whole network this many times as fast: below it, two timings of one network differ as much.
_LEAST_GAIN = 1.03
_DENSE = Plan((), "dense")


def with_timed_rewrites(
    network: Network, saved: Choices | None, options: Options, work: Workspace
) -> tuple[Network, tuple[str, ...]]:
    """The network with the rewrites that a saved plan names, or that the device runs faster, and notes.

    Without a benchmark none is made. Raises LoadError for a plan that names unknown ones.
    """
    rule = options.effective_rule
    if saved is not None and isinstance(rule, SavedPlan):
        return replace(network, rewrites=_known(saved.rewrites, rule.path)), ()
    rewrites = timed_rewrites(network.model)
    if not rewrites or not options.is_timed:
        return network, ()
    try:
        gains = {rewrite: _gain(network, rewrite, options, work) for rewrite in rewrites}
    except (DeviceError, UnsupportedError) as error:
        return network, (f"{name_some(rewrites)} cannot be timed, so they stay: {first_line(error, 160)}",)
    chosen = {rewrite: gain for rewrite, gain in gains.items() if gain >= _LEAST_GAIN}
    notes = (f"{rewrite} make the network {gain:.2f} times as fast, at no loss" for rewrite, gain in chosen.items())
    return replace(network, rewrites=tuple(chosen)), tuple(notes)


def _known(rewrites: tuple[str, ...], path: Path) -> tuple[str, ...]:
    if unknown := [rewrite for rewrite in rewrites if rewrite not in TIMED]:
        raise LoadError(f"{path}: unknown rewrite {unknown[0][:80]!r}; there are {', '.join(TIMED)}.")
    return rewrites


def _gain(network: Network, rewrite: str, options: Options, work: Workspace) -> float:
    """How many times as fast the network without low rank becomes; measured once for a device, in a few seconds."""
    from trp_export.latency.network import device_under_test, digest_on, open_table, speedup_of
    from trp_export.latency.placeholder import save_standin

    work.progress("time exact rewrites", 0)
    device = device_under_test(network, options.benchmark, options.planned_precision)
    table = open_table(device, options.benchmark)

    def measure() -> float:
        files = []
        for rewrites in ((), (rewrite,)):
            files.append(work.scratch / f"rewrite{len(rewrites)}.onnx")
            save_standin(replace(network, rewrites=rewrites), _DENSE, files[-1], options.planned_precision)
        return speedup_of(device, *files)

    return table.once(f"network {digest_on(network, device)} {rewrite}", measure)
