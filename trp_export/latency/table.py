"""The table: costs by key, on disk after every sample, to be merged with what others measured.

A key is text: a layer's signature and what it becomes, or a whole network. Its costs are in ms, or in millions of
instructions under emulation, one from each run that measured it; their median counts. What was measured is never
measured again, so that the same table gives the same plan.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from trp_export.errors import EnvironmentMismatchError, LoadError
from trp_export.system.files import atomic_write

FORMAT = "trp-latency"
VERSION = 2
_MOST_BYTES = 64 * 2**20
_MOST_COSTS = 1000
_LONGEST_KEY = 2000

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
        """Put down what was measured, and on disk at once. What is known already stays. Raises OutputError."""
        new = {key: [cost] for key, cost in costs.items() if key not in self}
        if new:
            self._own = {**_cached(self._path, self.conditions), **self._own, **new}  # Others may add to it, too.
            if self._path is not None:
                with suppress(OSError):  # A cache that cannot be made is noticed when it is written.
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                save_costs(self._path, self.conditions, self._own)

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


def save_costs(path: Path, conditions: Conditions, costs: Costs) -> None:
    """Write a table, whole or not at all. Raises OutputError."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "conditions": conditions.to_json(),
        "costs": {key: list(values) for key, values in sorted(costs.items())},
    }
    with atomic_write(path, f"the latency table {path}") as part:
        part.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_costs(path: Path) -> tuple[Conditions, Costs]:
    """A table as it was saved, by whomever. Raises LoadError that says what is wrong with it."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise LoadError(f"{path} is larger than {_MOST_BYTES // 2**20} MiB: no latency table.")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} is not JSON: {error}.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise LoadError(f'{path} is no latency table: "format": "{FORMAT}" is missing. Make one with --save-latency.')
    if document.get("version") != VERSION:
        raise LoadError(f"{path}: table version {document.get('version')!r} is unknown; this program reads {VERSION}.")
    return _conditions(document.get("conditions"), path), _costs(document.get("costs"), path)


def _cached(path: Path | None, conditions: Conditions) -> dict[str, list[float]]:
    """What the cache holds; nothing where it is missing or damaged, since it can be measured again."""
    if path is None or not path.exists():
        return {}
    try:
        found, costs = load_costs(path)
    except LoadError:
        return {}
    return {key: list(values) for key, values in costs.items()} if found == conditions else {}


def _conditions(given: object, path: Path) -> Conditions:
    names = [field.name for field in dataclasses.fields(Conditions)]
    if not isinstance(given, dict) or set(given) != set(names):
        raise LoadError(f'{path}: "conditions" must hold {", ".join(names)}.')
    for name in names:
        sound = _COUNTED.get(name, _is_text)
        if not sound(given[name]):
            raise LoadError(f"{path}: {name} cannot be {str(given[name])[:60]!r}.")
    return Conditions(**{**given, "cores": tuple(given["cores"])})


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_KEY


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and len(value) < _MOST_COSTS and all(map(_is_count, value))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


# What is not text.
_COUNTED = {"logical_cores": _is_count, "threads": _is_count, "cores": _are_counts}


def _costs(given: object, path: Path) -> Costs:
    if not isinstance(given, dict):
        raise LoadError(f'{path}: "costs" must map keys to lists of numbers.')
    for key, values in given.items():
        if len(key) > _LONGEST_KEY or not isinstance(values, list) or not 0 < len(values) <= _MOST_COSTS:
            raise LoadError(f"{path}: {key[:80]!r} must have 1 to {_MOST_COSTS} costs.")
        if not all(_is_cost(value) for value in values):
            raise LoadError(f"{path}: the costs of {key[:80]!r} must be finite numbers below 1e12.")
    return given


def _is_cost(value: object) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e12
    )


def _require_same(file: Path, found: Conditions, wanted: Conditions) -> None:
    names = [field.name for field in dataclasses.fields(Conditions)]
    differing = [name for name in names if getattr(found, name) != getattr(wanted, name)]
    if differing:
        lines = ", ".join(f"{name} {getattr(found, name)} there, {getattr(wanted, name)} here" for name in differing)
        raise EnvironmentMismatchError(
            f"the latency table {file.name} is not of this device: {lines}.\n"
            "Leave it out, or name the device that it was measured on."
        )
