"""Time by layer: names as written, pairs of factors under one name, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from trp_export.bench.devices.base import Start
from trp_export.bench.devices.staging import copy_local
from trp_export.bench.models import read_cases
from trp_export.bench.profile import Profile, profile_models
from trp_export.errors import OutputError
from trp_export.precision.random_ranges import convert_for_speed

from .conftest import save_conv_net

START = Start(threads=1, cores=(), provider="CPUExecutionProvider", timeout_s=60)


def profile(*paths: Path) -> tuple[Profile, ...]:
    return profile_models(read_cases(paths), START)


def as_pair(source: Path, target: Path) -> Path:
    """The model with conv2 cut into `conv2.reduce` (8 to 4) and `conv2.expand` (1x1, 4 to 8)."""
    model = onnx.load(source)
    nodes = []
    for node in model.graph.node:
        if node.name == "conv2":
            reduce = helper.make_node(
                "Conv", [node.input[0], "conv2.reduce.weight"], ["r"], pads=[1] * 4, name="conv2.reduce"
            )
            nodes += [
                reduce,
                helper.make_node("Conv", ["r", "conv2.expand.weight"], [node.output[0]], name="conv2.expand"),
            ]
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    rng = np.random.default_rng(0)
    for name, shape in (("reduce", (4, 8, 3, 3)), ("expand", (8, 4, 1, 1))):
        model.graph.initializer.append(
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"conv2.{name}.weight")
        )
    onnx.save(model, target)
    return target


def test_a_pair_stands_under_its_layer(conv_net: Path, tmp_path: Path, no_process_left: None) -> None:
    dense, pair = profile(conv_net, as_pair(conv_net, tmp_path / "pair.onnx"))
    assert [layer.name for layer in dense.layers] == ["conv1", "conv2", "fc"]
    assert [layer.name for layer in pair.layers] == ["conv1", "conv2", "fc"]
    assert [layer.parts for layer in pair.layers] == [1, 2, 1]
    assert dense.layers[1].macs == 8 * 8 * 9 * 256
    assert pair.layers[1].macs == (4 * 8 * 9 + 8 * 4) * 256
    for one in (dense, pair):
        assert one.total_ms == pytest.approx(sum(layer.ms for layer in one.layers) + one.other_ms)
        assert all(layer.ms > 0 for layer in one.layers if layer.op == "Conv")


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_layers_are_found_in_fewer_bits(precision: str, conv_net: Path, tmp_path: Path, no_process_left: None) -> None:
    source = as_pair(conv_net, tmp_path / "pair.onnx")
    made = convert_for_speed(ir.load(source), precision, {"x": (1, 3, 16, 16)})
    ir.save(made, tmp_path / "rounded.onnx")
    before, after = profile(source, tmp_path / "rounded.onnx")
    assert [(layer.name, layer.macs, layer.parts) for layer in after.layers] == [
        (layer.name, layer.macs, layer.parts) for layer in before.layers
    ]


def test_nodes_without_names(conv_net: Path, tmp_path: Path) -> None:
    model = onnx.load(conv_net)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "nameless.onnx")
    (found,) = profile(tmp_path / "nameless.onnx")
    assert [layer.name for layer in found.layers] == ["conv1", "conv2", "fc"]


def test_activations_and_sums_that_onnxruntime_fuses(tmp_path: Path) -> None:
    """Conv + Add + Relu becomes one kernel; channels that do not fill a block do not change the MACs."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((16, 16, 3, 3)).astype(np.float32), f"c{i}.weight") for i in (1, 2)
    ]
    weights.append(numpy_helper.from_array(rng.standard_normal((5, 16, 1, 1)).astype(np.float32), "odd.weight"))
    nodes = [
        helper.make_node("Conv", ["x", "c1.weight"], ["a"], pads=[1] * 4, name="n1"),
        helper.make_node("Conv", ["a", "c2.weight"], ["b"], pads=[1] * 4, name="n2"),
        helper.make_node("Add", ["b", "a"], ["s"], name="n3"),
        helper.make_node("Relu", ["s"], ["t"], name="n4"),
        helper.make_node("Conv", ["t", "odd.weight"], ["u"], name="n5"),
        helper.make_node("Sigmoid", ["u"], ["y"], name="n6"),
    ]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 8, 8])]
    graph = helper.make_graph(nodes, "g", values, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    (found,) = profile(tmp_path / "m.onnx")
    assert {layer.name: layer.macs for layer in found.layers} == {
        "c1": 16 * 16 * 9 * 64,
        "c2": 16 * 16 * 9 * 64,
        "odd": 5 * 16 * 64,
    }


def test_a_staged_model_is_no_second_name_of_the_users_file(tmp_path: Path) -> None:
    """`trp-bundle verify` takes a hard link for damage."""
    model = onnx.load(save_conv_net(tmp_path / "net.onnx"))
    onnx.save(model, tmp_path / "ext.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    copies = {"net.onnx": ["model.onnx"], "ext.onnx": ["model.onnx", "model0.data"]}
    for name, files in copies.items():
        (case,) = read_cases([tmp_path / name])
        assert copy_local(case, tmp_path / name[:3]) == tmp_path / name[:3] / "model.onnx"
        assert sorted(path.name for path in (tmp_path / name[:3]).iterdir()) == files
        assert all(path.stat().st_nlink == 1 for path in (*case.files, *(tmp_path / name[:3]).iterdir()))


def test_a_full_disk_under_a_staged_model(conv_net: Path, small_disk: Path) -> None:
    (small_disk / "full").write_bytes(bytes(39_000))
    with pytest.raises(OutputError, match=r"cannot write the model to .*Set TMPDIR to a roomier place"):
        copy_local(read_cases([conv_net])[0], small_disk / "0")


def test_external_data_without_names(tmp_path: Path) -> None:
    model = onnx.load(save_conv_net(tmp_path / "net.onnx"))
    model.graph.node[0].name = model.graph.node[2].name = "twice"
    onnx.save(model, tmp_path / "ext.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (found,) = profile(tmp_path / "ext.onnx")
    assert [layer.name for layer in found.layers] == ["conv1", "conv2", "fc"]
