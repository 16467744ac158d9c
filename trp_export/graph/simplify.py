"""Simplify a model with onnxsim: constants are folded, nodes without effect removed. Weights stay outside.

onnxsim runs in a process of its own: importing it imports torch where that is installed, and a crash or a hang of
native code on an unusual graph must not be ours. Its result is taken only where the model does not grow.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir

from trp_export.graph.skeleton import fill_skeleton, make_skeleton
from trp_export.graph.weights import DEFAULT_DOMAINS
from trp_export.system.processes import ending_with_us

# By its path and not with -m, which would import modules from the current folder.
_WORKER = Path(__file__).with_name("simplify_worker.py")
_TIMEOUT_S = 300
# Shape inference alone adds some hundred bytes for a node.
_MOST_GROWTH_BYTES = 2**16
_MOST_GROWTH = 1.5
# Where a batch norm reads the mean and the variance of its training data.
_STATISTICS = (3, 4)


def simplify(model: ir.Model) -> tuple[ir.Model, str | None]:
    """The simplified model and None, or the model as it was and the reason why."""
    foreign = sorted({node.domain for node in model.graph.all_nodes()} - set(DEFAULT_DOMAINS))
    if foreign:
        return model, f"operators of {foreign[0]} are unknown to onnxsim"
    skeleton = make_skeleton(model)
    source = skeleton.proto.SerializeToString()
    try:
        done = ask_worker(source)
    except subprocess.TimeoutExpired:
        return model, f"onnxsim took longer than {_TIMEOUT_S} s"
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return model, f"onnxsim failed: {last[0][:120] if last else f'exit status {done.returncode}'}"
    if len(done.stdout) > _MOST_GROWTH * len(source) + _MOST_GROWTH_BYTES:
        return model, f"onnxsim made the graph larger ({len(source):,} to {len(done.stdout):,} bytes)"
    simplified = fill_skeleton(replace(skeleton, proto=onnx.load_model_from_string(done.stdout)))
    if not _restore_interface(simplified.graph, model.graph):
        return model, "onnxsim changed the inputs or outputs"
    _separate_statistics(simplified.graph)
    simplified.metadata_props.clear()  # onnxsim adds what it did.
    simplified.metadata_props.update(model.metadata_props)
    return simplified, None


def ask_worker(source: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run onnxsim on a serialised model. The same model gives the same answer. Raises TimeoutExpired."""
    argv = ending_with_us([sys.executable, str(_WORKER)])
    return subprocess.run(argv, input=source, capture_output=True, timeout=_TIMEOUT_S)


def _separate_statistics(graph: ir.Graph) -> None:
    """Give each batch norm that computes statistics its own initializers for the old ones.

    onnxsim merges equal initializers, and onnxruntime writes the new statistics over the old ones, so over every other
    weight that is the same initializer.
    """
    norms = [node for node in graph.all_nodes() if node.op_type == "BatchNormalization" and len(node.outputs) > 1]
    for norm in norms:
        for index in _STATISTICS:
            value = norm.inputs[index]
            if value is None or not value.is_initializer() or len(value.uses()) == 1 or value.graph is None:
                continue
            own = ir.Value(
                name=f"{norm.outputs[0].name}.{value.name}.{index}",
                type=value.type,
                shape=value.shape,
                const_value=value.const_value,
            )
            value.graph.register_initializer(own)
            norm.replace_input_with(index, own)


def _restore_interface(graph: ir.Graph, original: ir.Graph) -> bool:
    """Give inputs and outputs the types and shapes they had. False where there are others than before."""
    pairs = ((graph.inputs, original.inputs), (graph.outputs, original.outputs))
    if any(_names(values) != _names(before) for values, before in pairs):
        return False
    for values, before in pairs:
        for value, old in zip(values, before, strict=True):
            value.type, value.shape = old.type, old.shape
    return True


def _names(values: Sequence[ir.Value]) -> list[str | None]:
    return [value.name for value in values]
