"""Measurements as JSON: without raw samples for reports, with them for files, and back from untrusted files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trp_export.bench import stats
from trp_export.bench.environment import Environment
from trp_export.bench.samples import Comparison, Measurement, OutputDeviation, Process
from trp_export.errors import LoadError
from trp_export.system.files import atomic_write, read_bounded
from trp_export.system.json_fields import Fields, parse_json

SCHEMA = 1
_MOST_SAMPLES = 6_000_000  # of all models together: ten minutes of the shortest
_MOST_BYTES = 14 * _MOST_SAMPLES  # a second has ten digits, and takes one
_MOST_MODELS = 1000
_LARGEST = 1 << 62
_ENVIRONMENT_TEXTS = ("device", "cpu", "machine", "system", "governor", "provider", "onnxruntime", "inputs", "unit")


def to_json(comparison: Comparison, *, samples: bool = True, paired: bool = True) -> dict[str, Any]:
    """A plain dict: environment, each model with its statistics (and raw samples), ratios to the first model.

    Of more samples than `load` reads, one in so many is kept, which moves no median; the statistics are of all.
    `paired` is False where the first model was measured in another run.
    """
    first, *others = comparison.measurements
    ratios = [None, *(_ratio(first, other, paired) for other in others)]
    count = sum(len(one.samples) for one in comparison.measurements)
    step = max(1, -(-count // _MOST_SAMPLES)) if samples else None
    return {
        "schema": SCHEMA,
        "environment": comparison.environment.to_json(),
        "seconds": comparison.seconds,
        "noise": list(comparison.noise),
        "models": [
            {**_measurement(measurement, comparison.environment, step), "ratio": ratio}
            for measurement, ratio in zip(comparison.measurements, ratios, strict=True)
        ],
    }


def save(comparison: Comparison, path: Path) -> None:
    """Write a comparison with its raw samples, whole or not at all. Raises OutputError."""
    with atomic_write(path, remedy="Choose another place with --save.") as part:
        part.write_text(json.dumps(to_json(comparison)), encoding="utf-8")


def load(path: Path) -> Comparison:
    """A comparison as `save` wrote it. Raises LoadError for anything else."""
    where = f"{path}, which should be a file of trp-bench --save,"
    return from_json(parse_json(read_bounded(path, _MOST_BYTES), where), where)


def from_json(document: Any, where: str) -> Comparison:
    """The reverse of `to_json` with samples. Raises LoadError for anything else, and where no model has samples."""
    fields = Fields(document, where)
    schema = fields.whole("schema")
    if schema != SCHEMA:
        raise LoadError(f"{where}: schema {schema} is unknown; this version reads {SCHEMA}.")
    measurements = tuple(_read_measurement(model) for model in fields.listed("models", _MOST_MODELS))
    if not measurements or not measurements[0].samples:
        raise LoadError(f"{where}: there are no samples of a first model.")
    return Comparison(
        environment=_read_environment(fields.inner("environment")),
        measurements=measurements,
        noise=fields.texts("noise", _MOST_MODELS),
        seconds=fields.number("seconds"),
    )


def _ratio(reference: Measurement, other: Measurement, paired: bool) -> dict[str, Any] | None:
    """The ratio as a plain dict, None where a run that was stopped has no samples to compare."""
    first, second = ({process.round for process in one.processes if process.samples} for one in (reference, other))
    comparable = first & second if paired else first and second
    return stats.ratio(reference, other, paired=paired).to_json() if comparable else None


def _measurement(measurement: Measurement, environment: Environment, step: int | None) -> dict[str, Any]:
    """`step` is the distance of the samples that are kept, None for none of them."""
    deviation = measurement.deviation
    values: dict[str, Any] = {
        "model": measurement.model,
        "sha256": measurement.sha256,
        "file_bytes": measurement.file_bytes,
        "deviation": deviation
        and {"relative_l2": deviation.relative_l2, "max_abs": deviation.max_abs, "limit": deviation.limit},
        "counts": dict(measurement.counts),
        "summary": stats.summary(measurement).to_json(environment.unit) if measurement.samples else None,
    }
    if step is not None:
        values["processes"] = [_process(process, step) for process in measurement.processes]
    return values


def _process(process: Process, step: int) -> dict[str, Any]:
    return {
        "round": process.round,
        "load_ms": process.load_ms,
        "base_bytes": process.base_bytes,
        "peak_bytes": process.peak_bytes,
        "samples": list(process.samples[::step]),
    }


def _read_environment(fields: Fields) -> Environment:
    texts = {name: fields.text(name) for name in _ENVIRONMENT_TEXTS}
    environment = Environment(
        **texts,
        logical_cores=fields.whole("logical_cores", _LARGEST),
        cores=fields.wholes("cores", _MOST_MODELS, _LARGEST),
        threads=fields.whole("threads", _LARGEST),
        input_values=fields.text("input_values") if "input_values" in fields.values else "",
    )
    fields.nothing_more()
    return environment


def _read_measurement(fields: Fields) -> Measurement:
    counts = fields.inner("counts")
    return Measurement(
        model=fields.text("model"),
        sha256=fields.text("sha256"),
        file_bytes=fields.whole("file_bytes", _LARGEST),
        processes=tuple(_read_process(process) for process in fields.listed("processes", _MOST_MODELS)),
        deviation=_read_deviation(fields.inner("deviation")) if fields.has("deviation") else None,
        counts={name: counts.whole(name, _LARGEST) for name in counts.values},
    )


def _read_deviation(fields: Fields) -> OutputDeviation:
    return OutputDeviation(fields.number("relative_l2"), fields.number("max_abs"), fields.number("limit"))


def _read_process(fields: Fields) -> Process:
    samples = fields.wholes("samples", _MOST_SAMPLES, _LARGEST)
    if not samples or not all(samples):
        raise LoadError(f"{fields.where}: samples must be at least one number, all of them above 0.")
    return Process(
        round=fields.whole("round", _LARGEST),
        load_ms=fields.number("load_ms"),
        base_bytes=fields.whole("base_bytes", _LARGEST),
        peak_bytes=fields.whole("peak_bytes", _LARGEST),
        samples=samples,
    )
