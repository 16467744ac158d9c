"""Networks of thousands of nodes in a row are verified without deep recursion."""

from __future__ import annotations

from pathlib import Path

from models import build, changed, export, save
from onnx import helper


def test_a_chain_of_2000_nodes_is_exported(tmp_path: Path) -> None:
    model = build()
    nodes = list(model.graph.node)
    index = next(index for index, node in enumerate(nodes) if node.op_type == "Relu")
    relu = nodes[index].output[0]
    chain = [helper.make_node("Neg", [f"n{i}" if i else relu], [f"n{i + 1}"]) for i in range(2000)]
    for node in nodes[index + 1 :]:
        node.input[:] = ["n2000" if name == relu else name for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: index + 1], *chain, *nodes[index + 1 :]])
    assert changed(export(save(model, tmp_path / "m.onnx")))
