"""What a device must offer: stage files, start runners on them, and clean up."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from platformdirs import user_cache_path

from trp_export.bench.environment import Machine
from trp_export.bench.models import BenchModel
from trp_export.errors import OptionError


def cached(part: str) -> Path:
    """The folder of `arm`, `web`, `native` or `latency`: in $TRP_BENCH_CACHE, else in the user's cache folder.

    Raises OptionError for a user without a home folder.
    """
    chosen = os.environ.get("TRP_BENCH_CACHE")
    folder = Path(chosen) if chosen else user_cache_path("trp-bench", appauthor=False)
    if not chosen and not folder.is_absolute():
        raise OptionError("this user has no home folder for a cache; name a folder in TRP_BENCH_CACHE, or set HOME.")
    return folder / part


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach a device. Folders that are not named are those that `tools/` fill, see `cached`."""

    ssh_config: Path | None = None
    native: Path | None = None
    web: Path | None = None
    arm: Path | None = None
    remote_python: str = "python3"
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Start:
    """How a runner is started. `timeout_s` bounds every reply; a runner that stays silent longer is ended.

    `profile` is a file prefix in the scratch folder for onnxruntime's own profile, empty for none (local and ssh).
    """

    threads: int
    cores: tuple[int, ...]
    provider: str
    timeout_s: float
    profile: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """A runner's first line, once its model is loaded: what it uses, and what loading cost.

    `nodes` counts for each provider the nodes that it runs, by operator; empty where only the CPU was asked for.
    """

    load_ms: float
    base_bytes: int
    onnxruntime: str
    provider: str
    threads: int
    nodes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """Samples of one turn in the device's unit per inference, the peak memory so far, and what an emulator counted."""

    samples: tuple[int, ...]
    peak_bytes: int
    counts: dict[str, int]


class Runner(Protocol):
    """A process on a device with one model loaded."""

    @property
    def ready(self) -> Ready:
        """What it said when its model was loaded."""

    def run(self, samples: int, inner: int) -> Turn:
        """`samples` durations of `inner` inferences, each divided by `inner`. Raises DeviceError."""

    def outputs(self, most_bytes: int) -> list[np.ndarray | None]:
        """The outputs for the staged inputs; None for those that are not tensors.

        Raises DeviceError, also for outputs of more than `most_bytes` together.
        """

    def ask(self, command: str) -> dict[str, Any]:
        """Any other command of the protocol. Raises DeviceError."""

    def close(self) -> None:
        """End the process, by force if need be. Never raises, returns in bounded time."""


class Device(Protocol):
    """Something models run on. Used inside `with open_device(...)`, which removes everything it made there.

    `unit` is what samples count. A sample shorter than `shortest_sample_ns` repeats the inference. Warm-up goes by
    windows of `warm_window_ns`. `rounds` are the fewest and the most fresh processes per model that make sense there.
    """

    name: str
    unit: str
    shortest_sample_ns: float
    warm_window_ns: float
    rounds: tuple[int, int]

    def probe(self) -> Machine:
        """Facts about the machine, taken on it. Raises DeviceError."""

    def stage(self, cases: Sequence[BenchModel]) -> None:
        """Bring models and inputs there. Raises DeviceError."""

    def start(self, index: int, start: Start) -> Runner:
        """A fresh process with the model of case `index`. Raises DeviceError."""


@dataclass(frozen=True, slots=True)
class Kind:
    """An entry of the registry: how a device kind is spelled, what it is, and how to open one.

    `missing(settings)` says what to install before it is usable, or is empty. `open(argument, settings)` makes the
    device; `argument` is what follows the colon in the specification, or an empty string.
    """

    spelling: str
    description: str
    missing: Callable[[Settings], str]
    open: Callable[[str, Settings], AbstractContextManager[Device]]
