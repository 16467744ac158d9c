"""Compare the outputs of a device with those of this computer, before anything is timed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trp_export.bench.devices import open_device
from trp_export.bench.devices.base import Settings, Start
from trp_export.bench.models import BenchModel
from trp_export.bench.samples import OutputDeviation
from trp_export.errors import VerifyError
from trp_export.runtime.distance import Distance, distance_of, largest

Outputs = list[np.ndarray | None]


def reference_outputs(cases: Sequence[BenchModel], timeout_s: float) -> list[Outputs]:
    """The outputs of each model on this computer's CPU, one thread, each in a fresh process. Raises DeviceError."""
    with open_device("local", Settings(timeout_s=timeout_s)) as local:
        local.stage(cases)
        return [
            _outputs_of(local.start(index, Start(1, (), "CPUExecutionProvider", timeout_s)))
            for index in range(len(cases))
        ]


def _outputs_of(runner: object) -> Outputs:
    from trp_export.bench.devices.local import PipeRunner

    assert isinstance(runner, PipeRunner)
    try:
        return runner.outputs()
    finally:
        runner.close()


def check_outputs(
    case: BenchModel, got: Outputs, wanted: Outputs, worst: OutputDeviation | None, device: str
) -> OutputDeviation:
    """The larger of `worst` and the deviation of `got` from `wanted`. Raises VerifyError beyond the case's limit."""
    if len(got) != len(wanted):
        raise VerifyError(f"{case.label}: {len(got)} outputs on {device}, {len(wanted)} on this computer.")
    distances = [Distance(worst.relative_l2, worst.max_abs)] if worst is not None else []
    for index, (here, there) in enumerate(zip(wanted, got, strict=True)):
        if here is None or there is None:
            continue
        if here.shape != there.shape or here.dtype != there.dtype:
            raise VerifyError(
                f"{case.label}: output {index} is {there.dtype} {list(there.shape)} on {device}, "
                f"{here.dtype} {list(here.shape)} on this computer."
            )
        apart = distance_of(here, there)
        if not apart.relative_l2 <= case.limit:
            raise VerifyError(
                f"{case.label}: output {index} on {device} differs from this computer's by {apart.relative_l2:.2g} "
                f"relative L2 (max abs {apart.max_abs:.2g}); {case.limit:g} is allowed for {case.precision}.\n"
                f"Nothing was measured further: the device, or its onnxruntime, computes something else."
            )
        distances.append(apart)
    found = largest(distances)
    return OutputDeviation(found.relative_l2, found.max_abs, case.limit)
