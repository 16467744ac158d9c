"""Files with their weights inside are written and read without holding the weights in memory."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import save
from onnx import TensorProto, helper, numpy_helper

from trp_export.errors import LoadError, OutputError
from trp_export.graph import weights
from trp_export.graph.large_files import _LARGE_BYTES, read_model, write_model
from trp_export.graph.model_files import save_model
from trp_export.graph.weights import add_initializer, large_weights, release, set_later

LARGE = _LARGE_BYTES // 4
TYPES = (np.float32, np.float16, np.float64, np.int64, np.int8, np.bool_)


def model_of(arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [name], [f"{name}.out"]) for name in arrays]
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in arrays.items()}
    outputs = [helper.make_tensor_value_info(f"{name}.out", kinds[name], array.shape) for name, array in arrays.items()]
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "net", [], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test")
    model.metadata_props.add(key="a", value="b")
    return model


def values(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def require_same(one: onnx.ModelProto, other: onnx.ModelProto) -> None:
    onnx.checker.check_model(other)
    before, after = values(one), values(other)
    assert list(before) == list(after)
    for name, array in before.items():
        assert (array.dtype, array.shape) == (after[name].dtype, after[name].shape)
        np.testing.assert_array_equal(array, after[name])
    for model in (one, other):
        model.graph.ClearField("initializer")
        model.graph.ClearField("value_info")
    assert one.graph == other.graph
    assert one.metadata_props == other.metadata_props


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(TYPES), st.integers(0, 2 * LARGE)), min_size=1, max_size=5))
def test_models_are_the_same_after_reading_and_writing(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[type, int]]
) -> None:
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    arrays = {f"w{index}": rng.integers(0, 2, size).astype(kind) for index, (kind, size) in enumerate(sizes)}
    path = save(model_of(arrays), folder / "m.onnx")
    model = read_model(path)
    write_model(model, folder / "copy.onnx")
    require_same(onnx.load(path), onnx.load(folder / "copy.onnx"))
    assert [file.name for file in folder.iterdir() if file.suffix == ".part"] == []


def test_large_weights_stay_on_disk_and_can_be_read_again(tmp_path: Path) -> None:
    array = np.arange(1 << 19, dtype=np.float32)
    model = read_model(save(model_of({"w": array}), tmp_path / "m.onnx"))
    (weight,) = large_weights(model)
    assert isinstance(weight, ir.ExternalTensor)
    view = weight.numpy()
    np.testing.assert_array_equal(view, array)
    release([weight])
    np.testing.assert_array_equal(view, array)


@pytest.mark.parametrize("size", [100, _LARGE_BYTES + 100])
def test_a_file_that_lost_its_end_is_refused(tmp_path: Path, size: int) -> None:
    path = save(model_of({"w": np.arange(LARGE, dtype=np.float32)}), tmp_path / "m.onnx")
    os.truncate(path, size)
    with pytest.raises(LoadError, match=r"m.onnx changed during the work .* Run the command again"):
        read_model(path)


def test_weights_in_typed_fields_are_read(tmp_path: Path) -> None:
    array = np.arange(LARGE, dtype=np.float32)
    tensor = helper.make_tensor("w", TensorProto.FLOAT, array.shape, array)
    assert tensor.float_data
    model = model_of({"w": array})
    model.graph.initializer[0].CopyFrom(tensor)
    np.testing.assert_array_equal(
        read_model(save(model, tmp_path / "m.onnx")).graph.initializers["w"].const_value.numpy(), array
    )


def test_weights_of_other_files_are_written_inside(tmp_path: Path) -> None:
    arrays = {"small": np.ones(3, np.float32), "large": np.arange(LARGE, dtype=np.float32)}
    model = model_of(arrays)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    write_model(read_model(tmp_path / "m.onnx"), tmp_path / "one.onnx")
    (tmp_path / "w.data").unlink()
    require_same(model_of(arrays), onnx.load(tmp_path / "one.onnx"))


def test_a_model_may_be_written_over_the_file_that_it_is_read_from(tmp_path: Path) -> None:
    array = np.arange(LARGE, dtype=np.float32)
    path = save(model_of({"w": array}), tmp_path / "m.onnx")
    model = read_model(path)
    write_model(model, path)
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), array)
    require_same(model_of({"w": array}), onnx.load(path))


@pytest.mark.parametrize("apart", [False, True])
def test_a_disk_that_is_full_at_the_end_of_a_weight_is_reported(
    apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy's `tofile` says nothing where the last buffer cannot be written."""

    def write_all_but_the_last_buffer(tensor: ir.Tensor, file: BinaryIO) -> None:
        file.write(tensor.tobytes()[:-100])
        file.flush()

    model = ir.serde.deserialize_model(model_of({"w": np.ones(LARGE, np.float32)}))
    weight = model.graph.initializers["w"]
    assert weight.const_value is not None
    weight.const_value = ir.Tensor(weight.const_value.numpy(), name="w")
    monkeypatch.setattr(ir.Tensor, "tofile", write_all_but_the_last_buffer)
    with pytest.raises(OutputError, match="No space left on device"):
        save_model(model, tmp_path / "m.onnx", apart)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("view", [np.transpose, lambda array: array[:, ::2], lambda array: array])
def test_weights_in_any_order_in_memory_are_written_without_a_copy(
    view: Callable[[np.ndarray], np.ndarray], apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_PIECE_BYTES", 1 << 16)
    base = np.arange(1 << 20, dtype=np.float32).reshape(1 << 10, -1)
    model = ir.serde.deserialize_model(model_of({"w": np.zeros_like(view(base))}))
    tracemalloc.start()
    added = add_initializer(model.graph, "added", view(base), ir.DataType.FLOAT)
    set_later(model.graph.initializers["w"], lambda: view(base))
    save_model(model, tmp_path / "m.onnx", apart)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert added.const_value is not None
    assert np.shares_memory(added.const_value.numpy(), base)
    assert peak < view(base).nbytes / 2
    for array in values(onnx.load(tmp_path / "m.onnx")).values():
        np.testing.assert_array_equal(array, view(base))
