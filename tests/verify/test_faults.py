"""Each fault of a rewriter is found, whatever end of the network hides it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from captured import capture
from ends import ENDS, branches, recurrent, saturated_classifier, twins
from faults import FAULTS, Fault, change, rows, scaled_by_a_thousandth, weight

from trp_export.errors import VerifyError
from verify.conftest import Make


@pytest.mark.parametrize("network", ENDS)
def test_a_sound_result_is_accepted(network: Callable[[], onnx.ModelProto], exported: Make) -> None:
    deviation = exported(network).verify()
    assert {layer.name for layer in deviation.layers} >= {"stem", "conv2"}
    assert all(layer.excess < 0.5 for layer in deviation.layers)
    assert deviation.whole is not None
    assert deviation.whole.distance.relative_l2 <= deviation.whole.bound


def test_a_layer_called_twice_may_be_called_once(tmp_path: Path) -> None:
    """The calls that are left out stand for the same values, however much truncation moves these."""
    export = capture(twins(), tmp_path, rank=1)
    assert sum(node.op_type == "Conv" for node in export.result().graph) == 8  # Four pairs instead of five.
    broken = export.result()
    scaled_by_a_thousandth(broken)
    with pytest.raises(VerifyError, match="conv2: its output in the result"):
        export.verify(broken)


@pytest.mark.parametrize("network", ENDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: Fault, network: Callable[[], onnx.ModelProto], exported: Make) -> None:
    export = exported(network)
    broken = export.result()
    fault(broken)
    with pytest.raises(VerifyError, match=r"conv2: its output in the result .*\nNothing was written"):
        export.verify(broken)


@pytest.mark.parametrize("network", ENDS)
def test_the_whole_model_finds_a_fault_without_the_layers(
    network: Callable[[], onnx.ModelProto], exported: Make
) -> None:
    (row,) = rows(exported(network), network.__name__, [scaled_by_a_thousandth])
    assert row.layer is not None
    assert row.whole is not None
    assert row.layer.error > row.layer.bound
    assert row.whole.error > row.whole.bound


@pytest.mark.parametrize("layer", ["near", "far"])
def test_a_fault_in_either_branch_is_found(layer: str, exported: Make) -> None:
    export = exported(branches)
    broken = export.result()
    value = weight(broken, "expand", layer)
    change(value, value.const_value.numpy() * np.float32(1.001))
    with pytest.raises(VerifyError, match=f"{layer}: its output in the result"):
        export.verify(broken)


def test_swapped_branches_are_found(exported: Make) -> None:
    export = exported(branches)
    proto = onnx.load(export.files.result)
    node = next(node for node in proto.graph.node if node.op_type == "If")
    first, second = node.attribute
    first.name, second.name = second.name, first.name
    with pytest.raises(VerifyError, match="its output in the result"):
        export.verify(ir.serde.deserialize_model(proto))


def test_the_evidence_names_what_reached_each_branch(exported: Make) -> None:
    export = exported(branches)
    image = np.random.default_rng(0).standard_normal((1, 3, 24, 24)).astype(np.float32)
    noise = export.inputs.feeds()["far"].item()
    for far in (True, False):
        reached = {"near": ["noise"] * (not noise), "far": ["noise"] * noise}
        reached["far" if far else "near"].insert(0, "given inputs")
        deviation = export.verify(arrays={"image": image, "far": np.array(far)})
        inputs = {layer.name: list(layer.inputs) for layer in deviation.layers}
        assert inputs["conv2"] == ["given inputs", "noise"]
        for layer, words in reached.items():
            assert inputs[layer] == (words or ["noise of its own"])


def test_a_fault_behind_a_saturated_end_does_not_show_at_the_outputs(exported: Make) -> None:
    """The other side of the oracle: outputs alone would let this fault pass."""
    export = exported(saturated_classifier)
    broken = export.result()
    scaled_by_a_thousandth(broken)
    ir.save(broken, export.files.result.with_name("hidden.onnx"))
    import onnxruntime

    feeds = export.inputs.feeds()
    answers = [
        onnxruntime.InferenceSession(file).run(None, feeds)[0]
        for file in (export.files.result, export.files.result.with_name("hidden.onnx"))
    ]
    np.testing.assert_array_equal(*answers)


def test_an_lstm_that_lost_a_weight_is_found(exported: Make) -> None:
    export = exported(recurrent)
    broken = export.result()
    node = next(node for node in broken.graph if node.op_type == "LSTM")
    change(node.inputs[2], node.inputs[2].const_value.numpy() * np.float32(1.001))
    with pytest.raises(VerifyError):
        export.verify(broken)
