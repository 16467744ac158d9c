"""Walk a network from layer to layer with all images at once: every part of it runs once, however often one stops.

What is kept between two stops are the values that later nodes still read, batch by batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.runtime.partial import Tap, outer_reads

Array = NDArray[Any]


class Walk:
    """A network partly run. Weights that change after a stop take effect in what runs later.

    `values` holds, by name, one array per batch.
    """

    def __init__(self, model: ir.Model, batches: Sequence[Array], threads: int = 0) -> None:
        """`batches` go to the model's first input."""
        self._model, self._threads = model, threads
        self._nodes = list(model.graph)
        self._made_at = {value.name or "": -1 for value in model.graph.inputs}
        self._made_at |= {out.name or "": index for index, node in enumerate(self._nodes) for out in node.outputs}
        self._last_read = {value.name or "": len(self._nodes) for value in model.graph.outputs}
        for index, node in enumerate(self._nodes):
            for value in (*node.inputs, *outer_reads(node)):
                if value is not None and value.name:
                    self._last_read[value.name] = max(index, self._last_read.get(value.name, -1))
        self.values: dict[str, list[Array]] = {model.graph.inputs[0].name or "": list(batches)}
        self._position = 0

    def knows(self, name: str, by: Sequence[str]) -> bool:
        """True where a value is at hand once the walk has come as far as the values `by` need."""
        stop = max(self._made_at[other] for other in by) + 1
        return self._made_at.get(name, stop) < stop

    def to(self, names: Sequence[str]) -> None:
        """Run as far as these values need, in the order of the graph; then they are in `values`.

        Raises ValueError for a value that was passed and let go.
        """
        stop = max([self._position, *(self._made_at[name] + 1 for name in names)])
        live = {name for name, made in self._made_at.items() if made < stop <= self._last_read.get(name, -1)}
        wanted = sorted(live | set(names))
        new = [name for name in wanted if name not in self.values]
        gone = [name for name in new if self._made_at[name] < self._position]
        if gone:
            raise ValueError(f"{gone[0]} lies behind")
        if new:
            self.values |= self.run(new)
        self.values = {name: self.values[name] for name in wanted}
        self._position = stop

    def run(self, names: Sequence[str]) -> dict[str, list[Array]]:
        """Values further on, batch by batch, with the weights as they are; the walk stays where it is."""
        types = {name: parts[0].dtype for name, parts in self.values.items()}
        tap = Tap(self._model, list(self.values), names, self._threads, types)
        count = len(next(iter(self.values.values())))
        parts = [tap({name: self.values[name][index] for name in tap.inputs}) for index in range(count)]
        return {name: [part[name] for part in parts] for name in names}
