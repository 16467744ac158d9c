"""The shapes that the nodes of a model work on, read from one run in onnxruntime.

The run is that of a copy whose extra outputs are the shapes of the values, so that no value is kept. A body reports
its shapes once for each iteration: an If through outputs of both branches, a Loop or a Scan through scan outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from trp_export.graph.cost import COUNTED
from trp_export.graph.shapes import Run, Shape
from trp_export.runtime.sessions import ORT_TYPES, CannotRunError

_MOST_AXES = 8
_UNUSED, _NOT_RUN = -1, -2  # Beyond the axes of a shape; in place of one in a branch that was not taken.
_PREFIX = "trp_export.shape."
_TIMEOUT_S = 300.0
_LEAST_SCAN_OPSET = 9


def measure_shapes(
    file: Path, inputs: Mapping[str, Shape], feeds: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, tuple[Run, ...]]:
    """The runs of all counted nodes of a model file, by `node_key`, on `feeds` and on noise for what they lack.

    `inputs` are the shapes of that noise. Where onnxruntime refuses the probes in bodies, nodes inside them are
    missing. Raises CannotRunError. For its time a copy of the model, without the weights beside it, lies in the same
    folder.
    """
    try:
        return _measure(file, inputs, feeds or {}, bodies=True)
    except CannotRunError:
        return _measure(file, inputs, feeds or {}, bodies=False)


def measure_value_shapes(
    file: Path, inputs: Mapping[str, Shape], feeds: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, Shape]:
    """The shapes of all values of the main graph, by name, from one run as in `measure_shapes`."""
    proto = onnx.load(file, load_external_data=False)
    names = {name: f"{_PREFIX}{index}" for index, name in enumerate(_made_values(proto.graph))}
    proto.graph.node.extend(helper.make_node("Shape", [name], [shape]) for name, shape in names.items())
    outputs = list(names.values())
    answers = _answers(proto, file, outputs, inputs, feeds or {})
    shapes: dict[str, Shape] = {name: tuple(map(int, answers[shape])) for name, shape in names.items()}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    return {**inputs, **shapes}


def _made_values(graph: onnx.GraphProto) -> list[str]:
    """What the nodes of a graph make, but for sequences and maps, which have no shape."""
    others = ("Sequence", "Optional", "ZipMap")
    nodes = [node for node in graph.node if not any(word in node.op_type for word in others)]
    return [name for node in nodes for name in node.output if name]


@dataclass(frozen=True, slots=True)
class _Probe:
    """An output (executions, 8) with the shapes of one value, filled up with -1; None for an initializer's shape."""

    output: str | None
    static: Shape | None = None


@dataclass(slots=True)
class _Probes:
    """The probes of each counted node, for its inputs and its output, by node key."""

    bodies: bool
    opset: int
    initializers: dict[str, Shape]
    of_nodes: dict[str, tuple[list[_Probe | None], _Probe | None]] = field(default_factory=dict)
    # Where the shapes that a probe reads inside a body come out in the main graph.
    outside: dict[str, str] = field(default_factory=dict)
    inside: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def new_name(self) -> str:
        self.count += 1
        return f"{_PREFIX}{self.count}"

    def move(self, name: str, outer: str) -> None:
        """Note that the shapes in `name` are those in `outer` one level further out."""
        first = self.inside.pop(name, name)
        self.outside[first], self.inside[outer] = outer, first


def _measure(
    file: Path, inputs: Mapping[str, Shape], feeds: Mapping[str, NDArray[Any]], *, bodies: bool
) -> dict[str, tuple[Run, ...]]:
    proto = onnx.load(file, load_external_data=False)
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    probes = _Probes(bodies, opset, {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer})
    outputs = _add_probes(proto.graph, probes)
    for name, array in _constants().items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    answers = _answers(proto, file, outputs, inputs, feeds)
    answers |= {name: answers[outer] for name, outer in probes.outside.items()}
    return {key: _runs(of_inputs, of_output, answers) for key, (of_inputs, of_output) in probes.of_nodes.items()}


def _answers(
    proto: onnx.ModelProto,
    file: Path,
    outputs: list[str],
    inputs: Mapping[str, Shape],
    feeds: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[np.int64]]:
    """Run a model with more outputs, in a copy beside its file."""
    proto.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in outputs)
    copy = file.with_name(f"{file.stem}.shapes.onnx")
    try:
        onnx.save(proto, copy)
        return dict(zip(outputs, _run(copy, outputs, inputs, feeds), strict=True))
    finally:
        copy.unlink(missing_ok=True)


def _constants() -> dict[str, NDArray[np.int64]]:
    return {
        f"{_PREFIX}fill": np.full(_MOST_AXES, _UNUSED, np.int64),
        f"{_PREFIX}first": np.arange(_MOST_AXES, dtype=np.int64),
        f"{_PREFIX}row": np.array([-1, _MOST_AXES], np.int64),
        f"{_PREFIX}not_run": np.full((1, _MOST_AXES), _NOT_RUN, np.int64),
    }


def _add_probes(graph: onnx.GraphProto, probes: _Probes) -> list[str]:
    """Add the probes of a graph and of its bodies. Returns the values of this graph that hold shapes."""
    probes.initializers |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    outputs: list[str] = []
    by_value: dict[str, _Probe] = {}

    def probe(name: str) -> _Probe | None:
        if not name:
            return None
        if name in probes.initializers:
            return _Probe(None, probes.initializers[name])
        if name not in by_value:
            by_value[name] = _Probe(probes.new_name())
            outputs.append(by_value[name].output or "")
            graph.node.extend(_shape_nodes(name, outputs[-1]))
        return by_value[name]

    for node in list(graph.node):
        if node.op_type in COUNTED and node.domain in ("", "ai.onnx"):
            key = next((name for name in node.output if name), "")
            probes.of_nodes[key] = [probe(name) for name in node.input], probe(key)
    if probes.bodies:
        for node in list(graph.node):
            outputs += _probe_bodies(graph, node, probes)
    return outputs


def _shape_nodes(value: str, output: str) -> Iterator[onnx.NodeProto]:
    """The shape of a value as (1, 8)."""
    yield helper.make_node("Shape", [value], [f"{output}.shape"])
    yield helper.make_node("Concat", [f"{output}.shape", f"{_PREFIX}fill"], [f"{output}.long"], axis=0)
    yield helper.make_node("Gather", [f"{output}.long", f"{_PREFIX}first"], [f"{output}.cut"], axis=0)
    yield helper.make_node("Reshape", [f"{output}.cut", f"{_PREFIX}row"], [output])


def _probe_bodies(graph: onnx.GraphProto, node: onnx.NodeProto, probes: _Probes) -> list[str]:
    """Probe the bodies of an If, a Loop or a Scan. Returns the values beside the node that hold their shapes."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    loops = node.op_type == "Loop" or (node.op_type == "Scan" and probes.opset >= _LEAST_SCAN_OPSET)
    if not bodies or node.domain not in ("", "ai.onnx") or not (loops or node.op_type == "If"):
        return []
    own = [_add_probes(body, probes) for body in bodies]
    found = [name for names in own for name in names]
    declared = len(bodies[0].output) - (1 if node.op_type == "Loop" else 0)
    node.output.extend(probes.new_name() for _ in range(declared - len(node.output)))
    for body, names in zip(bodies, own, strict=True):
        outside = [name for name in found if name not in names]
        inside = [probes.new_name() for _ in outside]
        body.node.extend(helper.make_node("Identity", [f"{_PREFIX}not_run"], [name]) for name in inside)
        renamed = dict(zip(outside, inside, strict=True))
        body.output.extend(
            helper.make_tensor_value_info(renamed.get(name, name), onnx.TensorProto.INT64, None) for name in found
        )
    rows = []
    for name in found:
        node.output.append(f"{name}.outside" if loops else f"{name}.if")
        rows.append(f"{name}.rows")
        graph.node.append(helper.make_node("Reshape", [node.output[-1], f"{_PREFIX}row"], [rows[-1]]))
        probes.move(name, rows[-1])
    for attribute in node.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.extend([0] * len(found))
    return rows


def _run(
    copy: Path, outputs: list[str], inputs: Mapping[str, Shape], feeds: Mapping[str, NDArray[Any]]
) -> list[NDArray[np.int64]]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False
    # Shape nodes run as soon as they can, so that values are let go of early.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_prepacking", "1")
    run_options = ort.RunOptions()
    timer = Timer(_TIMEOUT_S, lambda: setattr(run_options, "terminate", True))
    opened = False
    try:
        session = ort.InferenceSession(copy, options, providers=["CPUExecutionProvider"])
        opened = True
        timer.start()
        drawn = _feeds(session, copy, inputs, feeds)
        return [np.asarray(answer) for answer in session.run(outputs, drawn, run_options)] if outputs else []
    except CannotRunError:
        raise
    except Exception as error:  # onnxruntime's errors share no base class.
        raise CannotRunError(str(error).splitlines()[0][:200], copy, opened=opened) from error
    finally:
        timer.cancel()


def _feeds(
    session: ort.InferenceSession, copy: Path, inputs: Mapping[str, Shape], feeds: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Standard normal noise for floats, zeros and ones for whole numbers."""
    rng = np.random.default_rng(0)
    drawn: dict[str, NDArray[Any]] = {}
    for value in session.get_inputs():
        dtype = ORT_TYPES.get(value.type)
        if value.name in feeds:
            drawn[value.name] = np.asarray(feeds[value.name], dtype)
            continue
        shape = inputs.get(value.name)
        if dtype is None or shape is None or None in shape:
            raise CannotRunError(f"input {value.name} ({value.type}) has no known shape or type", copy)
        sizes = [size for size in shape if size is not None]
        floats = np.issubdtype(dtype, np.floating)
        drawn[value.name] = np.asarray(rng.standard_normal(sizes) if floats else rng.integers(0, 2, sizes)).astype(
            dtype
        )
    return drawn


def _runs(
    of_inputs: list[_Probe | None], of_output: _Probe | None, answers: Mapping[str, NDArray[np.int64]]
) -> tuple[Run, ...]:
    def rows(probe: _Probe | None) -> list[Shape | None] | None:
        """The shape of one value at each execution, None where it is the same at all of them."""
        if probe is None or probe.output is None:
            return None
        taken = [row for row in answers[probe.output] if row[0] != _NOT_RUN]
        return [tuple(int(dim) for dim in row if dim != _UNUSED) for row in taken]

    of_output_rows = rows(of_output) or []
    count = len(of_output_rows)
    columns: list[list[Shape | None]] = []
    for probe in of_inputs:
        found = rows(probe)
        columns.append(found if found is not None else [probe.static if probe else None] * count)
    return tuple(Run(tuple(column[index] for column in columns), shape) for index, shape in enumerate(of_output_rows))
