"""A search from the model to its plan: images, moments, candidates, logits, and with two branches all again around it.

The plan is written at the end, all or nothing; what is needed to go on lies in a folder beside it after every epoch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from training.checkpoint import read, write
from training.guard import StopRequest
from training.history import write_jsonl
from training.search.choose import plan_of_logits, require_reachable
from training.search.images import read_images, require_labels_fit
from training.search.loop import Examples, Record, Search
from training.search.options import SearchOptions
from training.search.plots import draw
from training.search.space import Space, by_latency, by_macs, second_by_macs
from training.search.supernet import Supernet
from trp_export.calibration.moments import Moments, calibration_remarks, gather_moments
from trp_export.errors import LoadError, OptionError, OutputError, StoppedEarly, UnsupportedError
from trp_export.inputs.images import ImageSet, load_images
from trp_export.load import load
from trp_export.lowrank.factor import Float64
from trp_export.network import Network, analyse, measure_layers
from trp_export.options import Benchmark, LoadOptions, Selection
from trp_export.planning.plan import Plan
from trp_export.recover.synthetic import affordable, synthetic_images, synthetic_note
from trp_export.recover.torch_graph import TorchGraph
from trp_export.runtime.partial import fixed_batch
from trp_export.system.files import atomic_write
from trp_export.system.progress import Progress
from trp_export.system.scratch import Scratch

if TYPE_CHECKING:
    from trp_export.latency.network import NetworkLatency

FORMAT, VERSION = "trp-search", 1
# Eight images of 3x224x224, and no more than 32 of fewer pixels: many small steps, each with candidates of its own,
# tell more than few large ones.
_BATCH_ELEMENTS, _LARGEST_BATCH = 8 * 3 * 224 * 224, 32
# More gain nothing: 800 on ResNet-20 at 3x, a row of tools/search_results.py.
_STEPS = 300
# Where nobody says how many.
IMAGES = 1024


@dataclass(frozen=True, slots=True, eq=False)
class SearchedNetwork:
    """The network, the images (N, C, H, W) as it takes them, and what they told about its layers."""

    network: Network
    images: ImageSet
    examples: Examples
    moments: Mapping[str, Moments]
    notes: tuple[str, ...]


def run_search(
    options: SearchOptions,
    progress: Progress,
    report: Callable[[Record], None],
    resume: bool = False,
    seen: SearchedNetwork | None = None,
) -> tuple[Plan, tuple[str, ...]]:
    """Make the plan and write it. Returns it with what the user should know; `report` gets a record per epoch.

    `seen` saves looking again where several searches share model and images.

    Raises StoppedEarly where Ctrl-C or SIGTERM came in the middle, with everything saved.
    """
    state = read_search(options.folder) if resume else {}
    with _folder(options.folder, resume), Scratch() as scratch:
        seen = seen or calibrate_for_search(options, scratch.folder, progress)
        stages = _Stages(options, seen, state, report, progress)
        plan = stages.by_macs() if options.macs else stages.by_latency(scratch.folder)
    with atomic_write(options.output, remedy="Choose another place with -o.") as part:
        part.write_text(json.dumps(plan.to_json(), indent=2) + "\n", encoding="utf-8")
    return plan, (*seen.notes, *stages.notes)


class _Stages:
    """The searches that lead to a plan, one after the other, and the state that is saved of them."""

    def __init__(
        self,
        options: SearchOptions,
        seen: SearchedNetwork,
        state: Mapping[str, Any],
        report: Callable[[Record], None],
        progress: Progress,
    ) -> None:
        self._options, self._seen, self._report, self._progress = options, seen, report, progress
        self._states: list[dict[str, Any]] = list(state.get("searches", ()))
        self.notes: tuple[str, ...] = ()
        self._sites = [place.site for place in seen.network.located]

    def by_macs(self) -> Plan:
        """Raises OptionError for a ratio that is out of reach, StoppedEarly."""
        options, network = self._options, self._seen.network
        spaces = by_macs(self._sites, options.scheme)
        fixed = network.budget_macs - sum(site.macs for site in self._sites)
        require_reachable(spaces, fixed, network.budget_macs, options.ratio, "--macs")
        budget = network.budget_macs / options.ratio - fixed
        what = f"macs {options.ratio:g}x fewer"
        plan = self._plan(spaces, self._search(0, spaces, budget), budget, what)
        if options.branches == 2:
            spaces = second_by_macs(plan, options.scheme)
            if any(len(space.candidates) > 1 for space in spaces):
                plan = self._plan(spaces, self._search(1, spaces, budget), budget, f"{what}, two branches")
        return plan

    def by_latency(self, folder: Path) -> Plan:
        """Raises OptionError for a speed-up that is out of reach, DeviceError, StoppedEarly."""
        from trp_export.latency.search import plan_at_speed

        options = self._options
        latency = _latency(options, self._seen.network, folder, self._progress)
        spaces = by_latency(self._sites, latency.timings)
        least = sum(float(space.costs.min()) for space in spaces) * (1 + 1e-9)
        # What of a cost of the whole network is left for the layers.
        others = latency.dense - sum(space.dense for space in spaces)
        logits = self._search(0, spaces, max(latency.original / options.ratio - others, least))

        def plan_by(budget: float) -> Plan:
            return self._plan(spaces, logits, max(budget - others, least), f"speed-up {options.ratio:g}x")

        return plan_at_speed(latency, options.ratio, plan_by)

    def _search(self, stage: int, spaces: Sequence[Space], budget: float) -> dict[str, Float64]:
        """The logits of one search, from where it was left."""
        options, seen = self._options, self._seen
        search = open_search(options, seen, spaces, budget, self._progress)
        if stage < len(self._states):
            try:
                search.load_state_dict(self._states[stage])
            except RuntimeError as error:  # Another measurement has added ranks to the latency table.
                raise LoadError(
                    f"{options.folder}: the candidates of {options.model} have changed since. Start again, elsewhere."
                ) from error
            except (LookupError, TypeError, ValueError) as error:
                raise LoadError(f"{options.folder / 'last.pt'} is damaged. Start again, elsewhere.") from error

        def save() -> None:
            self._states[stage:] = [search.state_dict()]
            self._save(search.epochs)

        def report(record: Record) -> None:
            self._report(record | {"stage": stage + 1, "epochs": search.epochs})

        with StopRequest() as stop:
            if not search.train(stop, report, save):
                raise StoppedEarly
        if not search.improved:
            which = "second pairs: " if stage else ""
            self.notes += (f"{which}no epoch found a better plan than the one the search started from",)
        return search.logits()

    def _plan(self, spaces: Sequence[Space], logits: Mapping[str, Float64], budget: float, what: str) -> Plan:
        seen, count = self._seen.images, f"{len(self._seen.images):,}"
        name = Path(seen.name.rpartition(":")[2]).name
        images = f"{count} images of {name}" if self._options.data is not None else f"{count} synthetic images"
        rule = f"{what}, searched with {images}, seed {self._options.seed}"
        return plan_of_logits(spaces, logits, budget, rule)

    def _save(self, epochs: int) -> None:
        folder = self._options.folder
        content = {
            "format": FORMAT,
            "version": VERSION,
            "options": self._options.to_json(),
            "searches": self._states,
        }
        write(content, folder / "last.pt")
        try:
            histories = [state["history"] for state in self._states]
            lines = [{"stage": stage + 1} | record for stage, own in enumerate(histories) for record in own]
            write_jsonl(lines, folder / "history.jsonl")
            for stage, own in enumerate(histories):
                if own and stage + 1 == len(histories) and _worth_drawing(len(own), epochs):
                    draw(own, folder / f"settling-{stage + 1}.png")
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror}.") from error


def calibrate_for_search(options: SearchOptions, folder: Path, progress: Progress) -> SearchedNetwork:
    """Load the model, bring it into normal form with batch norm folded, and run the images through it."""
    progress("load", 0)
    source = load(options.model, LoadOptions(options.arch, options.input_shape))
    network = analyse(source, folder, fold=True)
    ir.external_data.load_to_model(network.model)
    images, labelled = _images(options, network, progress)
    moments = gather_moments(
        network.model, network.located, images, seed=options.seed, progress=partial(progress, "moments")
    )
    told = calibration_remarks(moments, network.means, len(images))
    images = _full_batches(images, fixed_batch(network.model) or 1)
    inputs = torch.from_numpy(np.array(images.inputs)).contiguous(memory_format=torch.channels_last)
    graph = TorchGraph(network.model)
    with torch.no_grad():
        answers = [graph(part) for part in torch.split(inputs, batch_size(network, len(images), options.batch))]
    wanted = [torch.cat(parts) for parts in zip(*answers, strict=True)]
    labels = None
    if labelled:
        require_labels_fit(images, wanted[0].shape)
        labels = torch.from_numpy(images.labels)
    return SearchedNetwork(network, images, Examples(inputs, labels, wanted), moments, (*images.notes, *told))


def open_search(
    options: SearchOptions, seen: SearchedNetwork, spaces: Sequence[Space], budget: float, progress: Progress
) -> Search:
    """A search at its beginning. Raises UnsupportedError for a model that torch cannot stand in for."""
    if not any(len(space.candidates) > 1 for space in spaces):
        raise UnsupportedError(f"{seen.network.source.name}: no layer can become anything that costs less.")
    supernet = Supernet(seen.network.model, spaces, seen.moments, partial(progress, "factors"))
    batch = batch_size(seen.network, len(seen.images), options.batch)
    supernet.require_sound(seen.examples.images[:batch])
    return Search(
        supernet,
        spaces,
        seen.examples,
        budget,
        epochs=options.epochs or max(1, round(_STEPS / (len(seen.images) // batch))),
        batch=batch,
        lr=options.lr,
        seed=options.seed,
        start=options.start,
    )


def _images(options: SearchOptions, network: Network, progress: Progress) -> tuple[ImageSet, bool]:
    """The images to search with, and whether their labels count. Those that are made are kept beside the plan."""
    if options.data is not None:
        return read_images(options, network, options.count or IMAGES, options.seed)
    (shape,) = network.inputs.values()
    file = options.folder / "synthetic.npy"
    if not file.exists():
        told = partial(progress, "synthesise images")
        count = options.count or affordable(network.macs or 1)
        made = synthetic_images(network.model, network.statistics, shape, count, seed=options.seed, progress=told)
        with atomic_write(file) as part, part.open("wb") as stream:
            np.save(stream, made.inputs)
    images = load_images(file, input_shape=(None, *shape[1:]))
    return replace(images, notes=(*images.notes, synthetic_note(len(images), options.seed))), False


def _full_batches(images: ImageSet, size: int) -> ImageSet:
    """Without those that do not fill a batch. Raises OptionError where nothing is left."""
    count = len(images) // size * size
    if not count:
        raise OptionError(f"the model takes {size} images at a time, and {images.name} holds {len(images)}.")
    labels = None if images.labels is None else images.labels[:count]
    return replace(images, pixels=images.pixels[:count], labels=labels)


def batch_size(network: Network, images: int, wanted: int) -> int:
    """How many images a step takes: `wanted`, or 0 by their size; never more than there are.

    Raises OptionError where a model of a fixed batch has other wishes.
    """
    fixed = fixed_batch(network.model)
    if fixed is not None and wanted not in (0, fixed):
        raise OptionError(f"--batch {wanted}: the model takes {fixed} images at a time.")
    (shape,) = network.inputs.values()
    by_size = int(np.clip(_BATCH_ELEMENTS // prod(size or 1 for size in shape[1:]), 1, _LARGEST_BATCH))
    return min(fixed or wanted or by_size, images)


def _latency(options: SearchOptions, network: Network, folder: Path, progress: Progress) -> NetworkLatency:
    from trp_export.latency.network import open_latency

    selection, benchmark = Selection(options.scheme), Benchmark(threads=options.threads, device=options.device)
    layers = measure_layers(network, selection, (), progress)
    return open_latency(
        network,
        layers,
        selection=selection,
        benchmark=benchmark,
        precision="fp32",
        folder=folder,
        progress=progress,
    )


def read_search(folder: Path) -> dict[str, Any]:
    """The saved state of a search. Raises LoadError where there is none."""
    path = folder / "last.pt"
    if not path.is_file():
        raise LoadError(f"{folder} holds no search to resume: last.pt is missing. Leave --resume out.")
    content = read(path)
    if content.get("format") != FORMAT or content.get("version") != VERSION or "options" not in content:
        raise LoadError(f"{path} is not the saved state of a search.")
    return content


@contextmanager
def _folder(folder: Path, resume: bool) -> Iterator[None]:
    """A place for the search; none is left behind where it never came to its first epoch."""
    if not resume:
        _make_folder(folder)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # As soon as something is in it.
            folder.rmdir()
        raise


def _make_folder(folder: Path) -> None:
    """Raises OptionError where another search lies there, OutputError where the folder cannot be made."""
    if (folder / "last.pt").exists():
        raise OptionError(f"{folder} holds a search already: go on with --resume, or choose another place with -o.")
    try:
        folder.mkdir(exist_ok=True)
        for left in ("synthetic.npy", "recovered.json"):  # Of a search that never came to its first epoch.
            (folder / left).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}.") from error


def _worth_drawing(epoch: int, epochs: int) -> bool:
    """Ten times on the way, and at the end: a picture takes as long as many steps."""
    return epoch == epochs or epoch % max(1, epochs // 10) == 0
