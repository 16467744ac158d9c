"""What a model file holds and which files it needs, found by one function for the exporter, bundles and benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from trp_export.errors import LoadError
from trp_export.graph.model_files import external_locations, model_files, read_proto, save_model
from trp_export.graph.precision_of import precision_of

NET = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> net (float[2, 2] x) => (float[2, 2] y)
{ BODY }"""


def net(body: str = "y = Relu(x)") -> onnx.ModelProto:
    return parser.parse_model(NET.replace("BODY", body))


def with_weight(location: str) -> onnx.ModelProto:
    model = net()
    model.graph.initializer.append(external("w", location))
    return model


def external(name: str, location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_external_data_is_found_in_subgraphs_and_functions() -> None:
    model = net()
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=external("c", "inner.bin"))],
        "g",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2])],
        [external("w", "branch.bin")],
    )
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))
    model.functions.append(
        helper.make_function(
            "own",
            "f",
            [],
            ["d"],
            [helper.make_node("Constant", [], ["d"], value=external("d", "function.bin"))],
            [helper.make_opsetid("", 17)],
        )
    )
    assert external_locations(model) == {"inner.bin", "branch.bin", "function.bin"}


def test_model_files_are_the_model_and_its_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(with_weight("w.bin").SerializeToString())
    (tmp_path / "w.bin").write_bytes(bytes(8))
    assert model_files(path) == (path, tmp_path / "w.bin")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(LoadError, match=r"external data w\.bin is missing; put it beside the model"):
        model_files(path)
    (tmp_path / "w.bin").symlink_to("/dev/zero")
    with pytest.raises(LoadError, match=r"is missing|leads out of"):
        model_files(path)


def test_weights_of_every_size_are_saved_apart(tmp_path: Path) -> None:
    """Small ones stay in the model, which is no sign of a full disk."""
    model = net("y = Relu(x)")
    weights = {f"w{count}": np.full(count, 7, np.uint8) for count in (1, 255, 256, 257, 5000)}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    path = tmp_path / "model.onnx"
    save_model(ir.serde.deserialize_model(model), path, apart=True)
    for tensor in onnx.load(path).graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), weights[tensor.name])


def test_model_files_behind_links_into_one_folder_are_found(tmp_path: Path) -> None:
    """As model hubs keep them: links in a folder of one revision, files in a folder of blobs."""
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    (blobs / "model").write_bytes(with_weight("w.bin").SerializeToString())
    (blobs / "weights").write_bytes(bytes(8))
    (snapshot / "m.onnx").symlink_to("../blobs/model")
    (snapshot / "w.bin").symlink_to("../blobs/weights")
    assert model_files(snapshot / "m.onnx") == (snapshot / "m.onnx", snapshot / "w.bin")
    (snapshot / "w.bin").unlink()
    (tmp_path / "elsewhere").write_bytes(bytes(8))
    (snapshot / "w.bin").symlink_to("../elsewhere")
    with pytest.raises(LoadError, match=r"is missing|leads out of"):
        model_files(snapshot / "m.onnx")


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "..\\w.bin", ""])
def test_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "m.onnx").write_bytes(with_weight(location).SerializeToString())
    with pytest.raises(LoadError, match="outside the model's folder"):
        model_files(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"text", bytes(range(256))])
def test_other_files_are_not_models(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(LoadError, match="is not an ONNX model"):
        read_proto(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("body", "precision"),
    [
        ("y = Relu(x)", "fp32"),
        ("h = Cast<to=10>(x)  g = Neg(h)  y = Cast<to=1>(g)", "fp32"),
        ("q, s, z = DynamicQuantizeLinear(x)  y = DequantizeLinear(q, s, z)", "int8"),
        ("q, s, z = DynamicQuantizeLinear(x)  i = MatMulInteger(q, q)  y = Cast<to=1>(i)", "int8"),
        ("y = com.microsoft.QGemm(x)", "int8"),
        ("y = Quantile(x)", "fp32"),
    ],
)
def test_the_coarsest_arithmetic_is_the_precision(body: str, precision: str) -> None:
    assert precision_of(net(body)) == precision


def test_half_precision_of_weights_counts() -> None:
    model = net()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float16), "w"))
    assert precision_of(model) == "fp16"


def test_half_precision_of_inputs_counts() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float16[2] x) => (float16[2] y) { y = Relu(x) }'
    assert precision_of(parser.parse_model(text)) == "fp16"


@pytest.mark.parametrize("place", [b"y", b"Relu", b"net"])
def test_names_that_are_not_utf8_are_refused(tmp_path: Path, place: bytes) -> None:
    content = net().SerializeToString()
    assert place in content
    path = tmp_path / "net.onnx"
    path.write_bytes(content.replace(place, b"\xff" * len(place)))
    with pytest.raises(LoadError, match="a name or text in it is not UTF-8"):
        read_proto(path)
