"""Compare what a device answers before the operators that hide or enlarge differences, such as Sigmoid and TopK.

A sigmoid near zero is exact to 1e-7 absolutely and not relatively, and where two scores are close, rounding changes
their order. So where outputs differ, the values behind which nothing but decoding follows are compared instead.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from trp_export.bench.devices import open_device
from trp_export.bench.devices.base import Settings, Start
from trp_export.bench.models import BenchModel, read_cases
from trp_export.bench.outputs import LEAST_OUTPUT_BYTES, check_outputs, reference_outputs
from trp_export.bench.samples import OutputDeviation
from trp_export.calibration.answers import find_answers, values_of
from trp_export.errors import UnsupportedError
from trp_export.graph.large_files import read_model
from trp_export.graph.model_files import save_model
from trp_export.runtime.partial import extract
from trp_export.system.scratch import Scratch


def check_answers(case: BenchModel, specification: str, settings: Settings, start: Start) -> OutputDeviation | None:
    """How far a device's answers are from this computer's; None where the outputs of a model are its answers.

    Raises VerifyError where they are beyond the case's limit, and DeviceError.
    """
    with Scratch() as scratch:
        undecoded = _undecoded(case, scratch.folder / "answers.onnx")
        if undecoded is None:
            return None
        (wanted,) = reference_outputs([undecoded], settings.timeout_s)
        with open_device(specification, settings) as device:
            device.stage([undecoded])
            runner = device.start(0, start)
            try:
                got = runner.outputs(max(wanted.size_bytes, LEAST_OUTPUT_BYTES))
            finally:
                with suppress(Exception):
                    runner.close()
            return check_outputs(undecoded, got, wanted.comparable, None, device.name)


def _undecoded(case: BenchModel, file: Path) -> BenchModel | None:
    """The same model with its answers as outputs; None where they are its outputs already, or are not known."""
    model = read_model(case.path)
    answers = values_of(find_answers(model))
    if not answers or set(answers) <= {output.name for output in model.graph.outputs}:
        return None
    inputs = [one.name for one in case.inputs]
    save_model(extract(model, inputs, answers, {}), file)
    try:
        (undecoded,) = read_cases([file], inputs=dict(zip(inputs, case.feeds, strict=True)))
    except UnsupportedError:
        return None
    return replace(undecoded, label=case.label)
