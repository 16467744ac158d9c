"""Prove a rewrite part by part: each part that differs gives the same output as before on the values that reach it.

The values come from one run of the original, stop by stop. A part that no input reached, in a branch not taken or
behind an operator that onnxruntime does not know, is run alone on noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from trp_export.errors import LoadError, UnsupportedError, VerifyError
from trp_export.graph.half_weights import is_rounding
from trp_export.graph.shapes import Shape, infer_value_shapes
from trp_export.graph.sites import find_sites
from trp_export.graph.weights import find_constant, large_weights, release, spatial_attribute
from trp_export.runtime.distance import Distance, distance_of
from trp_export.runtime.incremental import Walk
from trp_export.runtime.partial import cut_out, nodes_between, subgraphs
from trp_export.runtime.sessions import Array, CannotRunError, Inputs, draw
from trp_export.verify.bodies import body_values, values_before
from trp_export.verify.parts import Part, find_differences
from trp_export.verify.rounding import Rounded, Weights, run_with_bounds

# Where no real input reached a part.
ALONE = "noise of its own"
# Spatial sizes of that noise where the file leaves them open. Any size will do: a pair is exact at every size.
_EXTENT = 24
# Of larger images only the middle is compared, where a part holds only the operators in _LOCAL.
_MOST_EXTENT = 64
_LOCAL = ("Conv", "BatchNormalization", "Add", "Relu")


@dataclass(frozen=True, slots=True)
class LayerProof:
    """How far one part of the result is from what it must equal, and how far rounding alone may move it.

    `name` is that of the layer, or of the value where a part holds no layer. `inputs` names what reached the part.
    `bound` is the relative L2 that rounding explains; `excess` the largest difference of a single entry as a share of
    what rounding explains there: above 1 the part is wrong.
    """

    name: str
    inputs: tuple[str, ...]
    distance: Distance
    bound: float
    excess: float
    terms: int


@dataclass(frozen=True, slots=True)
class Proof:
    """All parts in which two graphs differ, what could not be compared, and the names of what both graphs compute.

    `shared` leads from the name in one graph to that in the other.
    """

    layers: tuple[LayerProof, ...]
    not_compared: tuple[str, ...]
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def terms(self) -> int:
        """The most products and sums that lead to one entry in any part."""
        return max((layer.terms for layer in self.layers), default=1)


def prove_layers(
    wanted: ir.Model,
    got: ir.Model,
    running: ir.Model,
    batches: Mapping[str, Sequence[Inputs]],
    shapes: Mapping[str, Shape],
    must: frozenset[str],
    unrounded: tuple[ir.Model, ...] | None = None,
) -> Proof:
    """Compare every part in which `got` differs from `wanted`, on values of `running`, which names them alike.

    `batches` holds inputs of the model under the words that name them; `shapes` are those of its inputs. `must` names
    the layers that have to be compared. `unrounded` are both models with their weights before these were rounded to
    float16: with them parts are compared to the precision of float32. Raises VerifyError where a part differs by more
    than rounding, where one of these layers cannot be run, or where a float16 weight is not what these were rounded to.
    """
    differences = find_differences(wanted, got)
    exact = (_weights_of(wanted, unrounded[0]), _weights_of(got, unrounded[1])) if unrounded else ({}, {})
    prover = _Prover(wanted, got, infer_value_shapes(wanted, shapes), must, exact)
    walk = Walk(
        running,
        [batch for one in batches.values() for batch in one],
        threads=1,
        stops=[values_before(part) for part in differences.parts],
    )
    labels = [label for label, one in batches.items() for _ in one]
    stopped: str | None = None if labels else "there are no inputs"
    weights = [weight for model in (wanted, got, running) for weight in large_weights(model)]
    layers = []
    for part in sorted(differences.parts, key=lambda part: _last_position(part, walk)):
        if stopped is None:
            stopped = _walk_to(walk, values_before(part))
        layers += prover.prove(part, walk if stopped is None else None, labels)
        release(weights)
    unread = must - {name for layer in layers for name in layer.name.split(", ")}
    unread -= {note.split(":")[0] for note in prover.not_compared}
    notes = [f"{name}: no output depends on it" for name in sorted(unread)]
    shared = {value.name or "": other.name or "" for value, other in differences.shared.items()}
    return Proof(tuple(layers), (*prover.not_compared, *notes), shared)


def _last_position(part: Part, walk: Walk) -> int:
    return max((walk.position_of(name) or 0 for name in values_before(part)), default=-1)


def _walk_to(walk: Walk, names: Sequence[str]) -> str | None:
    """Why the values cannot be computed; None where they were."""
    try:
        walk.to([name for name in names if walk.position_of(name) is not None])
    except (UnsupportedError, LoadError, CannotRunError, ValueError) as error:
        return str(error)
    return None


class _Prover:
    def __init__(
        self,
        wanted: ir.Model,
        got: ir.Model,
        shapes: Mapping[str, Shape],
        must: frozenset[str],
        exact: tuple[Weights, Weights],
    ) -> None:
        self._exact_wanted, self._exact_got = exact
        self._wanted, self._got, self._shapes, self._must = wanted, got, shapes, must
        self._sites = {node: place.site.name for place in find_sites(wanted, {}) for node in place.nodes}
        self.not_compared: list[str] = []

    def prove(self, part: Part, walk: Walk | None, labels: Sequence[str]) -> list[LayerProof]:
        """The proof of one part, none where it cannot be run and need not be."""
        name = self._name(part)
        reached = _reached(part, self._wanted, walk, labels) if walk is not None else []
        try:
            if not reached:
                reached = [(ALONE, self._noise(part))]
            return [self._compare(name, part, reached)]
        except (CannotRunError, ValueError) as error:
            if self._must.isdisjoint(name.split(", ")):
                self.not_compared.append(f"{name}: {error}")
                return []
            raise VerifyError(
                f"{name} cannot be verified: {error}\nNothing was written. Leave the layer out with --skip."
            ) from error

    def _name(self, part: Part) -> str:
        """The layers that a part holds, also in the bodies of its nodes."""
        nodes = list(part.wanted_nodes)
        for node in part.wanted_nodes:
            for attribute in node.attributes.values():
                nodes += [inner for body in subgraphs(attribute) for inner in body.all_nodes()]
        names = dict.fromkeys(self._sites[node] for node in nodes if node in self._sites)
        return ", ".join(names) or part.name

    def _compare(self, name: str, part: Part, reached: Sequence[tuple[str, Mapping[str, Array]]]) -> LayerProof:
        proofs = []
        for label, feeds in reached:
            proof = self._compare_on(name, part, label, feeds)
            if not proof.excess <= 1:
                raise VerifyError(_difference(proof))
            proofs.append(proof)
        worst = max(proofs, key=lambda proof: proof.excess)
        labels = tuple(dict.fromkeys(label for label, _ in reached))
        return LayerProof(name, labels, worst.distance, worst.bound, worst.excess, worst.terms)

    def _compare_on(self, name: str, part: Part, label: str, feeds: Mapping[str, Array]) -> LayerProof:
        feeds = _cropped(part, feeds)
        theirs = {start.name or "": feeds[value.name or ""] for start, value in part.got_inputs}
        stop = {value for value in part.wanted_inputs if value.name in feeds}
        wanted = _run(self._wanted, part.wanted, stop, feeds, self._exact_wanted)
        got = _run(self._got, part.got, {start for start, _ in part.got_inputs}, theirs, self._exact_got)
        apart = distance_of(wanted.output, got.output)
        bound, excess = _against_rounding(wanted, got)
        return LayerProof(name, (label,), apart, bound, excess, max(wanted.terms, got.terms))

    def _noise(self, part: Part) -> dict[str, Array]:
        """Inputs for a part alone. Raises ValueError where their shapes cannot be known."""
        values = {value for _, value in part.got_inputs}
        _, starts = nodes_between(values, [part.wanted])
        if not set(starts) <= values:
            raise ValueError("it reads other values in the result than in the original")
        generator = np.random.default_rng(0)
        return {
            value.name or "": draw(generator, self._shape(value, part), self._dtype(value, part)) for value in values
        }

    def _shape(self, value: ir.Value, part: Part) -> tuple[int, ...]:
        known = self._shapes.get(value.name or "")
        if known is not None and None not in known:
            return tuple(size or 1 for size in known)
        for node in part.wanted_nodes:
            weight = find_constant(node.inputs[1]) if len(node.inputs) > 1 else None
            if node in self._sites and weight is not None and node.inputs[0] is value:
                return _shape_for(node, weight.shape)
        raise ValueError(f"the shape of {value.name} is not known")

    def _dtype(self, value: ir.Value, part: Part) -> np.dtype[np.generic]:
        if value.dtype is not None:
            return value.dtype.numpy()
        constants = (find_constant(read) for node in part.wanted_nodes for read in node.inputs)
        floats = (one.dtype for one in constants if one is not None and one.dtype.is_floating_point())
        return next(floats, ir.DataType.FLOAT).numpy()


def _reached(part: Part, wanted: ir.Model, walk: Walk, labels: Sequence[str]) -> list[tuple[str, Mapping[str, Array]]]:
    """What reaches the part of each batch: the word for the batch, and the part's inputs by name."""
    reached: list[tuple[str, Mapping[str, Array]]] = []
    for index, label in enumerate(labels):
        values = {name: arrays[index] for name, arrays in walk.values.items()}
        feeds = body_values(part, wanted, values) if part.body is not None else values
        if feeds is not None and all(name in feeds for name in part.input_names):
            reached.append((label, {name: feeds[name] for name in part.input_names}))
    return reached


def _cropped(part: Part, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    """The middle of large images where a part is nothing but convs of one value: what holds there holds elsewhere."""
    nodes = part.wanted_nodes | part.got_nodes
    if len(feeds) != 1 or not all(map(_is_local, nodes)):
        return feeds
    reach = max((_reach(node) for node in nodes), default=1)
    return {name: _middle(array, max(_MOST_EXTENT, 2 * reach)) for name, array in feeds.items()}


def _is_local(node: ir.Node) -> bool:
    """True where an output depends on the values around it alone: a sum with a constant may depend on the place."""
    sums = node.op_type == "Add" and any(find_constant(value) is not None for value in node.inputs)
    return node.op_type in _LOCAL and not node.domain and not sums


def _reach(node: ir.Node) -> int:
    weight = find_constant(node.inputs[1]) if node.op_type == "Conv" else None
    sizes = weight.shape[2:] if weight is not None else ()
    dilations = spatial_attribute(node, "dilations", [1] * len(sizes))
    return max((size * step for size, step in zip(sizes, dilations, strict=False)), default=1)


def _middle(array: Array, most: int) -> Array:
    cuts = [slice(None), slice(None)]
    cuts += [
        slice((size - most) // 2, (size - most) // 2 + most) if size > most else slice(None) for size in array.shape[2:]
    ]
    return array[tuple(cuts[: array.ndim])]


def _weights_of(model: ir.Model, unrounded: ir.Model) -> Weights:
    """What float16 weights of a model were rounded from, by name. Raises VerifyError for one that is no such number."""
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in model.graph.initializers.items():
        exact, stored = unrounded.graph.initializers.get(name), value.const_value
        if exact is None or exact.const_value is None or stored is None or stored.dtype != ir.DataType.FLOAT16:
            continue
        if not is_rounding(stored.numpy(), exact.const_value.numpy()):
            raise VerifyError(
                f"the float16 weight {name} is not what its float32 value rounds to.\n"
                "Nothing was written. Please report this with the model."
            )
        weights[name] = exact.const_value
        release([stored, exact.const_value])
    return weights


def _run(model: ir.Model, output: ir.Value, stop: set[ir.Value], feeds: Mapping[str, Array], exact: Weights) -> Rounded:
    constant = find_constant(output)
    if constant is not None:
        array = constant.array()
        return Rounded(array, np.zeros(array.shape), 0)
    types = {name: array.dtype for name, array in feeds.items()}
    part = cut_out(model, stop, [output], types)
    for value in part.graph.inputs:
        value.shape = None  # The middle of an image does not have the shape in the file.
    return run_with_bounds(part, feeds, exact)


def _against_rounding(wanted: Rounded, got: Rounded) -> tuple[float, float]:
    """What rounding explains as a relative L2, and the largest difference as a share of what it explains there."""
    if wanted.output.shape != got.output.shape or wanted.output.dtype.kind != got.output.dtype.kind:
        return 0.0, np.inf
    if wanted.output.dtype.kind != "f":
        return 0.0, 0.0 if np.array_equal(wanted.output, got.output) else np.inf
    left, right = wanted.output.astype(np.float64), got.output.astype(np.float64)
    allowed = wanted.allowed + got.allowed
    with np.errstate(invalid="ignore"):
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        apart = np.where(same, 0.0, np.abs(left - right))
    share = np.divide(apart, allowed, out=np.where(apart > 0, np.inf, 0.0), where=allowed > 0)
    size = np.linalg.norm(np.where(np.isfinite(left), left, 0.0))
    bound = np.linalg.norm(allowed) / size if size > 0 else 0.0
    return float(bound), float(np.nan_to_num(share, nan=np.inf).max(initial=0.0))


def _difference(proof: LayerProof) -> str:
    far = proof.distance.relative_l2
    return (
        f"{proof.name}: its output in the result is {far:.2g} apart (relative L2, on {', '.join(proof.inputs)}) from "
        f"that of the layer with the product of its factors; rounding explains {proof.bound:.2g}.\n"
        "Nothing was written. Please report this with the model, or leave the layer out with --skip."
    )


def _shape_for(node: ir.Node, weight: tuple[int, ...]) -> tuple[int, ...]:
    if node.op_type == "Conv":
        group = node.attributes.get_int("group", 1)
        return (1, weight[1] * group, *(_EXTENT + size for size in weight[2:]))
    if node.op_type == "ConvTranspose":
        return (1, weight[0], *(_EXTENT for _ in weight[2:]))
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    channels = weight[-1] if transposed else weight[-2]
    return (channels, 2) if node.attributes.get_int("transA", 0) else (2, channels)
