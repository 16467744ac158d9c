"""What a device computes must be what this computer computes: compared before anything is timed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trp_export.bench.devices import open_device
from trp_export.bench.devices.base import Settings, Start
from trp_export.bench.models import BenchModel
from trp_export.bench.samples import OutputDeviation
from trp_export.errors import VerifyError

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
    relative, absolute = 0.0, 0.0
    for index, (here, there) in enumerate(zip(wanted, got, strict=True)):
        if here is None or there is None:
            continue
        if here.shape != there.shape or here.dtype != there.dtype:
            raise VerifyError(
                f"{case.label}: output {index} is {there.dtype} {list(there.shape)} on {device}, "
                f"{here.dtype} {list(here.shape)} on this computer."
            )
        one = deviation(here, there)
        if not one[0] <= case.limit:
            raise VerifyError(
                f"{case.label}: output {index} on {device} differs from this computer's by {one[0]:.2g} relative L2 "
                f"(max abs {one[1]:.2g}); {case.limit:g} is allowed for {case.precision}.\n"
                f"Nothing was measured further: the device, or its onnxruntime, computes something else."
            )
        relative, absolute = max(relative, one[0]), max(absolute, one[1])
    if worst is not None:
        relative, absolute = max(relative, worst.relative_l2), max(absolute, worst.max_abs)
    return OutputDeviation(relative, absolute, case.limit)


def deviation(wanted: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    """Relative L2 and largest absolute difference; for integers and booleans the share of elements that differ.

    Equal infinities and NaNs at the same places count as equal; at different places the deviation is infinite.
    """
    if wanted.size == 0:
        return 0.0, 0.0
    if wanted.dtype.kind != "f":
        share = float(np.mean(wanted != got))
        return share, share
    one, other = wanted.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True) or not np.isfinite(other[finite]).all():
        return float("inf"), float("inf")
    difference = one[finite] - other[finite]
    if not difference.size or not np.any(difference):
        return 0.0, 0.0
    scale = float(np.linalg.norm(one[finite])) or 1.0
    return float(np.linalg.norm(difference)) / scale, float(np.abs(difference).max())
