"""Compare the outputs of a device with those of this computer, before anything is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trp_export.bench.devices import open_device
from trp_export.bench.devices.base import Settings, Start
from trp_export.bench.models import BenchModel
from trp_export.bench.samples import OutputDeviation
from trp_export.errors import VerifyError
from trp_export.runtime.distance import Distance, distance_of, largest

Outputs = list[np.ndarray | None]
LEAST_OUTPUT_BYTES = 1 << 20  # that a device may always send, so that a wrong shape is named as such


@dataclass(frozen=True, slots=True)
class Reference:
    """The outputs of a model on this computer, and which of them differ from run to run."""

    outputs: Outputs
    random: frozenset[int] = frozenset()

    @property
    def size_bytes(self) -> int:
        """Of all outputs together."""
        return sum(output.nbytes for output in self.outputs if output is not None)

    @property
    def comparable(self) -> Outputs:
        """The outputs that another device must give, None in the place of the others."""
        return [None if index in self.random else output for index, output in enumerate(self.outputs)]


def reference_outputs(cases: Sequence[BenchModel], timeout_s: float) -> list[Reference]:
    """The outputs of each model on this computer's CPU, one thread, each in a fresh process. Raises DeviceError."""
    with open_device("local", Settings(timeout_s=timeout_s)) as local:
        local.stage(cases)
        return [
            _reference(case, local.start(index, Start(1, (), "CPUExecutionProvider", timeout_s)))
            for index, case in enumerate(cases)
        ]


def _reference(case: BenchModel, runner: object) -> Reference:
    """Two runs: a model that draws random numbers answers otherwise in the second."""
    from trp_export.bench.devices.local import PipeRunner

    assert isinstance(runner, PipeRunner)
    try:
        first, second = runner.outputs(), runner.outputs()
    finally:
        runner.close()
    pairs = enumerate(zip(first, second, strict=True))
    random = {
        index
        for index, (one, other) in pairs
        if one is not None and other is not None and not distance_of(one, other).relative_l2 <= case.limit
    }
    return Reference(first, frozenset(random))


def check_outputs(
    case: BenchModel, got: Outputs, wanted: Outputs, worst: OutputDeviation | None, device: str
) -> OutputDeviation | None:
    """The larger of `worst` and the deviation of `got` from `wanted`; None where there is nothing to compare.

    Raises VerifyError beyond the case's limit.
    """
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
    if not distances:
        return None
    found = largest(distances)
    return OutputDeviation(found.relative_l2, found.max_abs, case.limit)
