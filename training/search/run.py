"""A search from the model to its plan: images, moments, candidates, logits, and with two branches a second search.

The plan is written at the end, atomically. After every epoch, a folder beside it gets what a resumed search needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.checkpoint import write
from training.history import write_jsonl
from training.run_folder import LAST, read_state, require_same_files, run_folder, stored_options
from training.search.calibrated import SearchedNetwork, batch_size, calibrate_for_search, digests_of
from training.search.choose import plan_of_logits, require_reachable
from training.search.loop import Record, Search
from training.search.options import SearchOptions
from training.search.plots import draw
from training.search.space import Space, by_latency, by_macs, second_by_macs
from training.search.supernet import Supernet
from training.stop import StopRequest
from trp_export.errors import LoadError, OutputError, StoppedEarly, UnsupportedError
from trp_export.lowrank.factor import Float64
from trp_export.network import Network, measure_layers
from trp_export.options import Benchmark, Selection
from trp_export.planning.plan import Plan
from trp_export.rules import Macs
from trp_export.system.files import atomic_write
from trp_export.system.progress import Progress
from trp_export.system.scratch import Scratch

if TYPE_CHECKING:
    from trp_export.latency.network import NetworkLatency

_FORMAT, _VERSION = "trp-search", 2
_KEYS = ("model", "options", "digests", "searches")
# More gain nothing: see the row of 800 steps of tools/search_results.py on ResNet-20 at 3x.
_STEPS = 300


@dataclass(frozen=True, slots=True, eq=False)
class SavedSearch:
    """What the folder of a search holds: the path of its model, options as texts, digests, and a state per stage."""

    model: str
    options: dict[str, Any]
    digests: dict[str, str]
    searches: tuple[dict[str, Any], ...]


def run_search(
    model: Path,
    options: SearchOptions,
    progress: Progress,
    report: Callable[[Record], None],
    *,
    saved: SavedSearch | None = None,
    allow_changed_data: bool = False,
    known: SearchedNetwork | None = None,
) -> tuple[Plan, tuple[str, ...]]:
    """Make the plan and write it. Returns it with notes for the user; `report` gets a record per epoch.

    `saved` is the search to continue. `known` saves the calibration where several searches share model and images.
    Raises StoppedEarly, after saving, where the user asked to stop.
    """
    with run_folder(options.folder, resume=saved is not None), Scratch() as scratch:
        if saved is None:
            (options.folder / "synthetic.npy").unlink(missing_ok=True)  # Left by a search without a first epoch.
        known = known or calibrate_for_search(model, options, scratch.folder, progress)
        digests = digests_of(known)
        if saved is not None:
            where = str(options.folder / LAST)
            require_same_files(digests, saved.digests, where, allow_changes=allow_changed_data)
        searches = saved.searches if saved is not None else ()
        stages = _Stages(SavedSearch(str(model), stored_options(options), digests, searches), options, known)
        stages.report, stages.progress = report, progress
        plan = stages.plan_by_macs() if isinstance(options.rule, Macs) else stages.plan_by_latency(scratch.folder)
    with atomic_write(options.output, remedy="Choose another place with -o.") as part:
        part.write_text(json.dumps(plan.to_json(), indent=2) + "\n", encoding="utf-8")
    return plan, (*known.notes, *stages.notes)


def read_search(folder: Path) -> SavedSearch:
    """The saved state of a search. Raises LoadError where there is none, or it is damaged."""
    content = read_state(folder, _FORMAT, _VERSION, _KEYS)
    model, options, digests, searches = (content[key] for key in _KEYS)
    whole = isinstance(options, dict) and isinstance(digests, dict) and isinstance(searches, list)
    if not whole or not isinstance(model, str) or len(searches) > 2 or not all(isinstance(s, dict) for s in searches):
        raise LoadError(
            f"{folder / LAST} is damaged: its model, options, digests or searches are not what they must be."
        )
    return SavedSearch(model, options, digests, tuple(searches))


class _Stages:
    """The searches that lead to a plan, in order, and what is saved of them."""

    report: Callable[[Record], None]
    progress: Progress

    def __init__(self, saved: SavedSearch, options: SearchOptions, known: SearchedNetwork) -> None:
        self._saved, self._options, self._known = saved, options, known
        self._states: list[dict[str, Any]] = list(saved.searches)
        self.notes: tuple[str, ...] = ()
        self._sites = [place.site for place in known.network.located]

    def plan_by_macs(self) -> Plan:
        """Raises OptionError for a ratio that is out of reach, StoppedEarly."""
        options, macs, ratio = self._options, self._known.network.budget_macs, self._options.rule.ratio
        spaces = by_macs(self._sites, options.scheme)
        fixed = macs - sum(site.macs for site in self._sites)
        require_reachable(spaces, fixed, macs, ratio, "--macs")
        budget, rule = macs / ratio - fixed, f"macs {ratio:g}x fewer"
        plan = self._plan(spaces, self._search(0, spaces, budget), budget, rule)
        if options.branches == 2:
            spaces = second_by_macs(plan, options.scheme)
            if any(len(space.candidates) > 1 for space in spaces):
                plan = self._plan(spaces, self._search(1, spaces, budget), budget, f"{rule}, two branches")
        return plan

    def plan_by_latency(self, folder: Path) -> Plan:
        """Raises OptionError for a speed-up that is out of reach, DeviceError, StoppedEarly."""
        from trp_export.latency.search import plan_at_speed

        ratio = self._options.rule.ratio
        latency = _latency(self._options, self._known.network, folder, self.progress)
        spaces = by_latency(self._sites, latency.timings)
        least = sum(float(space.costs.min()) for space in spaces) * (1 + 1e-9)
        others = latency.dense - sum(space.dense for space in spaces)  # The cost of everything but the layers.
        logits = self._search(0, spaces, max(latency.original / ratio - others, least))

        def plan_by(budget: float) -> Plan:
            return self._plan(spaces, logits, max(budget - others, least), f"speed-up {ratio:g}x")

        return plan_at_speed(latency, ratio, plan_by)

    def _search(self, stage: int, spaces: Sequence[Space], budget: float) -> dict[str, Float64]:
        """The logits of one search, continued from its saved state if there is one."""
        options = self._options
        search = open_search(options, self._known, spaces, budget, self.progress)
        if stage < len(self._states):
            restore_search(search, self._states[stage], options.folder / LAST)

        def save() -> None:
            self._states[stage:] = [search.state_dict()]
            self._save(search.epochs)

        def report(record: Record) -> None:
            self.report(record | {"stage": stage + 1, "epochs": search.epochs})

        with StopRequest() as stop:
            if not search.train(stop, report, save):
                raise StoppedEarly
        if not search.improved:
            which = "second pairs: " if stage else ""
            self.notes += (f"{which}no epoch found a better plan than the one that the search started from",)
        return search.logits()

    def _plan(self, spaces: Sequence[Space], logits: Mapping[str, Float64], budget: float, rule: str) -> Plan:
        images, count = self._known.images, f"{len(self._known.images):,}"
        name = Path(images.name.rpartition(":")[2]).name
        source = f"{count} synthetic images" if self._options.no_data else f"{count} images of {name}"
        return plan_of_logits(spaces, logits, budget, f"{rule}, searched with {source}, seed {self._options.seed}")

    def _save(self, epochs: int) -> None:
        folder, state = self._options.folder, replace(self._saved, searches=tuple(self._states))
        content = {key: getattr(state, key) for key in _KEYS} | {"searches": self._states}
        write({"format": _FORMAT, "version": _VERSION} | content, folder / LAST)
        try:
            histories = [state["history"] for state in self._states]
            write_jsonl([{"stage": n + 1} | record for n, own in enumerate(histories) for record in own],
                        folder / "history.jsonl")  # fmt: skip
            if histories[-1] and _is_drawn(len(histories[-1]), epochs):
                draw(histories[-1], folder / f"settling-{len(histories)}.png")
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror}.") from error


def open_search(
    options: SearchOptions, known: SearchedNetwork, spaces: Sequence[Space], budget: float, progress: Progress
) -> Search:
    """A search at its beginning. Raises UnsupportedError for a model that torch cannot compute."""
    if not any(len(space.candidates) > 1 for space in spaces):
        raise UnsupportedError(f"{known.network.source.name}: no layer can become anything that costs less.")
    supernet = Supernet(known.network.model, spaces, known.moments, partial(progress, "factors"))
    batch = batch_size(known.network, len(known.images), options.batch)
    supernet.require_sound(known.examples.images[:batch])
    return Search(
        supernet,
        spaces,
        known.examples,
        budget,
        epochs=options.epochs or max(1, round(_STEPS / (len(known.images) // batch))),
        batch=batch,
        lr=options.lr,
        seed=options.seed,
        start=options.start,
    )


def restore_search(search: Search, state: Mapping[str, Any], path: Path) -> None:
    """Continue a search from the state that `path` holds. Raises LoadError where it does not fit."""
    try:
        search.load_state_dict(state)
    except RuntimeError as error:  # Another measurement has added ranks to the latency table.
        raise LoadError(
            f"{path} does not fit: the candidates of the model have changed. Start another search."
        ) from error
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LoadError(f"{path} is damaged. Start another search.") from error


def _latency(options: SearchOptions, network: Network, folder: Path, progress: Progress) -> NetworkLatency:
    from trp_export.latency.network import open_latency

    selection = Selection(options.scheme)
    return open_latency(
        network,
        measure_layers(network, selection, (), progress),
        selection=selection,
        benchmark=Benchmark(threads=options.threads, device=options.device),
        precision="fp32",
        folder=folder,
        progress=progress,
    )


def _is_drawn(epoch: int, epochs: int) -> bool:
    """Ten times during a search and at its end, since a picture takes as long as many steps."""
    return epoch == epochs or epoch % max(1, epochs // 10) == 0
