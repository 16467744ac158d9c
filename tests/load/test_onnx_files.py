"""ONNX files as they are kept and written: links, pointers, sparse weights, outputs without types, other formats."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import build, noise, run, save
from onnx import TensorProto, helper, numpy_helper

from trp_export import Benchmark, Options, Rank, compress
from trp_export.errors import LoadError, UnsupportedError
from trp_export.graph.prepare import prepare
from trp_export.load import load
from trp_export.load.onnx_file import load_onnx
from trp_export.options import Calibration, LoadOptions

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) <float[4, 4, 3, 3] w> { y = Conv <pads = [1, 1, 1, 1]> (x, w) }"""


def weight(path: Path) -> np.ndarray:
    """The kernel as the loader sees it."""
    model = load_onnx(path, LoadOptions()).model
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy())


def save_apart(folder: Path) -> np.ndarray:
    """A model with its weights in a second file; returns the kernel."""
    folder.mkdir(parents=True)
    model = build(NET)
    kernel = numpy_helper.to_array(model.graph.initializer[0])
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    return kernel


def test_links_into_a_folder_of_blobs_are_followed(tmp_path: Path) -> None:
    kernel = save_apart(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "revision"
    snapshot.mkdir(parents=True)
    for name, blob in (("model.onnx", "aaa"), ("model.onnx_data", "bbb")):
        (tmp_path / "blobs" / name).rename(tmp_path / "blobs" / blob)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    np.testing.assert_array_equal(weight(snapshot / "model.onnx"), kernel)


def test_a_link_to_the_folder_is_followed(tmp_path: Path) -> None:
    kernel = save_apart(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    np.testing.assert_array_equal(weight(tmp_path / "link" / "model.onnx"), kernel)


def test_data_behind_a_link_to_elsewhere_are_refused(tmp_path: Path) -> None:
    save_apart(tmp_path / "model")
    (tmp_path / "model" / "model.onnx_data").rename(tmp_path / "secret")
    (tmp_path / "model" / "model.onnx_data").symlink_to(tmp_path / "secret")
    with pytest.raises(LoadError, match="is a link that leads out of the model's folder"):
        weight(tmp_path / "model" / "model.onnx")


def test_data_that_are_missing_or_a_pointer_are_named(tmp_path: Path) -> None:
    save_apart(tmp_path / "model")
    data = tmp_path / "model" / "model.onnx_data"
    data.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 576\n")
    with pytest.raises(LoadError, match=r"model\.onnx_data is a Git LFS pointer\. Run `git lfs pull`"):
        weight(tmp_path / "model" / "model.onnx")
    data.unlink()
    with pytest.raises(LoadError, match=r"model\.onnx_data is missing; put it beside the model"):
        weight(tmp_path / "model" / "model.onnx")


def test_a_loop_of_links_or_a_second_name_is_refused(tmp_path: Path) -> None:
    save_apart(tmp_path / "model")
    data = tmp_path / "model" / "model.onnx_data"
    (tmp_path / "second").hardlink_to(data)
    with pytest.raises(LoadError, match=r"has a second name \(a hard link\); give it a copy"):
        weight(tmp_path / "model" / "model.onnx")
    data.unlink()
    data.symlink_to(data.name)
    with pytest.raises(LoadError, match=r"model\.onnx_data (cannot be read|is missing)"):
        weight(tmp_path / "model" / "model.onnx")


def test_tensors_in_any_attribute_stay_in_the_folder(tmp_path: Path) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=(4,), data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "secret").write_bytes(bytes(16))
    model = build(NET)
    attribute = onnx.AttributeProto(name="values", type=onnx.AttributeProto.TENSORS, tensors=[tensor])
    model.graph.node.add(op_type="Odd", domain="own", input=["x"], output=["odd"]).attribute.append(attribute)
    model.opset_import.append(helper.make_opsetid("own", 1))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(LoadError, match="points outside the model's folder"):
        load_onnx(tmp_path / "model" / "m.onnx", LoadOptions())


def test_location_of_any_length_is_a_load_error(tmp_path: Path) -> None:
    save_apart(tmp_path / "model")
    path = tmp_path / "model" / "model.onnx"
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = "x" * 5000
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(LoadError, match=r"external data x+ (cannot be read|is missing)"):
        weight(path)


def test_external_data_of_a_function_are_read_from_the_models_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    (tmp_path / "key.bin").write_bytes(values.tobytes())
    tensor = TensorProto(name="key", data_type=TensorProto.FLOAT, dims=values.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="key.bin")
    nodes = [helper.make_node("Constant", [], ["k"], value=tensor), helper.make_node("Add", ["a", "k"], ["b"])]
    model = build(NET.replace("y = Conv", "z = Conv"))
    model.graph.node.append(helper.make_node("Shift", ["z"], ["y"], domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(helper.make_function("own", "Shift", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "key.bin").write_bytes(np.zeros(4, np.float32).tobytes())
    monkeypatch.chdir(elsewhere)
    loaded = load_onnx(tmp_path / "m.onnx", LoadOptions()).model
    (function,) = loaded.functions.values()
    constant = next(node for node in function if node.op_type == "Constant")
    np.testing.assert_array_equal(constant.attributes["value"].as_tensor().numpy(), values)


def test_nodes_in_any_order_are_sorted(tmp_path: Path) -> None:
    """As onnxruntime does: a converter to float16 puts the casts of inputs last."""
    head = '<ir_version: 8, opset_import: ["" : 17]> net (float[1, 2, 5, 5] x, bool b) => (float[1, 2, 5, 5] y)'
    weights = "<float[2, 2, 1, 1] w = {1, 2, 3, 4}>"
    bodies = [
        "{ b2 = Not (b)  b3 = Not (b2)  a = Conv (x, w)  y = If (b3) <then_branch = t () => (u) { u = Relu (a) }, "
        "else_branch = e () => (n) { m = Neg (x)  n = Neg (m) }> }",
        "{ y = If (b3) <then_branch = t () => (u) { u = Relu (a) }, "
        "else_branch = e () => (n) { n = Neg (m)  m = Neg (x) }>  b3 = Not (b2)  a = Conv (x, w)  b2 = Not (b) }",
    ]
    sorted_file, mixed = (
        save(onnx.parser.parse_model(f"{head} {weights} {body}"), tmp_path / f"{name}.onnx")
        for name, body in zip(("sorted", "mixed"), bodies, strict=True)
    )
    orders = [
        [node.op_type for node in load_onnx(file, LoadOptions()).model.graph.all_nodes()]
        for file in (sorted_file, mixed)
    ]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[1].index("If") > orders[1].index("Conv")
    onnx.checker.check_model(ir.serde.serialize_model(load_onnx(mixed, LoadOptions()).model))


def test_nodes_in_a_circle_are_a_load_error(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[3] x) => (float[3] y) { a = Add (x, y)  y = Neg (a) }'
    with pytest.raises(LoadError, match="topologically sorted"):
        load_onnx(save(onnx.parser.parse_model(text), tmp_path / "m.onnx"), LoadOptions())


@pytest.mark.parametrize("coordinates", [False, True])
def test_sparse_weights_are_made_dense(tmp_path: Path, coordinates: bool) -> None:
    model = build(NET)
    kernel = numpy_helper.to_array(model.graph.initializer[0]) * (np.arange(9).reshape(3, 3) % 3 == 0)
    places = np.flatnonzero(kernel)
    indices = np.stack(np.unravel_index(places, kernel.shape), axis=1) if coordinates else places
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(kernel.ravel()[places].astype(np.float32), "w"),
        numpy_helper.from_array(indices.astype(np.int64), "indices"),
        kernel.shape,
    )
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(sparse)
    onnx.save(model, tmp_path / "m.onnx")
    np.testing.assert_allclose(weight(tmp_path / "m.onnx"), kernel, rtol=1e-6)


def test_sparse_weight_of_any_size_is_a_load_error(tmp_path: Path) -> None:
    model = build(NET)
    del model.graph.initializer[:]
    for dims in ((10**6, 10**6), (4, 4, 3, 3)):
        del model.graph.sparse_initializer[:]
        values = numpy_helper.from_array(np.ones(1, np.float32), "w")
        indices = numpy_helper.from_array(np.array([10**9], np.int64), "indices")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, dims))
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(LoadError, match=r"(?i)sparse"):
            weight(tmp_path / "m.onnx")


def test_outputs_without_type_or_shape_get_those_that_follow(tmp_path: Path) -> None:
    model = build(NET.replace("y = Conv", "z = Conv").replace("(x, w)", "(x, w)  y = Relu (z)"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    model.graph.output[0].ClearField("type")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    outputs = load_onnx(tmp_path / "m.onnx", LoadOptions()).model.graph.outputs
    assert [(value.name, value.dtype.name, value.shape.numpy()) for value in outputs] == [
        ("y", "FLOAT", (1, 4, 8, 8)), ("z", "FLOAT", (1, 4, 8, 8)),
    ]  # fmt: skip


def test_open_sizes_of_outputs_get_no_invented_names(tmp_path: Path) -> None:
    model = build(NET.replace("y = Conv", "z = Conv").replace("(x, w)", "(x, w)  y = Relu (z)"))
    for axis, name in ((0, "n"), (2, "h")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    model.graph.output[0].ClearField("type")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    (output,) = load_onnx(tmp_path / "m.onnx", LoadOptions()).model.graph.outputs
    assert output.shape is not None
    assert [dim if isinstance(dim, int) else dim.value for dim in output.shape] == ["n", 4, None, 8]


def test_output_whose_type_does_not_follow_is_unsupported(tmp_path: Path) -> None:
    model = build(NET.replace("y = Conv", "z = Conv"))
    model.opset_import.append(helper.make_opsetid("unknown.domain", 1))
    model.graph.node.append(helper.make_node("Mystery", ["z"], ["y"], domain="unknown.domain"))
    model.graph.output[0].ClearField("type")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError, match="output y has no type, and none can be inferred"):
        load_onnx(tmp_path / "m.onnx", LoadOptions())


@pytest.mark.parametrize(("ir_version", "name"), [(3, "net"), (8, "")])
def test_files_that_onnxruntime_runs_are_read(tmp_path: Path, ir_version: int, name: str) -> None:
    """Before IR 4 initializers had to be listed as inputs, which not all exporters did; a graph may have no name."""
    model = build(NET)
    model.ir_version, model.graph.name = ir_version, name
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert run(path, noise(model))[0].shape == (1, 4, 8, 8)
    np.testing.assert_array_equal(weight(path), numpy_helper.to_array(model.graph.initializer[0]))


def test_tensor_of_too_many_axes_is_a_load_error(tmp_path: Path) -> None:
    model = build(NET)
    model.graph.initializer[0].dims[:] = [1] * 100
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(LoadError, match="more than 32 axes"):
        load_onnx(tmp_path / "m.onnx", LoadOptions())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.onnx", b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer.*Run `git lfs pull`"),
        ("m.pt", b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        ("m.ort", b"\x18\0\0\0ORTM" + bytes(40), "a model in ORT format"),
        ("m.onnx", b"\x18\0\0\0ORTM" + bytes(40), "a model in ORT format"),
        ("m.tflite", b"\x1c\0\0\0TFL3" + bytes(40), "a TensorFlow Lite model.*tf2onnx"),
        ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file"),
        ("m.keras", b"PK\x03\x04" + bytes(40), "a Keras model"),
        ("m.pb", b"\x0a\x10\x0a\x01x", "a TensorFlow graph"),
        ("m.mlmodel", b"\x08\x01\x12\x04", "a Core ML model"),
        ("m.pdmodel", b"\x0a\x10", "a PaddlePaddle model.*paddle2onnx"),
        ("m.onnx", b"<!DOCTYPE html><html>", "a web page.*download failed"),
        ("m.xml", b'<?xml version="1.0"?><net name="x">', "an XML file, as OpenVINO writes them"),
        ("m.gguf", b"GGUF\x03\0\0\0", "a GGUF file"),
        ("m.tar.gz", b"\x1f\x8b\x08\0", "a gzip archive.*Unpack it first"),
        ("m.onnx", b"\x89PNG\r\n\x1a\n", "an image"),
        ("m.npy", b"\x93NUMPY\x01\0", "an array of numpy"),
        ("m.onnx", b"", "m.onnx is empty"),
        ("m.onnx", b"PK\x03\x04" + bytes(26) + b"net/data.pkl", "a PyTorch file.*Rename it to m.pt"),
        ("m.onnx", b"PK\x03\x04" + bytes(26) + b"m.onnx", "a zip archive.*Unpack it first"),
        ("m.pt", b"\x08\x08\x12\x07pytorch", "an ONNX file under another name.*Rename it to m.onnx"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoadError, match=message):
        load(tmp_path / name, LoadOptions())


def test_folders_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "saved" / "assets").mkdir(parents=True)
    (tmp_path / "saved" / "saved_model.pb").touch()
    os.mkfifo(tmp_path / "m.onnx")
    (tmp_path / "m.pt").symlink_to("/dev/zero")
    for name, message in (
        ("saved", "a TensorFlow SavedModel"),
        ("saved/assets", "is a folder"),
        ("m.onnx", "is a named pipe"),
        ("m.pt", "is a device"),
        ("absent.onnx", "does not exist"),
    ):
        with pytest.raises(LoadError, match=message):
            load(tmp_path / name, LoadOptions())


def test_texts_in_a_model_stay(tmp_path: Path) -> None:
    """Networks that name their classes hold texts, which no file of weights can."""
    model = build(NET)
    labels = [f"a class with a long name, number {number}".encode() for number in range(300)]
    model.graph.initializer.append(helper.make_tensor("labels", TensorProto.STRING, [300], labels))
    model.graph.node.append(helper.make_node("Gather", ["labels", "which"], ["label"]))
    model.graph.input.append(helper.make_tensor_value_info("which", TensorProto.INT64, [1]))
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.STRING, [1]))
    output = tmp_path / "small.onnx"
    compress(
        save(model, tmp_path / "model.onnx"),
        Options(Rank(2), calibration=Calibration("none"), benchmark=Benchmark(run=False), output=output),
    )
    kept = {tensor.name: tensor for tensor in onnx.load(output).graph.initializer}
    assert list(kept["labels"].string_data) == labels


def test_texts_in_place_of_weights_are_a_load_error(tmp_path: Path) -> None:
    model = build(NET)
    del model.graph.initializer[:]
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.STRING, [4, 4, 3, 3], [b"x"] * 144))
    with pytest.raises(LoadError, match="texts in place of weights"):
        prepare(load(save(model, tmp_path / "model.onnx"), LoadOptions()).model)
