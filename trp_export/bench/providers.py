"""Which nodes an execution provider runs, and which it leaves to the CPU.

onnxruntime gives the nodes that a provider lacks to the CPU without a word: a network may be timed "on" a provider that
runs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trp_export.bench.runners.python_runner import CPU
from trp_export.errors import DeviceError, OptionError

HEAVY = ("Conv", "Gemm", "MatMul")  # Words in the names of the kernels that do a layer's multiply-adds.
Nodes = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider by onnxruntime's name. `shared`: convs and matrix products may be left to the CPU."""

    name: str
    shared: bool

    @classmethod
    def read(cls, text: str) -> Provider:
        """NAME, or NAME,CPUExecutionProvider to share. Raises OptionError."""
        name, *others = (part.strip() for part in text.split(","))
        if not name or others not in ([], [CPU]):
            raise OptionError(f"a provider is NAME or NAME,{CPU}, not {text!r}.")
        return cls(name, bool(others) or name == CPU)

    def check(self, label: str, nodes: Nodes) -> None:
        """Raises DeviceError where convs or matrix products run on the CPU though the provider alone was asked for."""
        heavy = _heavy(nodes.get(CPU, {}))
        if heavy and not self.shared:
            of = sum(sum(_heavy(operators).values()) for operators in nodes.values())
            raise DeviceError(
                f"{label}: {self.name} leaves {sum(heavy.values())} of {of} convs and matrix products to the CPU "
                f"({_listed(heavy)}).\n--provider {self.name},{CPU} measures that mixture."
            )

    def describe(self, label: str, nodes: Nodes) -> str:
        """Which nodes run where, in one line."""
        parts = (f"{name} ran {_listed(operators)}" for name, operators in sorted(nodes.items()))
        return f"{label}: {'; '.join(parts)}"


def _heavy(operators: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in operators.items() if any(word in name for word in HEAVY)}


def _listed(operators: Mapping[str, int]) -> str:
    """The counts, most frequent first, and no more than fit on a line."""
    ordered = sorted(operators.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{count} {name}" for name, count in ordered[:6])
    rest = sum(count for _, count in ordered[6:])
    return f"{named} and {rest} others" if rest else named
