"""Networks of several inputs: calibrated, tuned, quantised and judged as networks of one input are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Command
from models import run, save
from onnx import numpy_helper, parser

# An image, a smaller image, and two numbers that scale both.
NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 16, 16] image{inputs}) => (float[N, 10] logits)
<float[24, 3, 3, 3] one, float[24, 24, 3, 3] two, float[24, 3, 3, 3] side,
 float[10, 24] head, float[10, 24] other, float[10] bias{constants}>
{{
    a = Conv <pads = [1, 1, 1, 1]> (image, one)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, two)
    first = Constant <value = int64 {{0}}> ()
    second = Constant <value = int64 {{1}}> ()
    s = Gather (scale, first)
    t = Gather (scale, second)
    d = Mul (c, s)
    e = Relu (d)
    f = Conv <pads = [1, 1, 1, 1]> (small, side)
    g = Mul (f, t)
    h = Relu (g)
    i = GlobalAveragePool (e)
    j = GlobalAveragePool (h)
    k = Flatten (i)
    l = Flatten (j)
    m = Gemm <transB = 1> (k, head)
    n = Gemm <transB = 1> (l, other, bias)
    logits = Add (m, n)
}}
"""
SMALL = np.random.default_rng(3).standard_normal((1, 3, 8, 8)).astype(np.float32)
SCALE = np.array([0.7, 1.3], np.float32)


def build(inputs: str = ", float[N, 3, 8, 8] small, float[2] scale", constants: str = "") -> onnx.ModelProto:
    """The network; `small` and `scale` are inputs, or constants that stand for them."""
    model = parser.parse_model(NETWORK.format(inputs=inputs, constants=constants))
    rng = np.random.default_rng(0)
    known = {"small": SMALL, "scale": SCALE}
    for info in list(model.graph.value_info):
        shape = tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        size = np.sqrt(max(np.prod(shape[1:]), 4))
        array = known.get(info.name, (rng.standard_normal(shape) / size).astype(np.float32))
        model.graph.initializer.append(numpy_helper.from_array(array, info.name))
    del model.graph.value_info[:]
    return model


def constant_inputs() -> onnx.ModelProto:
    """The same network of one input: the others are constants."""
    return build("", ", float[1, 3, 8, 8] small, float[2] scale")


def images(count: int, seed: int = 0) -> np.ndarray:
    """Smooth images, on whose patches the weights do not all count alike."""
    rough = np.random.default_rng(seed).standard_normal((count, 3, 18, 18))
    return (rough[:, :, :-2, :-2] + rough[:, :, 1:-1, 1:-1] + rough[:, :, 2:, 2:] + 0.5).astype(np.float32)


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, np.ndarray]:
    """64 samples: two images that differ, the scale the same for all of them, in arrays.npz."""
    small = np.random.default_rng(1).standard_normal((64, 3, 8, 8)).astype(np.float32)
    arrays = {"image": images(64), "small": small, "scale": SCALE}
    np.savez(tmp_path / "arrays.npz", **arrays)
    save(build(), tmp_path / "model.onnx")
    return arrays


USUAL = ("model.onnx", "--macs", "1.5", "--channels", "off", "--no-bench", "-o", "small.onnx")


def test_constant_inputs_give_the_factors_of_the_network_that_holds_them(
    trp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Gradients are drawn at random batch by batch, and the batches of the two networks differ.
    monkeypatch.setattr("trp_export.steps.calibrate.is_installed", lambda package: False)
    # A layer that stays and reads a constant can be refitted in one of the two alone.
    monkeypatch.setattr("trp_export.steps.factors.answers_are_vectors", lambda *_: False)
    save(build(), tmp_path / "two.onnx")
    save(constant_inputs(), tmp_path / "one.onnx")
    np.save(tmp_path / "images.npy", images(64))
    np.savez(tmp_path / "arrays.npz", image=images(64), small=np.repeat(SMALL, 64, axis=0), scale=SCALE)
    layers = ("--rank", "6", "--only", "Conv_0", "--only", "Conv_2")  # What reads a constant is not calibrated.
    for name, data in (("one", "images.npy"), ("two", "arrays.npz")):
        outcome = trp(f"{name}.onnx", *layers, "--calib", data, "--no-bench", "-o", f"{name}-small.onnx")
        assert outcome.code == 0, outcome.err
    outcome = trp("one.onnx", *layers, "--no-bench", "-o", "plain.onnx")
    assert outcome.code == 0, outcome.err
    probe = {"image": images(8, seed=9)}
    both = probe | {"small": np.repeat(SMALL, 8, axis=0), "scale": SCALE}
    wanted, plain = (run(onnx.load(tmp_path / f"{name}.onnx"), probe)[0] for name in ("one-small", "plain"))
    made = run(onnx.load(tmp_path / "two-small.onnx"), both)[0]
    assert np.abs(made - wanted).max() < 1e-3 * np.abs(wanted).max()
    assert np.abs(plain - wanted).max() > 1e-2 * np.abs(wanted).max()


GENERATOR = """
import numpy as np
def samples():
    arrays = np.load("arrays.npz")
    for start in range(0, 64, 16):
        part = slice(start, start + 16)
        yield {"image": arrays["image"][part], "small": arrays["small"][part], "scale": arrays["scale"]}
"""


def test_archive_and_generator_of_the_same_samples_give_the_same_file(
    trp: Command, tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    (tmp_path / "data.py").write_text(GENERATOR)
    results = []
    for source in ("arrays.npz", "data.py:samples"):
        outcome = trp(*USUAL, "--calib", source)
        assert outcome.code == 0, outcome.err
        seen = json.loads((tmp_path / "small.json").read_text())["deviation"]["seen"]
        assert (seen["images"], seen["kind"]) == (16, "held-out")
        results.append(run(onnx.load(tmp_path / "small.onnx"), arrays)[0])
    np.testing.assert_array_equal(*results)


def test_int8_of_several_inputs_answers_nearly_as_the_float_model(
    trp: Command, tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    outcome = trp(*USUAL, "--calib", "arrays.npz", "--precision", "int8")
    assert outcome.code == 0, outcome.err
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node}
    variants = json.loads((tmp_path / "small.json").read_text())["variants"]
    (int8,) = (one for one in variants if one["name"] == "low rank, int8")
    assert int8["shipped"]
    assert int8["parity"]["images"] == 16


@pytest.mark.slow
def test_batches_of_a_fixed_size_of_both_inputs(trp: Command, tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    model = build(", float[4, 3, 8, 8] small, float[2] scale")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    save(model, tmp_path / "model.onnx")
    for extra in ((), ("--precision", "int8")):
        outcome = trp(*USUAL, "--calib", "arrays.npz", *extra)
        assert outcome.code == 0, outcome.err


def test_tuning_takes_inputs_that_each_hold_a_sample(trp: Command, tmp_path: Path) -> None:
    save(build(", float[N, 3, 8, 8] small", ", float[2] scale"), tmp_path / "model.onnx")
    np.savez(tmp_path / "arrays.npz", image=images(64), small=images(64, seed=2)[:, :, :8, :8])
    outcome = trp(*USUAL, "--calib", "arrays.npz", "--tune", "4steps")
    assert outcome.code == 0, outcome.err
    assert any("tuned for 4 steps" in note for note in json.loads((tmp_path / "small.json").read_text())["notes"])


def test_tuning_refuses_an_input_without_samples(refuses: Command, arrays: dict[str, np.ndarray]) -> None:
    error = refuses(4, *USUAL, "--calib", "arrays.npz", "--tune", "4steps")
    assert "input scale has no axis of samples, which --tune needs" in error


def test_networks_of_several_inputs_are_evaluated_on_archives_with_labels_and_on_functions(
    trp: Command, tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    labels = run(onnx.load(tmp_path / "model.onnx"), arrays)[0].argmax(axis=1)
    labels[:16] = (labels[:16] + 1) % 10
    np.savez(tmp_path / "labelled.npz", labels=labels, **arrays)
    (tmp_path / "data.py").write_text(GENERATOR)
    for source, metric, before in (("labelled.npz", "top-1 accuracy", 0.75), ("data.py:samples", "same class", 1.0)):
        outcome = trp(*USUAL, "--calib", "arrays.npz", "--eval", source)
        assert outcome.code == 0, outcome.err
        score = json.loads((tmp_path / "small.json").read_text())["deviation"]["score"]
        assert (score["what"], score["before"], score["images"]) == (metric, before, 64)
        answers = run(onnx.load(tmp_path / "small.onnx"), arrays)[0].argmax(axis=1)
        truth = labels if "labelled" in source else run(onnx.load(tmp_path / "model.onnx"), arrays)[0].argmax(axis=1)
        assert score["after"] == np.mean(answers == truth)
