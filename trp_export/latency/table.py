"""The table: costs by key, on disk after every sample, to be merged with what others measured.

A key is text: a layer's signature and what it becomes, or a whole network. Its costs are in ms, or in millions of
instructions under emulation, one from each run that measured it; their median counts. What was measured is never
measured again, so that the same table gives the same plan.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from trp_export.errors import EnvironmentMismatchError, LoadError
from trp_export.system.files import atomic_write
from trp_export.system.json_fields import Fields, read_json
from trp_export.system.text import brief

FORMAT = "trp-latency"
VERSION = 2
_MOST_BYTES = 16 * 2**20
_MOST_COSTS = 1000
_LONGEST_KEY = 2000
_LARGEST_COUNT = 2**31
_LARGEST_COST = 1e12

Costs = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a cost depends on besides the layer. Tables of unlike conditions are never merged.

    `device` is its kind (local, ssh, arm, ...), `unit` ms or million instructions, `precision` that of the weights.
    `build` stands for the build of onnxruntime and `features` for the instruction sets of the processor, as digests;
    they are empty where the device does not tell.
    """

    device: str
    cpu: str
    machine: str
    logical_cores: int
    cores: tuple[int, ...]
    threads: int
    provider: str
    onnxruntime: str
    unit: str
    precision: str = "fp32"
    build: str = ""
    features: str = ""

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {**dataclasses.asdict(self), "cores": list(self.cores)}


_TEXTS = [field.name for field in dataclasses.fields(Conditions) if field.type == "str"]


class Table:
    """The costs known under some conditions: those given by files first, then those cached in `path`.

    `path` None keeps nothing.
    """

    def __init__(self, conditions: Conditions, path: Path | None, given: Costs | None = None) -> None:
        self.conditions = conditions
        self._path = path
        self._given = dict(given or {})
        self._own = _cached(path, conditions)

    @property
    def name(self) -> str | None:
        """Of the file in the cache."""
        return self._path.name if self._path is not None else None

    def get(self, key: str) -> float | None:
        """The cost of a key, None where it has not been measured."""
        known = self._given.get(key) or self._own.get(key)
        return median(known) if known else None

    def __contains__(self, key: str) -> bool:
        return key in self._given or key in self._own

    def add(self, costs: Mapping[str, float]) -> None:
        """Add new costs, and write them to disk at once. Costs that are known stay. Raises OutputError."""
        new = {key: [cost] for key, cost in costs.items() if key not in self}
        if new:
            self._own = {
                **_cached(self._path, self.conditions),
                **self._own,
                **new,
            }  # Another process may have added costs.
            if self._path is not None:
                with suppress(OSError):  # Writing will report it.
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                save_costs(self._path, self.conditions, self._own, "Name another folder for it in TRP_BENCH_CACHE.")

    def once(self, key: str, measure: Callable[[], float]) -> float:
        """The cost of a key, measured and added where it is not known. Raises OutputError."""
        known = self.get(key)
        if known is None:
            known = measure()
            self.add({key: known})
        return known

    def save(self, path: Path) -> None:
        """Write all that is known, for others. Raises OutputError."""
        save_costs(path, self.conditions, {**self._own, **self._given})


def cache_file(folder: Path, conditions: Conditions) -> Path:
    """Where the table of these conditions lies in the cache."""
    digest = hashlib.sha256(json.dumps(conditions.to_json(), sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{conditions.device}-{digest}.json"


def merged(files: Sequence[Path], conditions: Conditions) -> Costs:
    """The costs of several files together.

    Raises LoadError for files that hold no table, EnvironmentMismatchError for tables of other conditions.
    """
    total: dict[str, list[float]] = {}
    for file in files:
        found, costs = load_costs(file)
        _require_same(file, found, conditions)
        for key, values in costs.items():
            total.setdefault(key, []).extend(values)
    return total


def save_costs(path: Path, conditions: Conditions, costs: Costs, remedy: str = "") -> None:
    """Write a table, whole or not at all. Raises OutputError."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "conditions": conditions.to_json(),
        "costs": {key: list(values) for key, values in sorted(costs.items())},
    }
    with atomic_write(path, f"the latency table {path}", remedy) as part:
        part.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_costs(path: Path) -> tuple[Conditions, Costs]:
    """A table as `save_costs` wrote it. Raises LoadError that says what is wrong with any other file."""
    document = read_json(path, _MOST_BYTES, _LONGEST_KEY)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise LoadError(
            f'{path} is not a latency table: "format": "{FORMAT}" is missing. Make one with --latency-table.'
        )
    fields = Fields(document, str(path))
    fields.text("format")
    version = fields.whole("version")
    if version != VERSION:
        raise LoadError(f"{path}: table version {version} is unknown; this program reads {VERSION}. Measure again.")
    conditions, costs = _conditions(fields.inner("conditions")), _costs(fields.inner("costs"))
    fields.nothing_more()
    return conditions, costs


def _cached(path: Path | None, conditions: Conditions) -> dict[str, list[float]]:
    """What the cache holds; nothing where it is missing or damaged, since it can be measured again."""
    if path is None or not path.exists():
        return {}
    try:
        found, costs = load_costs(path)
    except LoadError:
        return {}
    return {key: list(values) for key, values in costs.items()} if found == conditions else {}


def _conditions(fields: Fields) -> Conditions:
    texts = {name: fields.text(name) for name in _TEXTS}
    counts = {name: fields.whole(name, _LARGEST_COUNT) for name in ("logical_cores", "threads")}
    cores = fields.wholes("cores", _MOST_COSTS, _LARGEST_COUNT)
    fields.nothing_more()
    return Conditions(**texts, **counts, cores=cores)  # type: ignore[arg-type]


def _costs(fields: Fields) -> Costs:
    costs = {key: list(fields.numbers(key, _MOST_COSTS)) for key in fields.values}
    for key, values in costs.items():
        if not values:
            raise LoadError(f"{fields.where}: {key[:80]!r} must have at least one cost.")
        if not all(abs(value) < _LARGEST_COST for value in values):
            raise LoadError(f"{fields.where}: the costs of {key[:80]!r} must be below {_LARGEST_COST:g}.")
    return costs


def _require_same(file: Path, found: Conditions, wanted: Conditions) -> None:
    names = [field.name for field in dataclasses.fields(Conditions)]
    differing = [name for name in names if getattr(found, name) != getattr(wanted, name)]
    if differing:
        lines = ", ".join(
            f"{name} {brief(getattr(found, name))} there, {brief(getattr(wanted, name))} here" for name in differing
        )
        raise EnvironmentMismatchError(
            f"the latency table {file.name} is of another device: {lines}.\n"
            "Leave it out, or choose that device with --device."
        )
