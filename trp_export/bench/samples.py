"""Raw samples and where they come from. Statistics are functions of these values (see stats)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trp_export.bench.environment import Environment
from trp_export.errors import LoadError
from trp_export.system.files import atomic_write

SCHEMA = 1


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

    def to_json(self, *, samples: bool = True) -> dict[str, Any]:
        """A plain dict: environment, each model with its statistics (and raw samples), ratios to the first model."""
        ratios = [None, *(_ratio_json(self.measurements[0], other) for other in self.measurements[1:])]
        return {
            "schema": SCHEMA,
            "environment": self.environment.to_json(),
            "seconds": self.seconds,
            "noise": list(self.noise),
            "models": [
                {**_measurement_json(one, self.environment, samples), "ratio": ratio}
                for one, ratio in zip(self.measurements, ratios, strict=True)
            ],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Comparison:
        """The reverse of `to_json` with samples. Raises KeyError, TypeError or ValueError for anything else."""
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']}, this version reads {SCHEMA}")
        return cls(
            environment=Environment.from_json(values["environment"]),
            measurements=tuple(_measurement_from_json(model) for model in values["models"]),
            noise=tuple(values["noise"]),
            seconds=float(values["seconds"]),
        )


def _ratio_json(reference: Measurement, other: Measurement) -> dict[str, Any] | None:
    """The ratio as a plain dict, None where a run that was stopped has no round with samples of both."""
    from trp_export.bench import stats

    rounds = [{process.round for process in one.processes if process.samples} for one in (reference, other)]
    return stats.ratio(reference, other).to_json() if rounds[0] & rounds[1] else None


def _measurement_json(one: Measurement, environment: Environment, samples: bool) -> dict[str, Any]:
    from trp_export.bench import stats

    values: dict[str, Any] = {
        "model": one.model,
        "sha256": one.sha256,
        "file_bytes": one.file_bytes,
        "deviation": None
        if one.deviation is None
        else {
            "relative_l2": one.deviation.relative_l2,
            "max_abs": one.deviation.max_abs,
            "limit": one.deviation.limit,
        },
        "counts": dict(one.counts),
        "summary": stats.summary(one).to_json(environment.unit) if one.samples else None,
    }
    if samples:
        values["processes"] = [
            {
                "round": process.round,
                "load_ms": process.load_ms,
                "base_bytes": process.base_bytes,
                "peak_bytes": process.peak_bytes,
                "samples": list(process.samples),
            }
            for process in one.processes
        ]
    return values


def _measurement_from_json(values: Mapping[str, Any]) -> Measurement:
    deviation = values["deviation"]
    return Measurement(
        model=values["model"],
        sha256=values["sha256"],
        file_bytes=values["file_bytes"],
        processes=tuple(
            Process(**{**process, "samples": tuple(int(sample) for sample in process["samples"])})
            for process in values["processes"]
        ),
        deviation=OutputDeviation(**deviation) if deviation else None,
        counts=values["counts"],
    )


def save(comparison: Comparison, path: Path) -> None:
    """Write `comparison` with its raw samples, whole or not at all. Raises OutputError."""
    with atomic_write(path, remedy="Choose another place with --save.") as part:
        part.write_text(json.dumps(comparison.to_json()), encoding="utf-8")


def load(path: Path) -> Comparison:
    """A comparison as `save` wrote it. Raises LoadError."""
    try:
        return Comparison.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(
            f"{path} is not a measurement that trp-bench --save wrote ({type(error).__name__}: {error})."
        ) from error
