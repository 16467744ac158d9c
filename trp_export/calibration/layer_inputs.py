"""What each layer reads on a batch of inputs: once for each of its uses, in the main graph and in bodies.

The iterations of a Loop or a Scan are those of the batch at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trp_export.calibration.patches import (
    Array,
    Float32,
    Positions,
    Window,
    count_positions,
    gather_patches,
    window,
)
from trp_export.errors import LoadError, UnsupportedError
from trp_export.graph.shapes import node_key
from trp_export.graph.sites import LocatedSite
from trp_export.graph.weights import find_constant
from trp_export.runtime.exposed import Exposed, expose
from trp_export.runtime.partial import Tap


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One execution of a layer: its input (n, c, *extents), or of a matrix (n, *, c), and how it is read."""

    data: Array
    window: Window

    @property
    def images(self) -> int:
        return self.data.shape[1] if self.window.transposed else len(self.data)

    @property
    def positions(self) -> int:
        """Output positions of one image."""
        return count_positions(self.window, self.data.shape)

    def of_images(self, images: slice) -> Use:
        """The same for some of the images."""
        return Use(self.data[:, images] if self.window.transposed else self.data[images], self.window)

    def patches(self, positions: Positions) -> Float32:
        """(group, images, count, d) at flat positions (images, count)."""
        patches = gather_patches(self.data, self.window, positions)
        return patches.reshape(len(patches), *positions.shape, -1)


class LayerInputs:
    """Reads the inputs of all layers that are not refused. `places` are those whose uses can all be read."""

    def __init__(self, model: ir.Model, located: Sequence[LocatedSite]) -> None:
        self.places = [place for place in located if is_read(place)]
        self._model = model
        nodes = [node for place in self.places for node in place.nodes]
        self._main = self._tap(model, [_input(node) for node in nodes if node.graph is model.graph])
        self._bodies: Tap | None = None
        self._exposed: dict[str, Exposed] = {}
        inside = {node_key(node): _axes(node) for node in nodes if node.graph is not model.graph}
        if inside:
            try:
                copy, self._exposed = expose(model, inside)
                self._bodies = self._tap(copy, [exposed.name for exposed in self._exposed.values()])
            except UnsupportedError:
                self._leave_bodies()

    def __call__(self, arrays: Mapping[str, Array]) -> Iterator[tuple[LocatedSite, list[Use]]]:
        """Each layer with its uses on these inputs. Raises LoadError where the inputs do not fit the model."""
        values = {name: [array] for name, array in self._main(arrays).items()} if self._main else {}
        inside: dict[str, list[Array]] = {}
        if self._bodies is not None:
            try:
                outside = self._bodies(arrays)
            except LoadError:  # Of another size in each iteration, for example.
                self._leave_bodies()
            else:
                inside = {key: own.executions(outside[own.name]) for key, own in self._exposed.items()}
        for place in self.places:
            uses = [
                Use(np.atleast_2d(data), window(node, place.site))  # A matrix may read a single vector.
                for node in place.nodes
                for data in (values[_input(node)] if node.graph is self._model.graph else inside[node_key(node)])
            ]
            if uses:
                yield place, uses

    def _tap(self, model: ir.Model, names: Sequence[str]) -> Tap | None:
        inputs = [value.name or "" for value in model.graph.inputs]
        return Tap(model, inputs, names) if names else None

    def _leave_bodies(self) -> None:
        self._bodies = None
        graph = self._model.graph
        self.places = [place for place in self.places if all(node.graph is graph for node in place.nodes)]


def is_read(place: LocatedSite) -> bool:
    """False for refused sites and for those whose inputs cannot be read."""
    return place.site.refusal is None and has_readable_inputs(place)


def has_readable_inputs(place: LocatedSite) -> bool:
    """False for constant inputs, and for transposed convs of which `make_pads_explicit` leaves what crops."""
    unclear = {"auto_pad", "output_shape"}
    if place.site.op == "ConvTranspose" and any(unclear & node.attributes.keys() for node in place.nodes):
        return False
    return all(find_constant(node.inputs[0]) is None for node in place.nodes)


def _input(node: ir.Node) -> str:
    value = node.inputs[0]
    return (value.name if value is not None else None) or ""


def _axes(node: ir.Node) -> int:
    """How many axes the input of a layer has; those of a matrix product where they are known, else two."""
    weight, data = find_constant(node.inputs[1]), node.inputs[0]
    if node.op_type == "MatMul" and data is not None and data.shape is not None:
        return len(data.shape)
    return len(weight.shape) if weight is not None else 2
