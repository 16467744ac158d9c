"""Run a part of a network: from some of its values to others. Operators outside the part may be unknown."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.errors import LoadError, UnsupportedError
from trp_export.graph.model_files import save_model
from trp_export.graph.weights import release
from trp_export.inputs.description import describe_inputs
from trp_export.runtime.sessions import CannotRunError, numpy_type, open_session, run_session
from trp_export.system.scratch import Scratch

Array = NDArray[Any]
Types = Mapping[str, np.dtype[Any]]

_LARGE_BYTES = 1 << 25


# Types that numpy lacks.
_FOREIGN = (ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)
# What makes no tensor.
_SEQUENCES = frozenset((
    *("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence"),
    "Optional",
))  # fmt: skip


class Tap:
    """A session whose outputs are values inside a model: (name -> array) in, (name -> array) out."""

    def __init__(
        self,
        model: ir.Model,
        inputs: Sequence[str],
        outputs: Sequence[str],
        threads: int = 0,
        types: Types | None = None,
    ) -> None:
        """`inputs` may be weights and inner values too: what lies before these is not run, and `types` has their types.

        Raises UnsupportedError where onnxruntime cannot run the part.
        """
        self.outputs = tuple(dict.fromkeys(outputs))
        try:
            part = extract(model, inputs, self.outputs, types or {})
            self._session = open_part(part, threads=threads)
        except CannotRunError as error:
            raise UnsupportedError(f"onnxruntime cannot run this model: {error}{_remedy(str(error))}") from error
        self._dtypes = {value.name: numpy_type(value) for value in self._session.get_inputs()}

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self._dtypes)

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Raises LoadError where the feeds do not fit the model."""
        arrays = {name: np.asarray(feeds[name], dtype=dtype) for name, dtype in self._dtypes.items()}
        try:
            return dict(zip(self.outputs, run_session(self._session, arrays), strict=True))
        except CannotRunError as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise LoadError(f"the model failed on inputs of these shapes ({shapes}): {error}") from error


def extract(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str], types: Types) -> ir.Model:
    """The part of a model between `inputs` and `outputs` as a model of its own; the model stays as it is.

    Every value keeps its name. `inputs` may be weights, too. Inputs that no output depends on are left out.
    """
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    defaults = {value.name for value in model.graph.inputs if value.name in model.graph.initializers}
    starts = {values[name] for name in inputs if name in values and name not in defaults}
    return cut_out(model, starts, [values[name] for name in outputs], types)


def cut_out(model: ir.Model, stop: Container[ir.Value], outputs: Sequence[ir.Value], types: Types) -> ir.Model:
    """The nodes that make `outputs` out of values in `stop`, as a model whose inputs are those values.

    The nodes may lie in the body of an If or a Loop; what the body reads from outside becomes an input.
    """
    nodes, starts = nodes_between(stop, outputs)
    ordered = [node for node in model.graph.all_nodes() if node in nodes]
    reads = (value for node in ordered for value in (*node.inputs, *outer_reads(node)) if value is not None)
    weights = dict.fromkeys(value for value in (*reads, *outputs) if value.is_initializer() and value not in starts)
    imports = model.graph.opset_imports
    graph = ir.GraphView(
        starts, outputs, nodes=ordered, initializers=tuple(weights), opset_imports=imports, name="part"
    ).clone()
    for value, old in zip(graph.inputs, starts, strict=True):
        if (value.name or "") in types and old not in model.graph.inputs:
            value.type = ir.TensorType(ir.DataType.from_numpy(types[value.name or ""]))
            value.shape = None  # What the graph notes may hold for another batch size.
    for value in graph.outputs:
        value.shape = None
    return ir.Model(graph, ir_version=model.ir_version)


def nodes_between(stop: Container[ir.Value], outputs: Iterable[ir.Value]) -> tuple[set[ir.Node], list[ir.Value]]:
    """The nodes that make `outputs` out of values in `stop`, and which of these values (and model inputs) they read.

    An output that is in `stop` itself, and an input of the model, is one of those values.
    """
    nodes: set[ir.Node] = set()
    starts: dict[ir.Value, None] = {}
    pending = list(outputs)
    while pending:
        value = pending.pop()
        node = value.producer()
        if value in stop or (node is None and not value.is_initializer()):
            starts[value] = None
        elif node is not None and node not in nodes:
            nodes.add(node)
            pending += [source for source in (*node.inputs, *outer_reads(node)) if source is not None]
    return nodes, list(starts)


def outer_reads(node: ir.Node) -> Iterator[ir.Value]:
    """Values that the subgraphs of a node (If, Loop) read from outside."""
    bodies = {body for attribute in node.attributes.values() for body in subgraphs(attribute)}
    inner = set(bodies)
    for body in bodies:
        inner.update(body.subgraphs())
    for body in bodies:
        reads = [value for one in body.all_nodes() for value in one.inputs]
        yield from (value for value in (*reads, *body.outputs) if value is not None and value.graph not in inner)


def is_tensor(value: ir.Value) -> bool:
    """False for a sequence, an optional value, and a tensor of a type that numpy lacks."""
    if isinstance(value.type, (ir.SequenceType, ir.OptionalType)) or value.dtype in _FOREIGN:
        return False
    node, place = value.producer(), value.index() or 0
    if node is None:
        return True
    if node.op_type == "Identity" and node.inputs[0] is not None:
        return is_tensor(node.inputs[0])
    if node.op_type in ("If", "Loop"):
        bodies = [body for attribute in node.attributes.values() for body in subgraphs(attribute)]
        first = 1 if node.op_type == "Loop" else 0  # A body of a Loop makes its condition first.
        return all(is_tensor(body.outputs[first + place]) for body in bodies)
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) in _FOREIGN:
        return False
    return node.op_type not in _SEQUENCES


def subgraphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    """The graphs that an attribute holds."""
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []


def open_part(model: ir.Model, *, threads: int = 1) -> Any:
    """A session of a model that was cut out. Raises CannotRunError.

    Large weights are read from a file, which onnxruntime maps into memory, so that no copies of them are made.
    """
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    if sum(tensor.nbytes for tensor in weights) <= _LARGE_BYTES:
        return open_session(serialise(model), threads=threads)
    with Scratch() as scratch:
        file = scratch.folder / "part.onnx"
        save_model(model, file, apart=True)
        release(weights)
        return open_session(file, threads=threads)


def serialise(model: ir.Model) -> bytes:
    """A model that was cut out, with its weights. Raises CannotRunError where protobuf cannot hold them."""
    try:
        ir.external_data.load_to_model(model)
        return bytes(ir.to_proto(model).SerializeToString())
    except Exception as error:  # protobuf and onnx_ir raise several kinds for what is above 2 GiB.
        raise CannotRunError(str(error).splitlines()[0]) from error


def _remedy(failure: str) -> str:
    if "not a registered function" not in failure:
        return ""
    return (
        "\nLeave --calib and --eval out, or cut the model before the operators that onnxruntime lacks "
        "(onnx.utils.extract_model)."
    )


def fixed_batch(model: ir.Model) -> int | None:
    """The number of samples that a model takes at a time, or None where it takes any number."""
    return describe_inputs(model).at_a_time
