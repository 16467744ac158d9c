"""The device that costs are measured on, through trp-bench's own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trp_export.bench import Comparison, Settings, compare
from trp_export.bench.devices import open_device
from trp_export.bench.devices.base import Start
from trp_export.bench.environment import choose_cores
from trp_export.bench.models import BenchModel, read_cases
from trp_export.bench.profile import Profile, profile_and_time
from trp_export.bench.runners.python_runner import CPU
from trp_export.latency.table import Conditions

# Kinds whose runner is onnxruntime's Python package: it has a profiler.
_PROFILED = ("local", "ssh")
_PROFILE_NS = 0.7e9
_PROCESSES = 4
_BUDGET_S = 2.0


def channel_block(specification: str, settings: Settings | None = None) -> int:
    """Output channels that the convs of a device compute at once: ranks are worth rounding up to it.

    Raises DeviceError.
    """
    with open_device(specification, settings or Settings()) as opened:
        return opened.probe().block


@dataclass(frozen=True, slots=True)
class DeviceUnderTest:
    """A device by its specification, how many threads a network gets there, the shapes it is fed, and the precision of
    the networks to be planned."""

    specification: str
    threads: int
    shapes: Mapping[str, tuple[int, ...]]
    precision: str = "fp32"
    settings: Settings = field(default_factory=Settings)

    @property
    def kind(self) -> str:
        return self.specification.partition(":")[0]

    @property
    def profiled(self) -> bool:
        return self.kind in _PROFILED

    def feeding(self, shapes: Mapping[str, tuple[int, ...]]) -> DeviceUnderTest:
        """The same device for a model of other inputs."""
        return replace(self, shapes=shapes)

    def block(self) -> int:
        """Output channels that the device's convs compute at once. Raises DeviceError."""
        return channel_block(self.specification, self.settings)

    def conditions(self) -> Conditions:
        """What costs depend on, as the device itself tells. Raises DeviceError."""
        with open_device(self.specification, self.settings) as opened:
            machine, unit = opened.probe(), opened.unit
        return Conditions(
            device=self.kind,
            cpu=machine.cpu,
            machine=machine.machine,
            logical_cores=machine.logical_cores,
            cores=choose_cores(machine, self.threads, None),
            threads=self.threads,
            provider=CPU,
            onnxruntime=machine.onnxruntime,
            unit="ms" if unit == "ns" else f"million {unit}",
            precision=self.precision,
            build=machine.build,
            features=machine.features,
        )

    def profile(self, file: Path) -> tuple[Profile, float]:
        """Kernel times by layer, and the whole without the profiler, of one fresh process. Raises DeviceError."""
        (case,) = self._cases([file])
        with open_device(self.specification, self.settings) as opened:
            opened.stage([case])
            start = Start(self.threads, choose_cores(opened.probe(), self.threads, None), CPU, self.settings.timeout_s)
            return profile_and_time(opened, 0, case, start, _PROFILE_NS)

    def compare(self, files: Sequence[Path]) -> Comparison:
        """The files side by side, shortly. Raises DeviceError."""
        return compare(
            files,
            device=self.specification,
            threads=self.threads,
            shapes=self.shapes,
            settings=self.settings,
            processes=_PROCESSES if self.kind != "arm" else 1,
            budget_s=_BUDGET_S,
            seed=0,
        )

    def _cases(self, files: Sequence[Path]) -> tuple[BenchModel, ...]:
        return read_cases(files, shapes=self.shapes)
