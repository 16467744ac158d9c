"""One measurement: fresh processes in random order, runs interleaved at random, within a time budget.

A round starts one fresh process per model in random order, warms all up, then lets them take turns in random order,
one running while the others wait. Each turn begins with one run that is not counted: it brings the model's weights
back into the caches. A disturbance of the machine then affects all models alike, and where memory happens to be placed
changes from round to round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from trp_export.bench.devices import open_device
from trp_export.bench.devices.base import Device, Ready, Runner, Settings, Start, Turn
from trp_export.bench.environment import Environment, Machine, choose_cores, governor_of, require_same
from trp_export.bench.models import BenchModel, digest_of_values, read_cases, signature
from trp_export.bench.noise import Watch, noise_remarks
from trp_export.bench.outputs import LEAST_OUTPUT_BYTES, Reference, check_outputs, reference_outputs
from trp_export.bench.providers import Nodes, Provider
from trp_export.bench.samples import Comparison, Measurement, OutputDeviation, Process
from trp_export.errors import OptionError, VerifyError
from trp_export.system.scratch import Scratch

TURN_NS = 60e6  # long enough to drown the first, cold run; short enough to interleave finely
WARM_WINDOWS = 6  # after so many windows a process counts as warm
STABLE = 0.02  # two windows that differ by less are stable
FEWEST_TURNS = 3
FEW_INSTRUCTIONS = 1e8
_BY_ANSWERS = "{}: outputs differ, as the last operators enlarge rounding; what they read was compared instead"
LONGEST_S = 1_000_000  # of a budget or a timeout; systems wait for no more than some weeks
KNOWN_LATER = ("provider", "onnxruntime")  # what only the runner can tell, for example in a browser


@dataclass(slots=True)
class _Lane:
    """One model while it is measured, with what its processes have sent so far."""

    case: BenchModel
    wanted: Reference
    processes: list[Process] = field(default_factory=list)
    deviation: OutputDeviation | None = None
    by_answers: bool = False
    nodes: Nodes = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    estimate_ns: float = 0.0
    taken: list[int] = field(default_factory=list)
    peak_bytes: int = 0

    def end_process(self, number: int, ready: Ready) -> None:
        """Store the samples of the process of round `number`, if there are any."""
        if self.taken:
            samples = tuple(self.taken)
            self.processes.append(Process(number, ready.load_ms, ready.base_bytes, self.peak_bytes, samples))
        self.taken = []

    def measurement(self) -> Measurement:
        return Measurement(
            model=self.case.label,
            sha256=self.case.sha256,
            file_bytes=self.case.file_bytes,
            processes=tuple(self.processes),
            deviation=self.deviation,
            counts=dict(self.counts),
        )


def compare(
    models: Sequence[Path],
    *,
    device: str = "local",
    threads: int = 1,
    cores: Sequence[int] | None = None,
    provider: str = "CPUExecutionProvider",
    budget_s: float = 20.0,
    batch: int = 1,
    inputs: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    settings: Settings | None = None,
    processes: int | None = None,
    seed: int | None = None,
    progress: Callable[[float], None] | None = None,
    checkpoint: Callable[[Comparison], None] | None = None,
    like: Environment | None = None,
) -> Comparison:
    """Measure `models` side by side on `device`; the first is the reference of all ratios.

    `budget_s` is the wall time for all rounds together; slow models may need more, since at least eight processes
    of each are needed, unless `processes` sets their number. A `provider` that leaves convs or matrix products to the
    CPU is refused, unless the CPU is named as well: NAME,CPUExecutionProvider. `inputs` maps input names to arrays
    (default random), `shapes` gives sizes of dynamic dimensions. `progress` receives the share that is done.
    `checkpoint` receives what has been measured after each round, and when something ends the measurement early.
    `like` is the environment of samples to compare with: another environment is refused before anything is measured.

    Raises LoadError, OptionError, UnsupportedError, DeviceError, EnvironmentMismatchError, and VerifyError when the
    device's outputs are not those of this computer.
    """
    settings = settings or Settings()
    for what, seconds in (("time budget", budget_s), ("timeout", settings.timeout_s)):
        if not 0 < seconds <= LONGEST_S:
            raise OptionError(f"the {what} must be above 0 s and at most {LONGEST_S:,} s, not {seconds:g}")
    asked = Provider.read(provider)
    begin = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(Scratch()).folder
        cases = read_cases(list(map(Path, models)), batch=batch, inputs=inputs, shapes=shapes, folder=folder)
        opened = stack.enter_context(open_device(device, settings))
        machine = opened.probe()
        start = Start(threads, choose_cores(machine, threads, cores), asked.name, settings.timeout_s)
        environment = _environment(opened, machine, start, cases[0])
        if like:
            require_same(like, environment, besides=KNOWN_LATER)
        wanted = reference_outputs(cases, settings.timeout_s)
        opened.stage(cases)
        lanes = [_Lane(case, one) for case, one in zip(cases, wanted, strict=True)]
        run = _Run(opened, machine, start, environment, asked, lanes, seed, _recheck(device, settings, start))
        limits = (processes, processes) if processes else opened.rounds
        run.rounds(budget_s, limits, progress or _ignore, checkpoint or _ignore, begin)
        return run.comparison(time.monotonic() - begin)


def _recheck(device: str, settings: Settings, start: Start) -> Callable[[BenchModel], OutputDeviation | None]:
    """`check_answers` on a device; what finds answers in a graph is imported only where outputs differ."""

    def check(case: BenchModel) -> OutputDeviation | None:
        from trp_export.bench.answers import check_answers

        return check_answers(case, device, settings, start)

    return check


def _random_outputs(lane: _Lane) -> str:
    """The remark on a model that draws random numbers."""
    which = ", ".join(map(str, sorted(lane.wanted.random)))
    plural = "s" if len(lane.wanted.random) > 1 else ""
    return f"{lane.case.label} gives other values in each run at output{plural} {which}, which was not compared"


def _ignore(value: object) -> None:
    """Nobody wants to know."""


def _environment(device: Device, machine: Machine, start: Start, case: BenchModel) -> Environment:
    """Where samples of `case` are taken, as far as that is known before a runner says what it really uses."""
    return Environment(
        device=device.name,
        cpu=machine.cpu,
        machine=machine.machine,
        system=machine.system,
        logical_cores=machine.logical_cores,
        governor=governor_of(machine, start.cores),
        cores=start.cores,
        threads=start.threads,
        provider=start.provider,
        onnxruntime=machine.onnxruntime,
        inputs=signature(case),
        unit=device.unit,
        input_values=digest_of_values(case),
    )


class _Run:
    """The rounds of one measurement on one open device."""

    def __init__(
        self,
        device: Device,
        machine: Machine,
        start: Start,
        environment: Environment,
        provider: Provider,
        lanes: list[_Lane],
        seed: int | None,
        check_answers: Callable[[BenchModel], OutputDeviation | None],
    ) -> None:
        self.device, self.machine, self.start, self.lanes = device, machine, start, lanes
        self.asked, self.check_answers = provider, check_answers
        self.random = random.Random(seed)
        self.watch = Watch()
        self.environment = environment

    def comparison(self, seconds: float) -> Comparison:
        """Everything measured so far."""
        measurements = tuple(lane.measurement() for lane in self.lanes)
        notes = noise_remarks(measurements, self.machine, self.watch.others(), self.environment)
        notes += tuple(_random_outputs(lane) for lane in self.lanes if lane.wanted.random)
        notes += tuple(self.asked.describe(lane.case.label, lane.nodes) for lane in self.lanes if lane.nodes)
        notes += tuple(
            f"{lane.case.label}: {lane.case.resized}: it is measured at these"
            for lane in self.lanes
            if lane.case.resized
        )
        notes += tuple(_BY_ANSWERS.format(lane.case.label) for lane in self.lanes if lane.by_answers)
        fed = sorted({signature(lane.case) for lane in self.lanes})
        if len(fed) > 1:
            notes += (f"the models take different inputs ({' / '.join(fed)}): their ratio is not that of equal work",)
        return Comparison(self.environment, measurements, notes, seconds)

    def rounds(
        self,
        budget_s: float,
        limits: tuple[int, int],
        progress: Callable[[float], None],
        checkpoint: Callable[[Comparison], None],
        begin: float,
    ) -> None:
        """Rounds until the budget is used up; the first one shows how many fit."""
        clock = time.monotonic
        first = clock()
        number, count = 0, limits[1]
        try:
            while number < count:
                share_s = max(0.0, first + budget_s - clock()) / (count - number)
                overhead_s = self.round(number, share_s)
                if number == 0:
                    # As many rounds as leave half of the budget for samples, within the limits.
                    count = max(limits[0], min(limits[1], int(budget_s / (2 * max(overhead_s, 1e-3)))))
                number += 1
                progress(number / count)
                if number < count:
                    checkpoint(self.comparison(clock() - begin))
        except BaseException:
            if any(lane.processes for lane in self.lanes):
                checkpoint(self.comparison(clock() - begin))
            raise
        checkpoint(self.comparison(clock() - begin))

    def round(self, number: int, share_s: float) -> float:
        """One fresh process per model, then turns for what is left of `share_s`. Returns the seconds before those."""
        begin = time.monotonic()
        pairs: list[tuple[_Lane, Runner]] = []
        try:
            for index in self.random.sample(range(len(self.lanes)), len(self.lanes)):
                self._start(index, pairs)
            overhead_s = time.monotonic() - begin
            turns = 0
            while turns < FEWEST_TURNS or time.monotonic() - begin < share_s:
                for lane, runner in self.random.sample(pairs, len(pairs)):
                    turn = self._turn(lane, runner)
                    lane.taken += turn.samples
                    lane.peak_bytes = turn.peak_bytes
                turns += 1
                if self.device.unit != "ns":
                    break
            return overhead_s
        finally:
            for lane, runner in pairs:
                lane.end_process(number, runner.ready)
                with suppress(Exception):
                    runner.close()

    def _start(self, index: int, pairs: list[tuple[_Lane, Runner]]) -> None:
        """Start a process, put it among the others so that it will be ended, check what it computes, warm it up."""
        lane = self.lanes[index]
        runner = self.device.start(index, self.start)
        pairs.append((lane, runner))
        ready = runner.ready
        self.environment = replace(self.environment, provider=ready.provider, onnxruntime=ready.onnxruntime)
        lane.nodes = ready.nodes
        self.asked.check(lane.case.label, lane.nodes)
        self._check(lane, runner)
        self._warm(lane, runner)

    def _check(self, lane: _Lane, runner: Runner) -> None:
        """Compare a process's outputs with those of this computer. Raises VerifyError.

        Where they differ, the answers before the last operators count, once for all processes of a model.
        """
        if lane.by_answers:
            return
        outputs = runner.outputs(max(lane.wanted.size_bytes, LEAST_OUTPUT_BYTES))
        try:
            lane.deviation = check_outputs(lane.case, outputs, lane.wanted.comparable, lane.deviation, self.device.name)
        except VerifyError:
            deviation = self.check_answers(lane.case)
            if deviation is None:
                raise
            lane.deviation, lane.by_answers = deviation, True

    def _warm(self, lane: _Lane, runner: Runner) -> None:
        """Run until two windows agree. Leaves the lane's estimate of one inference in ns."""
        if self.device.unit != "ns":
            return
        first = runner.run(1, 1).samples[0]
        estimate, previous = float(first), 0.0
        for _ in range(WARM_WINDOWS):
            estimate = float(np.median(runner.run(*self._amount(estimate, self.device.warm_window_ns)).samples))
            if previous and abs(estimate / previous - 1) < STABLE:
                break
            previous = estimate
        lane.estimate_ns = max(estimate, 1.0)

    def _turn(self, lane: _Lane, runner: Runner) -> Turn:
        """Samples for about TURN_NS, after one that is not counted. An emulator counts one inference instead."""
        if self.device.unit != "ns":
            turn = runner.run(1, 1)
            if turn.samples[0] < FEW_INSTRUCTIONS:  # in a short inference the start-up of the first one would show
                turn = runner.run(1, 1)
            lane.counts = turn.counts
            return turn
        count, inner = self._amount(lane.estimate_ns, TURN_NS)
        turn = runner.run(count + 1, inner)
        return replace(turn, samples=turn.samples[1:])

    def _amount(self, estimate_ns: float, window_ns: float) -> tuple[int, int]:
        """Samples and inferences per sample that fill `window_ns` with samples the clock can resolve."""
        inner = max(1, round(self.device.shortest_sample_ns / max(estimate_ns, 1.0)))
        return max(1, int(window_ns / (inner * max(estimate_ns, 1.0)))), inner
