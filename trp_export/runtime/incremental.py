"""Run a network stop by stop on all batches at once: every part of it runs once, however often one stops.

Between two stops those values are kept, batch by batch, that later nodes still read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.runtime.partial import Tap, is_tensor, outer_reads

Array = NDArray[Any]


class Walk:
    """A network partly run. Weights that change after a stop take effect in what runs later.

    `values` holds, by name, one array for each batch.
    """

    def __init__(
        self,
        model: ir.Model,
        batches: Sequence[Mapping[str, Array]],
        threads: int = 0,
        stops: Sequence[Sequence[str]] = (),
    ) -> None:
        """A batch is an array for each input by name.

        `stops` are value names that will be asked for together; each value is kept until its last stop.
        """
        self._model, self._threads = model, threads
        self._nodes = list(model.graph)
        names = [value.name or "" for value in model.graph.inputs]
        names = [name for name in names if all(name in batch for batch in batches)]  # Others have a default.
        self._made_at = dict.fromkeys(names, -1)
        self._made_at |= {out.name or "": index for index, node in enumerate(self._nodes) for out in node.outputs}
        self._last_read = {value.name or "": len(self._nodes) for value in model.graph.outputs}
        for index, node in enumerate(self._nodes):
            self._keep([value.name for value in (*node.inputs, *outer_reads(node)) if value is not None], index)
        for stop in stops:
            self._keep(stop, max((self._made_at.get(name, -1) for name in stop), default=-1) + 1)
        made = [value for node in self._nodes for value in node.outputs]
        self._tensors = {*names, *(value.name for value in made if is_tensor(value))}
        for value in reversed(made):  # A sequence is not kept: what it is made of is.
            maker, until = value.producer(), self._last_read.get(value.name or "", -1)
            if value.name not in self._tensors and maker is not None:
                self._keep([read.name for read in maker.inputs if read is not None], until)
        self.values: dict[str, list[Array]] = {name: [batch[name] for batch in batches] for name in names}
        self._count = len(batches)
        self._position = 0

    def _keep(self, names: Sequence[str | None], until: int) -> None:
        for name in names:
            if name:
                self._last_read[name] = max(until, self._last_read.get(name, -1))

    def knows(self, name: str, by: Sequence[str]) -> bool:
        """True where a value is at hand once the walk has come as far as the values `by` need."""
        stop = max(self._made_at[other] for other in by) + 1
        return self._made_at.get(name, stop) < stop

    def position_of(self, name: str) -> int | None:
        """Where in the graph a value is made, None for a value that the graph does not make."""
        return self._made_at.get(name)

    def to(self, names: Sequence[str]) -> None:
        """Run as far as these values need, in the order of the graph; then they are in `values`.

        Raises ValueError for a value that was passed and not kept.
        """
        stop = max([self._position, *(self._made_at[name] + 1 for name in names)])
        live = {
            name
            for name, made in self._made_at.items()
            if made < stop <= self._last_read.get(name, -1) and name in self._tensors
        }
        wanted = sorted(live | set(names))
        new = [name for name in wanted if name not in self.values]
        gone = [name for name in new if self._made_at[name] < self._position]
        if gone:
            raise ValueError(f"{gone[0]} lies behind the walk")
        if new:
            self.values |= self.run(new)
        self.values = {name: self.values[name] for name in wanted}
        self._position = stop

    def run(self, names: Sequence[str]) -> dict[str, list[Array]]:
        """Values further on, batch by batch, with the weights as they are; the walk stays where it is."""
        return self.ahead(names)({})

    def ahead(self, names: Sequence[str], weights: Sequence[str] = ()) -> Ahead:
        """What makes values further on, again and again with other `weights` (initializers)."""
        types = {name: parts[0].dtype for name, parts in self.values.items()}
        tap = Tap(self._model, [*self.values, *weights], names, self._threads, types)
        read = {name: self.values[name] for name in tap.inputs if name in self.values}
        return Ahead(tap, tuple(names), read, self._count)


@dataclass(frozen=True, slots=True, eq=False)
class Ahead:
    """What makes `names` out of the values of a walk, batch by batch."""

    tap: Tap
    names: tuple[str, ...]
    values: Mapping[str, Sequence[Array]]
    batches: int

    def __call__(self, weights: Mapping[str, Array]) -> dict[str, list[Array]]:
        """The values, with these weights by name."""
        of_batch = ({name: parts[index] for name, parts in self.values.items()} for index in range(self.batches))
        made = [self.tap({**weights, **values}) for values in of_batch]
        return {name: [part[name] for part in made] for name in self.names}
