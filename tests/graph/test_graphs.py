"""Graphs as they are found: each goes through the whole export at a rank that loses nothing, and answers as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import CONV_NET, build, changed, export, noise, operators, relative_l2, run, save
from onnx import TensorProto, helper, numpy_helper

from trp_export.report.document import Report


def check(model: onnx.ModelProto, folder: Path, layers: list[str] | None = None, tolerance: float = 1e-5) -> Report:
    """Export, and hold the answers, the names of inputs and outputs, and a second export against the original."""
    path = save(model, folder / "model.onnx")
    report = export(path)
    made = report.files[0]
    inputs = noise(model)
    for wanted, got in zip(run(path, inputs), run(made, inputs), strict=True):
        assert relative_l2(wanted, got) < tolerance
    onnx.checker.check_model(str(made), full_check=True)
    assert interface(made) == interface(path)
    assert changed(report) if layers is None else changed(report) == layers
    return report


def interface(path: Path) -> list[list[str]]:
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [[value.name for value in graph.input if value.name not in weights], [value.name for value in graph.output]]


def weights(path: Path) -> dict[str, bytes]:
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in onnx.load(path).graph.initializer}


def text(body: str, header: str = "float[N, 4, 12, 12] x", out: str = "float[N, M, H, W] y", opset: int = 17) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>\nnet ({header}) => ({out})\n{body}'


SHARED = text("""<float[4, 4, 3, 3] w, float[4] b> {
    a = Conv <pads = [1, 1, 1, 1]> (x, w, b)  c = Relu (a)
    y = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (c, w)
}""")

FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
net (float[N, 4, 12, 12] x) => (float[N, M, H, W] y) <float[8, 4, 3, 3] w, float[8, 8, 3, 3] v>
{ a = own.block (x, w)  y = own.block (a, v) }
<opset_import: ["" : 17], domain: "own">
block (data, weight) => (out) { a = Conv <pads = [1, 1, 1, 1]> (data, weight)  out = Relu (a) }
"""


@pytest.mark.parametrize("text", [CONV_NET, SHARED, FUNCTIONS], ids=["plain", "shared weight", "functions"])
def test_a_second_export_changes_nothing(text: str, tmp_path: Path) -> None:
    first = export(save(build(text), tmp_path / "model.onnx")).files[0]
    second = export(first, output=tmp_path / "second.onnx")
    assert changed(second) == []
    assert all("earlier export" in decision.reason for decision in second.plan.decisions)
    assert weights(second.files[0]) == weights(first)
    assert operators(second.files[0]) == operators(first)


def test_export_of_a_plain_network(tmp_path: Path) -> None:
    report = check(build(), tmp_path, ["conv1", "conv2", "fc"])
    assert not any("not simplified" in note for note in report.notes)
    assert set(operators(report.files[0])) == {"Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"}
    assert report.deviation is not None
    assert report.deviation.how == "each layer and the whole model"


@pytest.mark.parametrize("scheme", ["channel", "spatial", "spatial-t", "pointwise", "decouple"])
def test_export_under_every_scheme(scheme: str, tmp_path: Path) -> None:
    path = save(build(), tmp_path / "model.onnx")
    report = export(path, scheme)
    assert "conv1" in changed(report)
    (wanted,), (got,) = run(path, noise(build())), run(report.files[0], noise(build()))
    assert relative_l2(wanted, got) < 1e-5


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 14, 15, 18, 20, 22, 24])
def test_export_in_every_opset(opset: int, tmp_path: Path) -> None:
    check(build(CONV_NET.replace('"" : 17', f'"" : {opset}')), tmp_path)


def test_old_ir_lists_initializers_as_inputs(tmp_path: Path) -> None:
    model = build(text(OLD, "float[1, 4, 12, 12] x", opset=8))
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = 3
    report = check(model, tmp_path)
    assert interface(report.files[0]) == [["x"], ["y"]]


OLD = """<float[8, 4, 3, 3] w, float[8] b, float[8] g, float[8] s, float[8] m, float[8] v>
{ a = Conv <pads = [1, 1, 1, 1]> (x, w, b)  n = BatchNormalization (a, g, s, m, v)  y = Relu (n) }"""


def test_a_shared_weight_is_factored_once(tmp_path: Path) -> None:
    report = check(build(SHARED), tmp_path)
    assert len(report.plan.changed) == 1
    assert operators(report.files[0]).count("Conv") == 4


def test_a_weight_that_serves_a_conv_and_something_else_stays(tmp_path: Path) -> None:
    body = """<float[4, 4, 3, 3] w>
    { a = Conv <pads = [1, 1, 1, 1]> (x, w)  s = ReduceLogSumExp <keepdims = 0> (w)  y = Add (a, s) }"""
    report = check(build(text(body)), tmp_path, [])
    assert "also read by ReduceLogSumExp" in report.plan.decisions[0].reason


def test_a_conv_whose_weight_is_computed_or_fed_stays(tmp_path: Path) -> None:
    body = """<float[4, 4, 3, 3] w>
    { v = Mul (w, scale)  a = Conv <pads = [1, 1, 1, 1]> (x, v)  y = Conv (a, fed) }"""
    report = check(build(text(body, "float[N, 4, 12, 12] x, float[1] scale, float[4, 4, 3, 3] fed")), tmp_path, [])
    assert [d.reason for d in report.plan.decisions] == [
        "its weight is computed by Mul",
        "its weight is an input of the model",
    ]


@pytest.mark.parametrize("taken", [True, False])
def test_layers_in_branches_are_factored(taken: bool, tmp_path: Path) -> None:
    body = """<float[8, 4, 3, 3] w>
    {
        y = If (which) <
            then_branch = yes () => (float[N, M, H, W] a) { a = Conv <pads = [1, 1, 1, 1]> (x, w) },
            else_branch = no () => (float[N, M, H, W] b)
                <float[8, 4, 3, 3] inner> { c = Conv <pads = [1, 1, 1, 1]> (x, w)  b = Relu (c) }
        >
    }"""
    model = build(text(body, "float[N, 4, 12, 12] x, bool which"))
    inner = model.graph.node[0].attribute[1].g
    inner.node[0].input[1] = "inner"
    del inner.value_info[:]
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    inner.initializer.append(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, "inner"))
    report = check(model, tmp_path)
    assert operators(report.files[0]).count("Conv") == 4
    inputs = {**noise(model), "which": np.array(taken)}
    (wanted,), (got,) = run(tmp_path / "model.onnx", inputs), run(report.files[0], inputs)
    assert relative_l2(wanted, got) < 1e-5


def test_layers_in_loops_are_factored(tmp_path: Path) -> None:
    body = """<float[4, 4, 3, 3] w, int64 times = {3}, bool go = {1}>
    {
        y = Loop (times, go, x) <
            body = step (int64 i, bool on, float[N, 4, 12, 12] s) => (bool still, float[N, 4, 12, 12] t) {
                still = Identity (on)  a = Conv <pads = [1, 1, 1, 1]> (s, w)  t = Tanh (a)
            }
        >
    }"""
    report = check(build(text(body)), tmp_path)
    assert operators(report.files[0]).count("Conv") == 2


def test_functions_are_inlined(tmp_path: Path) -> None:
    report = check(build(FUNCTIONS), tmp_path)
    assert len(report.plan.changed) == 2
    assert not onnx.load(report.files[0]).functions


def test_weights_from_constant_nodes(tmp_path: Path) -> None:
    model = build()
    for tensor in list(model.graph.initializer):
        node = helper.make_node("Constant", [], [tensor.name], name=f"make {tensor.name}", value=tensor)
        model.graph.node.insert(0, node)
    del model.graph.initializer[:]
    check(model, tmp_path, ["conv1", "conv2", "fc"])


def test_weights_behind_identity_and_transpose(tmp_path: Path) -> None:
    body = """<float[8, 4, 3, 3] w, float[6, 8] v>
    { i = Identity (w)  a = Conv <pads = [1, 1, 1, 1]> (x, i)  t = Transpose <perm = [0, 2, 3, 1]> (a)
      vt = Transpose (v)  y = MatMul (t, vt) }"""
    report = check(build(text(body)), tmp_path)
    assert [change.site.op for change in report.plan.changed] == ["Conv", "MatMul"]


def test_float16_weights_are_factored(tmp_path: Path) -> None:
    body = OLD.replace("float[", "float16[")
    report = check(build(text(body, "float16[N, 4, 12, 12] x", "float16[N, M, H, W] y")), tmp_path, tolerance=5e-3)
    assert {tensor.data_type for tensor in onnx.load(report.files[0]).graph.initializer} == {TensorProto.FLOAT16}


def test_float64_weights_are_factored(tmp_path: Path) -> None:
    model = build(text("<double[8, 8] w> { y = MatMul (x, w) }", "double[N, 8] x", "double[N, 8] y"))
    check(model, tmp_path, tolerance=1e-7)


def test_weights_behind_a_cast_are_factored(tmp_path: Path) -> None:
    """Rounding to 8 bits of precision leaves the weight near low rank, not at it."""
    body = """<bfloat16[8, 4, 3, 3] w> { f = Cast <to = 1> (w)  y = Conv (x, f) }"""
    assert len(check(build(text(body)), tmp_path, tolerance=5e-3).plan.changed) == 1


def test_operators_of_other_domains_are_kept(tmp_path: Path) -> None:
    """onnxruntime cannot run them: each layer is verified alone."""
    model = build("""<ir_version: 8, opset_import: ["" : 17, "far" : 1]>
        net (float[N, 4, 12, 12] x) => (float[N, M, H, W] y)
        <float[8, 4, 3, 3] w, float[8] g, float[8] s, float[8] m, float[8] v>
        { a = far.Before (x)  b = Conv <pads = [1, 1, 1, 1]> (a, w)  n = BatchNormalization (b, g, s, m, v)
          c = Relu (n)  y = far.After <level = 3> (c) }""")
    path = save(model, tmp_path / "model.onnx")
    report = export(path)
    assert changed(report)
    assert report.deviation is not None
    assert report.deviation.how.startswith("each layer alone")
    assert report.deviation.truncation is None
    assert report.deviation.rewrite.relative_l2 < 1e-5
    assert any("far are unknown to onnxsim" in note for note in report.notes)
    assert operators(report.files[0]) == ["Before", "Conv", "Conv", "Relu", "After"]


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    body = """<float[8, 4, 3, 3] w, float[8, 4, 3, 3] v>
    { a = Conv <pads = [1, 1, 1, 1]> (x, w)  b = Conv <pads = [1, 1, 1, 1]> (z, v)  y = Add (a, b)
      count = Shape (a)  same = Identity (flag) }"""
    model = build(
        text(
            body,
            "float[N, 4, 12, 12] x, float[N, 4, 12, 12] z, bool flag",
            "float[N, M, H, W] y, float[N, M, H, W] a, int64[4] count, bool same",
        )
    )
    check(model, tmp_path)


def test_inputs_of_open_size_are_exported(tmp_path: Path) -> None:
    body = """<float[8, 4, 3, 3] w> { a = Conv <pads = [1, 1, 1, 1]> (x, w)  y = Relu (a) }"""
    for header in ("float[N, 4, H, W] x", "float[N, 4, 12, W] x", "float[N, C, H, W] x"):
        model = build(text(body, header))
        path = save(model, tmp_path / "model.onnx")
        report = export(path)
        assert changed(report)
        inputs = {"x": np.random.default_rng(0).standard_normal((3, 4, 12, 20)).astype(np.float32)}
        (wanted,), (got,) = run(path, inputs), run(report.files[0], inputs)
        assert relative_l2(wanted, got) < 1e-5


def test_convs_of_one_and_three_spatial_axes_are_factored(tmp_path: Path) -> None:
    line = """<float[8, 4, 5] w> { y = Conv <pads = [2, 2], strides = [2]> (x, w) }"""
    check(build(text(line, "float[N, 4, 12] x", "float[N, M, H] y")), tmp_path)
    volume = """<float[8, 4, 3, 3, 3] w> { y = Conv <pads = [1, 1, 1, 1, 1, 1], group = 1> (x, w) }"""
    check(build(text(volume, "float[N, 4, 6, 6, 6] x", "float[N, M, D, H, W] y")), tmp_path)


def test_grouped_and_depthwise_convs(tmp_path: Path) -> None:
    body = """<float[16, 8, 3, 3] w, float[16, 1, 3, 3] d>
    { a = Conv <pads = [1, 1, 1, 1], group = 2> (x, w)  y = Conv <pads = [1, 1, 1, 1], group = 16> (a, d) }"""
    report = check(build(text(body, "float[N, 16, 12, 12] x")), tmp_path)
    assert [d.reason for d in report.plan.decisions if not d.branches] == ["depthwise: nothing to gain"]


def test_a_layer_at_the_very_end_keeps_the_name_of_the_output(tmp_path: Path) -> None:
    body = """<float[8, 4, 3, 3] w, float[8] g, float[8] s, float[8] m, float[8] v>
    { a = Conv (x, w)  y = BatchNormalization (a, g, s, m, v) }"""
    report = check(build(text(body)), tmp_path)
    assert "BatchNormalization" not in operators(report.files[0])


def test_factors_get_names_that_are_not_in_use(tmp_path: Path) -> None:
    body = """<float[8, 4, 3, 3] w__weight, float[8, 8, 3, 3] w__reduce__weight, float[8] w__bias>
    { a = Conv <pads = [1, 1, 1, 1]> (x, w__weight)  b = Conv <pads = [1, 1, 1, 1]> (a, w__reduce__weight)
      c = Add (b, b)  y = Conv <pads = [1, 1, 1, 1]> (c, w__reduce__weight, w__bias) }"""
    export(save(build(text(body)), tmp_path / "model.onnx"))


def test_a_conv_of_which_only_the_shape_is_read(tmp_path: Path) -> None:
    model = build(
        text("<float[8, 4, 3, 3] w> { a = Conv (x, w)  y = Shape (a) }", "float[1, 4, 12, 12] x", "int64[4] y")
    )
    export(save(model, tmp_path / "model.onnx"))


def test_a_weight_that_is_an_output_stays_also_behind_operators_that_move_it(tmp_path: Path) -> None:
    body = "<float[4, 4, 3, 3] w, float[4, 4, 3, 3] v> { a = Conv (x, w)  y = Conv (a, v)  z = %s }"
    inputs, outputs = "float[1, 4, 12, 12] x", "float[1, 4, 8, 8] y, float[4, 4, 3, 3] z"
    for moved in ("Identity (v)", "Transpose <perm = [1, 0, 3, 2]> (v)"):
        check(build(text(body % moved, inputs, outputs)), tmp_path, ["Conv_0"])


def test_the_default_domain_may_have_its_long_name(tmp_path: Path) -> None:
    model = build()
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"
    path = save(model, tmp_path / "model.onnx")
    (wanted,), (got,) = (run(file, noise(model)) for file in (path, export(path).files[0]))
    assert relative_l2(wanted, got) < 1e-5


def test_a_model_without_layers_is_written_as_it_is(tmp_path: Path) -> None:
    report = check(build(text("{ y = Relu (x) }")), tmp_path, [])
    assert report.plan.decisions == ()


def test_private_metadata_is_removed(tmp_path: Path) -> None:
    model = build()
    model.graph.node[0].doc_string = "File /home/someone/net.py, line 3"
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.stack_trace", "File /home/someone/net.py"
    report = check(model, tmp_path)
    assert b"/home/someone" not in report.files[0].read_bytes()


def test_metadata_of_the_model_stays_and_no_tool_but_ours_adds_to_it(tmp_path: Path) -> None:
    model = build()
    helper.set_model_props(model, {"author": "someone"})
    made = onnx.load(check(model, tmp_path).files[0])
    own = {entry.key: entry.value for entry in made.metadata_props if not entry.key.startswith("trp_export.")}
    assert own == {"author": "someone"}


def test_external_data_is_read_and_counted(tmp_path: Path) -> None:
    onnx.save(build(), tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "out").mkdir()
    report = export(tmp_path / "model.onnx", output=tmp_path / "out" / "small.onnx")
    assert changed(report) == ["conv1", "conv2", "fc"]
    assert report.before.bytes == sum(size(tmp_path / name) for name in ("model.onnx", "w.bin"))
    (wanted,), (got,) = (run(path, noise(build())) for path in (tmp_path / "model.onnx", report.files[0]))
    assert relative_l2(wanted, got) < 1e-5


def size(path: Path) -> int:
    return path.stat().st_size
