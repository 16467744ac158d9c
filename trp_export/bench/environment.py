"""What a measurement depends on besides the model, and whether two measurements may be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from trp_export.errors import EnvironmentMismatchError, OptionError
from trp_export.system.text import brief


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and how samples were taken. Two that differ in any field are never compared.

    `cores` are the core numbers the threads were pinned to, empty where the system cannot pin.
    `unit` is what a sample counts: "ns" per inference, or "instructions" per inference under emulation.
    `input_values` is a short digest of what was fed, empty in files of earlier versions, which do not tell.
    """

    device: str
    cpu: str
    machine: str
    system: str
    logical_cores: int
    governor: str
    cores: tuple[int, ...]
    threads: int
    provider: str
    onnxruntime: str
    inputs: str
    unit: str = "ns"
    input_values: str = ""

    def to_json(self) -> dict[str, Any]:
        """A plain dict, tuples as lists."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }


@dataclass(frozen=True, slots=True)
class Core:
    """One core as the system describes it, with 0 for what is unknown.

    `capacity` tells big from LITTLE, 1024 for the fastest. Only ARM has it; elsewhere the highest frequency tells.
    """

    core: int
    siblings: str
    capacity: int
    governor: str
    max_khz: int


# The block of a machine that says nothing of it: the rows of a matrix product.
ROWS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Machine:
    """A device before anything runs on it, as its `probe` describes it.

    `build` and `features` are digests of onnxruntime's build and the processor's instruction sets, empty if unknown.
    `block` is how many output channels its convs compute at once: a rank is padded up to a multiple of it.
    """

    cpu: str
    machine: str
    system: str
    logical_cores: int
    cores: tuple[Core, ...]
    load: float
    can_pin: bool
    onnxruntime: str
    providers: tuple[str, ...]
    build: str = ""
    features: str = ""
    block: int = ROWS_AT_ONCE


def choose_cores(machine: Machine, threads: int, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The cores to pin `threads` threads to: those wanted, else the fastest distinct ones, highest numbers first.

    Low-numbered cores serve most interrupts, and two hardware threads of one core slow each other down.
    Raises OptionError for cores that do not exist there or are fewer than the threads.
    """
    if threads < 1:
        raise OptionError(f"threads must be at least 1, not {threads}")
    known = {core.core: core for core in machine.cores}
    if wanted:
        if missing := sorted(set(wanted) - set(known)):
            raise OptionError(f"no core {missing[0]} on this device; it offers {', '.join(map(str, sorted(known)))}")
        if len(set(wanted)) < threads:
            raise OptionError(
                f"{threads} threads on {len(set(wanted))} cores would wait for one another; "
                "name as many cores as threads"
            )
        if not machine.can_pin:
            raise OptionError("this system cannot pin a process to cores; leave --cores out")
        return tuple(sorted(set(wanted)))
    if threads > (offered := len(known) or machine.logical_cores):
        raise OptionError(f"{threads} threads on a device that offers {offered} cores; ask for fewer")
    if not machine.can_pin:
        return ()
    order = sorted(known.values(), key=lambda core: (-core.capacity, -core.max_khz, -core.core))
    first_of_pair = {core.siblings: core for core in reversed(order)}
    distinct = [core for core in order if first_of_pair[core.siblings] is core]
    rest = [core for core in order if core not in distinct]
    return tuple(sorted(core.core for core in [*distinct, *rest][:threads]))


def governor_of(machine: Machine, cores: Sequence[int]) -> str:
    """The frequency governors of the chosen cores, `unknown` where the system does not say (most virtual machines)."""
    names = {core.governor for core in machine.cores if not cores or core.core in cores} - {""}
    return "+".join(sorted(names)) or "unknown"


def require_same(one: Environment, other: Environment, *, besides: Collection[str] = ()) -> None:
    """Raise EnvironmentMismatchError that lists each field, but for those of `besides`, in which they differ."""
    untold = () if one.input_values and other.input_values else ("input_values",)
    fields = [field.name for field in dataclasses.fields(Environment) if field.name not in (*besides, *untold)]
    differing = [name for name in fields if getattr(one, name) != getattr(other, name)]
    if not differing:
        return
    lines = [f"{name}: {brief(getattr(one, name))} / {brief(getattr(other, name))}" for name in differing]
    raise EnvironmentMismatchError(
        "these measurements cannot be compared, they differ in\n"
        + "\n".join(lines)
        + "\nMeasure both files in one run."
    )
