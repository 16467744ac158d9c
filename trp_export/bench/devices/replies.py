"""What runners reply, checked field by field: a device is not trusted.

Every function raises DeviceError, which names the runner, for a reply that is not what the protocol says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from trp_export.bench.devices.base import Ready, Start, Turn
from trp_export.bench.environment import ROWS_AT_ONCE, Core, Machine
from trp_export.bench.runners import python_runner
from trp_export.errors import DeviceError
from trp_export.system.json_fields import Fields, parse_json

MOST_LINE_BYTES = 1 << 20
_MOST_CORES = 4096
_LARGEST_BLOCK = 64
_MOST_SAMPLES = 100_000
_MOST_OUTPUTS = 10_000
_MOST_DIMENSIONS = 64
_MOST_NODES = 10_000_000
_MOST_NS = 1 << 62
_LONGEST_TEXT = 20_000
_FILE = re.compile(r"[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class OutputFile:
    """Where a runner wrote an output, and what its bytes mean. `element` is ONNX's number of the type."""

    name: str
    element: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(python_runner.ELEMENTS[self.element])

    @property
    def size_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


def read_reply(line: bytes, what: str) -> dict[str, Any]:
    """One line of the protocol. An error that the runner reports is raised as one."""
    if not line.lstrip().startswith(b"{"):
        raise DeviceError(f"{what} said {line[:80]!r} instead of a reply; is another program in its place?")
    reply: dict[str, Any] = parse_json(line, f"the reply of {what}", _LONGEST_TEXT, DeviceError)
    if "error" in reply:
        raise DeviceError(f"{what}: {reply['error']}")
    return reply


def read_ready(reply: Mapping[str, Any], start: Start, what: str) -> Ready:
    """A runner's first line. Raises DeviceError also where it is not what was asked for."""
    if reply.get("protocol") != python_runner.PROTOCOL:
        raise DeviceError(
            f"{what} speaks protocol {str(reply.get('protocol'))[:80]}, this version {python_runner.PROTOCOL}.\n"
            f"Rebuild it: tools/build_native_runner.sh"
        )
    fields = _fields(reply, what)
    provider = fields.text("provider")
    if provider != start.provider:
        raise DeviceError(f"{what} used {provider} although {start.provider} was asked for.")
    affinity = fields.wholes("affinity", _MOST_CORES) if reply.get("affinity") else ()
    if start.cores and affinity and affinity != start.cores:
        raise DeviceError(f"{what} runs on cores {affinity} although {start.cores} were asked for.")
    load_ms = fields.number("load_ms")
    if load_ms < 0:
        raise DeviceError(f"{what} says that loading took {load_ms:g} ms.")
    return Ready(
        load_ms=load_ms,
        base_bytes=fields.whole("base_bytes", _MOST_NS),
        onnxruntime=fields.text("onnxruntime"),
        provider=provider,
        threads=fields.whole("threads", _MOST_CORES) if "threads" in reply else start.threads,
        nodes=_nodes(fields.inner("nodes")) if reply.get("nodes") else {},
    )


def _nodes(fields: Fields) -> dict[str, dict[str, int]]:
    providers = {provider: fields.inner(provider) for provider in fields.values}
    return {
        provider: {operator: counts.whole(operator, _MOST_NODES) for operator in counts.values}
        for provider, counts in providers.items()
    }


def read_turn(reply: Mapping[str, Any], samples: int, what: str) -> Turn:
    """The samples of one turn, of which there are as many as were asked for."""
    fields = _fields(reply, what)
    taken = fields.wholes("samples", _MOST_SAMPLES, _MOST_NS)
    if len(taken) != samples:
        raise DeviceError(f"{what} sent {len(taken)} samples instead of {samples}.")
    if not all(taken):
        raise DeviceError(f"{what} says that an inference took no time.")
    return Turn(taken, fields.whole("peak_bytes", _MOST_NS), {})


def read_output_files(reply: Mapping[str, Any], most_bytes: int, what: str) -> list[OutputFile | None]:
    """The outputs that a runner wrote, None for those that are not tensors; all together at most `most_bytes`."""
    listed = list(_fields(reply, what).listed("outputs", _MOST_OUTPUTS))
    files = [None if "skipped" in output.values else _output_file(output, what) for output in listed]
    size_bytes = sum(file.size_bytes for file in files if file)
    if size_bytes > most_bytes:
        raise DeviceError(
            f"{what} says that its outputs have {size_bytes:,} bytes; at most {most_bytes:,} were expected."
        )
    return files


def _output_file(fields: Fields, what: str) -> OutputFile:
    name, element = fields.text("file"), fields.whole("element")
    if not _FILE.fullmatch(name):
        raise DeviceError(f"{what} wrote an output to {name[:80]!r}, which is not a plain name.")
    if element not in python_runner.ELEMENTS:
        raise DeviceError(f"{what} sent an output of the unknown type {element}.")
    return OutputFile(name, element, fields.wholes("shape", _MOST_DIMENSIONS))


def decode(data: bytes, file: OutputFile) -> np.ndarray:
    """The raw bytes of an output as an array."""
    if len(data) != file.size_bytes:
        raise DeviceError(f"an output came back cut short: {len(data)} bytes for {file.dtype.name} {list(file.shape)}.")
    return np.frombuffer(data, dtype=file.dtype).reshape(file.shape)


def read_machine(reply: Mapping[str, Any], what: str) -> Machine:
    """What a probe answers. Raises DeviceError also where onnxruntime is missing there."""
    fields = _fields(reply, what)
    if "unusable" in reply:
        raise DeviceError(f"{fields.text('unusable')}\nInstall it on the device: python3 -m pip install onnxruntime")
    return Machine(
        cpu=fields.text("cpu"),
        machine=fields.text("machine"),
        system=fields.text("system"),
        logical_cores=fields.whole("logical_cores", _MOST_CORES),
        cores=tuple(_core(core) for core in fields.listed("cores", _MOST_CORES)),
        load=fields.number("load"),
        can_pin=fields.flag("can_pin"),
        onnxruntime=fields.text("onnxruntime"),
        providers=fields.texts("providers", _MOST_CORES),
        build=fields.text("build") if "build" in reply else "",
        features=fields.text("features") if "features" in reply else "",
        block=max(1, fields.whole("block", _LARGEST_BLOCK)) if "block" in reply else ROWS_AT_ONCE,
    )


def _core(fields: Fields) -> Core:
    return Core(
        core=fields.whole("core", _MOST_CORES),
        siblings=fields.text("siblings"),
        capacity=fields.whole("capacity"),
        governor=fields.text("governor"),
        max_khz=fields.whole("max_khz"),
    )


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One run of one kernel, as onnxruntime's profiler saw it. `node_index` tells kernels of one name apart."""

    name: str
    operator: str
    node_index: str
    us: float
    output_shape: tuple[int, ...]


def read_kernel_times(profile: bytes, what: str) -> list[KernelTime]:
    """The kernels in the file that onnxruntime's profiler wrote."""
    events = parse_json(profile, f"the profile of {what}", _LONGEST_TEXT, DeviceError)
    if not isinstance(events, list):
        raise DeviceError(f"the profile of {what} is not a list of events.")
    nodes = (event for event in events if isinstance(event, dict) and event.get("cat") == "Node")
    return [_kernel_time(event, what) for event in nodes if str(event.get("name", "")).endswith("_kernel_time")]


def _kernel_time(event: Mapping[str, Any], what: str) -> KernelTime:
    fields = Fields(event, f"the profile of {what}", DeviceError)
    facts = fields.inner("args")
    shapes: Sequence[Any] = (
        facts.values_of("output_type_shape", _MOST_OUTPUTS) if "output_type_shape" in facts.values else ()
    )
    first = next((Fields(shape, facts.where, DeviceError) for shape in shapes if shape), None)
    return KernelTime(
        name=fields.text("name").removesuffix("_kernel_time"),
        operator=facts.text("op_name"),
        node_index=facts.text("node_index"),
        us=fields.number("dur"),
        output_shape=first.wholes(next(iter(first.values)), _MOST_DIMENSIONS) if first else (),
    )


def _fields(reply: Mapping[str, Any], what: str) -> Fields:
    return Fields(reply, f"the reply of {what}", DeviceError)
