"""Raw samples and where they come from. Statistics are functions of these values (see stats)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trp_export.bench.environment import Environment


@dataclass(frozen=True, slots=True)
class Process:
    """The samples of one fresh process. Processes of one `round` ran side by side, so their ratio is a fair pair.

    `samples` are in the environment's unit per inference, in order of time. `base_bytes` is the peak memory of the
    process before the model was loaded, `peak_bytes` at its end; 0 where unknown.
    """

    round: int
    load_ms: float
    base_bytes: int
    peak_bytes: int
    samples: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutputDeviation:
    """How far a device's outputs lie from the local reference of the same model: largest over outputs, and limit."""

    relative_l2: float
    max_abs: float
    limit: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """One model on one device: its samples by process, and how far its outputs were from the local ones.

    `counts` holds what an emulator counted in one inference (`macs`, `fmla.4s`, ...), empty on real devices.
    """

    model: str
    sha256: str
    file_bytes: int
    processes: tuple[Process, ...]
    deviation: OutputDeviation | None
    counts: Mapping[str, int]

    @property
    def samples(self) -> tuple[int, ...]:
        """All samples, process by process."""
        return tuple(sample for process in self.processes for sample in process.samples)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Measurements of several models taken in one go; the first is the reference.

    `noise` holds remarks on disturbances, each with a remedy. `seconds` is the wall time all of it took.
    """

    environment: Environment
    measurements: tuple[Measurement, ...]
    noise: tuple[str, ...]
    seconds: float
