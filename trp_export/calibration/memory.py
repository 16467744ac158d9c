"""What fits into memory: images while a network is walked or all its layers are read, and the moments of layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from trp_export.calibration.answers import find_answers, values_of
from trp_export.graph.sites import LocatedSite
from trp_export.lowrank.site import Site
from trp_export.runtime.partial import outer_reads

Shapes = Mapping[str, Sequence[int | None]]

# The values that one of two walks holds, and those of the layers that are read together.
_WALKED_BYTES = 320 * 2**20
_READ_BYTES = 128 * 2**20
# All images: 1,024 of 3x418x418.
_KEPT_BYTES = 2 * 2**30
# All values of the batches whose gradients are computed together.
_HELD_BYTES = 4 * 2**30
_FLOAT_BYTES = 4
_LEAST_WALKED = 8
# One matrix of moments in double precision, of which a layer's factors take a dozen, and those of all layers together.
_MATRIX_BYTES = 256 * 2**20
_MOMENTS_BYTES = 3 * 2**30
# The patches of one image that a layer reads, and those of the images that are summed up at a time.
_PATCH_BYTES = 128 * 2**20
_DOUBLE_BYTES = 8


def images_to_walk(model: ir.Model, shapes: Shapes) -> tuple[int, ...]:
    """How many images a walk may hold from each node of the main graph to the end, within a bound on memory.

    Answers are held to the end, as outputs are. The first layers of most networks make the largest values: later on
    there is room for more images.
    """
    alive = np.array(_bytes_alive(model, shapes), dtype=np.int64)
    most = np.maximum.accumulate(np.maximum(alive, 1)[::-1])[::-1]
    return tuple(int(count) for count in np.maximum(_WALKED_BYTES // most, _LEAST_WALKED))


def images_to_keep(image_bytes: int) -> int:
    """How many images of a size to calibrate on: all of them stay in memory as the network reads them."""
    return _KEPT_BYTES // max(image_bytes, 1)


def batches_at_once(model: ir.Model, shapes: Shapes, images: int, most: int) -> int:
    """How many batches of so many images may be worked on together where all values are held for gradients."""
    made = sum(_bytes(value.name or "", shapes) for node in model.graph for value in node.outputs)
    return int(np.clip(_HELD_BYTES // max(images * made, 1), 1, most))


def images_to_read(names: Iterable[str], shapes: Shapes) -> int:
    """How many images to run at a time where all these values are read."""
    return max(1, _READ_BYTES // max(sum(_bytes(name, shapes) for name in names), 1))


def places_with_room(located: Sequence[LocatedSite]) -> tuple[LocatedSite, ...]:
    """The layers that are not refused and whose moments fit into the bounds, in order. Small ones come first."""
    accepted = [place for place in located if place.site.refusal is None and has_room_for_moments(place.site)]
    left, room = _MOMENTS_BYTES, set()
    for place in sorted(accepted, key=lambda place: _moments_bytes(place.site)):
        left -= _moments_bytes(place.site)
        if left >= 0:
            room.add(place.site.name)
    return tuple(place for place in accepted if place.site.name in room)


def has_room_for_second(located: Sequence[LocatedSite]) -> bool:
    """Whether the moments of a second network of these layers, or thinner ones, fit beside those of the first."""
    return sum(_moments_bytes(place.site) for place in places_with_room(located)) <= _MOMENTS_BYTES // 2


def has_room_for_moments(site: Site) -> bool:
    """Whether a matrix of the moments of the layer's inputs is within the bound for one layer."""
    return _square_bytes(prod(site.kernel_shape[1:]), site.group) <= _MATRIX_BYTES


def has_room_for_gradients(site: Site) -> bool:
    """The same of what the answers owe to the layer's output channels."""
    return _square_bytes(site.kernel_shape[0] // site.group, site.group) <= _MATRIX_BYTES


def positions_to_read(site: Site) -> int:
    """The most positions of one image to gather the patches of a layer from."""
    return max(1, _PATCH_BYTES // (_FLOAT_BYTES * site.group * prod(site.kernel_shape[1:])))


def images_to_sum(site: Site, positions: int) -> int:
    """How many images to gather the patches of a layer from at a time, with these positions of each."""
    return max(1, positions_to_read(site) // max(positions, 1))


def _moments_bytes(site: Site) -> int:
    """Half a matrix of the inputs, a whole one while the held-out inputs are summed up, and one of the answers."""
    outputs = _square_bytes(site.kernel_shape[0] // site.group, site.group) if has_room_for_gradients(site) else 0
    return 3 * _square_bytes(prod(site.kernel_shape[1:]), site.group) // 2 + outputs


def _square_bytes(size: int, count: int) -> int:
    return _DOUBLE_BYTES * count * size**2


def _bytes_alive(model: ir.Model, shapes: Shapes) -> list[int]:
    """The bytes of one image that are alive after each node of the main graph, with those that it reads."""
    nodes = list(model.graph)
    last_read: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for value in (*node.inputs, *outer_reads(node)):
            if value is not None and value.name:
                last_read[value.name] = index
    last_read |= dict.fromkeys(values_of(find_answers(model)), len(nodes))
    last_read |= {value.name or "": len(nodes) for value in model.graph.outputs}
    ends: dict[int, list[str]] = {}
    for name, index in last_read.items():
        ends.setdefault(index, []).append(name)
    computed = {out.name or "" for node in nodes for out in node.outputs}
    alive, result = 0, []
    for index, node in enumerate(nodes):
        alive += sum(_bytes(out.name or "", shapes) for out in node.outputs if out.name in last_read)
        result.append(alive)
        alive -= sum(_bytes(name, shapes) for name in ends.get(index, ()) if name in computed)
    return result


def _bytes(name: str, shapes: Shapes) -> int:
    """Of one image; 0 where the shape is not known."""
    shape = shapes.get(name, ())
    if not shape or None in shape:
        return 0
    return _FLOAT_BYTES * prod(int(extent or 1) for extent in shape[1:])
