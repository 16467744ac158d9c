"""The command line that makes the same export again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from trp_export.inputs.images import Preprocessing
from trp_export.load import Source
from trp_export.load.source import LoadOptions
from trp_export.options import (
    Benchmark,
    Calibration,
    Macs,
    MaxDrop,
    Options,
    Params,
    Rule,
    SavedPlan,
    Selection,
    Speedup,
)
from trp_export.planning.rules import Energy, Rank, Threshold


def command_line(source: Source, options: Options) -> str:
    """`trp-export` with every option that is not its default. Files by name only: folders are the user's own.

    A model that did not come from an ONNX file is called MODEL.
    """
    model = source.path.name if source.path else "MODEL"
    parts = [
        *("trp-export", model),
        *_rule(options.rule),
        *_selection(options.selection),
        *_load(options.load),
        *(_calibration(options.calibration) if options.calibration else ()),
        *(("--eval", options.images.path.name) if options.images else ()),
        *_preprocessing(options),
        *(("--precision", options.precision) if options.precision != "fp32" else ()),
        *(("--best",) if options.best else ()),
        *_benchmark(options.benchmark),
        *(word for path in options.tables.given for word in ("--latency", path.name)),
        *(("--save-latency", options.tables.save.name) if options.tables.save else ()),
        *(("-o", options.output.name) if options.output else ()),
        *(("--report", options.report.name) if options.report else ()),
        *(("--bundle", "DIR") if options.bundle else ()),
        *(("--ort", "--target", options.bundle.ort) if options.bundle and options.bundle.ort else ()),
    ]
    return shlex.join(parts)


def _rule(rule: Rule | MaxDrop | None) -> tuple[str, ...]:
    match rule:
        case Energy():
            return "--energy", repr(rule.share)
        case Threshold():
            return ("--threshold", repr(rule.value), *(("--absolute",) if rule.absolute else ()))
        case Rank():
            return "--rank", str(rule.value)
        case Macs():
            return "--macs", repr(rule.ratio)
        case Params():
            return "--params", repr(rule.ratio)
        case Speedup():
            return "--speedup", repr(rule.ratio)
        case MaxDrop():
            return ("--max-drop", repr(rule.points), *(("--by", rule.by) if rule.by != "macs" else ()))
        case SavedPlan():
            return "--plan", rule.path.name
        case None:
            return ()


def _selection(selection: Selection) -> Iterator[str]:
    default = Selection()
    if selection.scheme != default.scheme:
        yield from ("--scheme", selection.scheme)
    for pattern in selection.only:
        yield from ("--only", pattern)
    for pattern in selection.skip:
        yield from ("--skip", pattern)
    if selection.align != default.align:
        yield from ("--align", str(selection.align))


def _load(options: LoadOptions) -> Iterator[str]:
    if options.arch:
        yield from ("--arch", options.arch)
    if options.input_shape:
        yield from ("--input-shape", _list(options.input_shape))
    if options.static:
        yield "--static"
    if options.trust_pickle:
        yield "--trust-pickle"


def _calibration(calibration: Calibration) -> Iterator[str]:
    synthetic = not isinstance(calibration.path, Path)
    default = Calibration(calibration.path, count=None) if synthetic else Calibration(calibration.path)
    yield from ("--calib", calibration.path.name if isinstance(calibration.path, Path) else calibration.path)
    if calibration.count != default.count:
        yield from ("--calib-count", str(calibration.count))
    if calibration.seed != default.seed:
        yield from ("--seed", str(calibration.seed))
    if not calibration.recover:
        yield "--no-recover"
    if calibration.tune_minutes is not None:
        yield from ("--tune", f"{calibration.tune_minutes:g}")
    if calibration.tune_steps is not None:
        yield from ("--tune-steps", str(calibration.tune_steps))
    for path in calibration.moments:
        yield from ("--moments", path.name)
    if calibration.save_moments is not None:
        yield from ("--save-moments", calibration.save_moments.name)


def _preprocessing(options: Options) -> Iterator[str]:
    """Of the images of --calib and --eval: the command prepares both alike."""
    given = options.shown or options.bundle
    chosen = given.preprocessing if given else Preprocessing()
    for name, values in (("--mean", chosen.mean), ("--std", chosen.std)):
        if values is not None:
            yield from (name, _list(values))
    if chosen.resize is not None:
        yield from ("--resize", str(chosen.resize))
    if chosen.crop is not None:
        yield from ("--crop", str(chosen.crop[0]))


def _benchmark(benchmark: Benchmark) -> Iterator[str]:
    default = Benchmark()
    if not benchmark.run:
        yield "--no-bench"
    if benchmark.threads != default.threads:
        yield from ("--threads", str(benchmark.threads))
    if benchmark.budget_s != default.budget_s:
        yield from ("--budget", f"{benchmark.budget_s:g}")
    if benchmark.require:
        yield "--require-speedup"
    if benchmark.device != default.device:
        yield from ("--device", benchmark.device)


def _list(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
