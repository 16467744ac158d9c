"""Images made from batch norm statistics: they have them, whoever looks, and an export treats them like real ones."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from command import Command
from models import CONV_NET, KEEP_ALL, build, save
from networks import make_images

from trp_export.cli.export import command
from trp_export.errors import FarFromOriginalError, OptionError, UnsupportedError
from trp_export.graph.exact.affine import fold_affine
from trp_export.graph.prepare import prepare, remove_unused
from trp_export.graph.statistics import Statistics, norm_outputs
from trp_export.options import Calibration, Options
from trp_export.pipeline import compress
from trp_export.report.document import Report
from trp_export.rules import Energy, Rank, Rule
from trp_export.runtime.partial import Tap
from trp_export.steps import closeness

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trp_export.recover.best_of import _held_out
    from trp_export.recover.synthetic import Recipe, _ChannelMoments, affordable, synthesise

TWO_NORMS = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 12, 12] image) => (float[N, 5] logits)
<float[16, 3, 3, 3] conv1__weight, float[16] bn1__weight, float[16] bn1__bias, float[16] bn1__mean, float[16] bn1__var,
 float[16, 16, 3, 3] conv2__weight, float[16] bn2__weight, float[16] bn2__bias, float[16] bn2__mean, float[16] bn2__var,
 float[5, 16] fc__weight, float[5] fc__bias>
{
    a = Conv <pads = [1, 1, 1, 1]> (image, conv1__weight)
    b = BatchNormalization (a, bn1__weight, bn1__bias, bn1__mean, bn1__var)
    c = Relu (b)
    d = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (c, conv2__weight)
    e = BatchNormalization (d, bn2__weight, bn2__bias, bn2__mean, bn2__var)
    f = Relu (e)
    g = GlobalAveragePool (f)
    h = Flatten (g)
    logits = Gemm <transB = 1> (h, fc__weight, fc__bias)
}
"""


WITHOUT_NORM = CONV_NET.replace(
    "b = BatchNormalization (a, bn1__weight, bn1__bias, bn1__mean, bn1__var)", "b = Relu (a)"
)
# The input has more channels than an image.
ON_FEATURES = WITHOUT_NORM.replace("float[N, 3, 12, 12] image", "float[N, 8, 12, 12] image").replace(
    "float[16, 3, 3, 3] conv1__weight", "float[16, 8, 3, 3] conv1__weight"
)


def of_full_rank(text: str) -> onnx.ModelProto:
    """The network with kernels of full rank, unlike those of `build`."""
    proto = build(text)
    rng = np.random.default_rng(3)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) == 4:
            values = rng.standard_normal(tensor.dims) / np.sqrt(np.prod(tensor.dims[1:]))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return proto


def trained(pixels: float = 1.0, text: str = TWO_NORMS) -> onnx.ModelProto:
    """The network with the statistics that it has on smooth images with values of about this size."""
    proto = of_full_rank(text)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    images = pixels * make_images(200).inputs
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization":
            seen = values_of(ir.serde.deserialize_model(proto), node.input[0], images)
            for name, values in zip(node.input[3:], (seen.mean((0, 2, 3)), seen.var((0, 2, 3))), strict=True):
                weights[name].CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    return proto


def values_of(model: ir.Model, name: str, images: np.ndarray) -> np.ndarray:
    """A value inside the model, computed by onnxruntime."""
    source = model.graph.inputs[0].name or ""
    parts = [Tap(model, [source], [name])({source: part})[name] for part in np.split(images, 4)]
    return np.concatenate(parts)


def away(model: ir.Model, told: dict[str, Statistics], images: np.ndarray) -> float:
    """The mean squared distance of means, in spreads, and of the logarithms of spreads."""
    gaps = []
    for name, own in told.items():
        seen = values_of(model, name, images)
        assert own.variance is not None
        gaps += [
            (seen.mean((0, 2, 3)) - own.mean) ** 2 / own.variance,
            np.log(seen.std((0, 2, 3)) / np.sqrt(own.variance)) ** 2,
        ]
    return float(np.mean(gaps))


def folded(proto: onnx.ModelProto) -> tuple[ir.Model, dict[str, Statistics]]:
    model = prepare(ir.serde.deserialize_model(proto))
    told = norm_outputs(model)
    fold_affine(model)
    remove_unused(model)
    return model, told


def test_folding_keeps_what_batch_norm_tells_of_the_training_data() -> None:
    model, told = folded(trained())
    assert set(told) == {"b", "e"}
    assert "BatchNormalization" not in {node.op_type for node in model.graph}
    assert away(model, told, make_images(200).inputs) < 1e-6


def test_images_come_to_have_the_statistics() -> None:
    model, told = folded(trained())
    start = away(model, told, synthesise(model, told, (1, 3, 12, 12), 128, recipe=Recipe(steps=0)))
    end = away(model, told, synthesise(model, told, (1, 3, 12, 12), 128))
    assert end < start / 5
    assert end < 0.02


@pytest.mark.parametrize("pixels", [1.0, 60.0])
def test_pixels_are_of_the_size_that_the_network_was_trained_on(pixels: float) -> None:
    model, told = folded(trained(pixels))
    images = synthesise(model, told, (1, 3, 12, 12), 128)
    assert away(model, told, images) < 0.05
    assert 0.5 < images.std() / (pixels * make_images(200).inputs).std() < 2


def test_a_seed_says_which_images() -> None:
    model, told = folded(trained())
    first, same, other = (
        synthesise(model, told, (1, 3, 12, 12), 20, seed=seed, recipe=Recipe(steps=3)) for seed in (4, 4, 5)
    )
    assert first.shape == (20, 3, 12, 12)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).mean() > 0.1
    assert len(np.unique(first.reshape(20, -1), axis=0)) == 20


def test_a_model_of_a_fixed_batch_gets_as_many_images_as_asked_for() -> None:
    model, told = folded(trained(text=TWO_NORMS.replace("float[N,", "float[50,")))
    assert synthesise(model, told, (50, 3, 12, 12), 120, recipe=Recipe(steps=2)).shape == (120, 3, 12, 12)


@pytest.mark.parametrize(("room", "workers"), [(2**40, 4), (2 * 128 * 4 * 12 * 12 * 50, 2), (1, 1)])
def test_as_many_batches_are_made_together_as_memory_holds(
    monkeypatch: pytest.MonkeyPatch, room: int, workers: int
) -> None:
    """Of each of the 128 images of a batch the network makes 40 channels of 12 x 12, and a few numbers."""
    model, told = folded(trained())
    seen: list[int] = []

    def recorded(count: int, **options: Any) -> ThreadPoolExecutor:
        seen.append(count)
        return ThreadPoolExecutor(count, **options)

    monkeypatch.setattr("trp_export.calibration.memory._HELD_BYTES", room)
    monkeypatch.setattr("trp_export.recover.torch_graph.ThreadPoolExecutor", recorded)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    synthesise(model, told, (1, 3, 12, 12), 16, recipe=Recipe(steps=1))
    assert seen == [workers]


def test_a_product_behind_batch_norm_leaves_its_statistics_to_others(trp: Command, tmp_path: Path) -> None:
    """As Caffe writes batch norm. What is folded together has the name of the last part."""
    text = TWO_NORMS.replace("b = BatchNormalization (", "n = BatchNormalization (").replace(
        "c = Relu (b)", "t = Constant <value_float = 1.5> () b = Mul (n, t) c = Relu (b)"
    )
    save(trained(text=text), tmp_path / "model.onnx")
    outcome = trp("model.onnx", "--macs", "1.2", "--calib", "synthetic", "--calib-count", "64", "--no-bench")
    assert outcome.code == 0, outcome.err
    assert "64 images were synthesised" in outcome.out


def test_images_drawn_for_a_large_fixed_batch_fill_it(
    trp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trp_export.steps.synthetic_samples._DRAWN_MACS", 1)
    save(of_full_rank(WITHOUT_NORM.replace("float[N,", "float[32,")), tmp_path / "model.onnx")
    outcome = trp("model.onnx", "--macs", "1.2", "--calib", "synthetic", "--no-bench")
    assert outcome.code == 0, outcome.err
    assert "64 images were synthesised" in outcome.out


def test_the_progress_ends_at_the_whole_and_may_interrupt() -> None:
    model, told = folded(trained())
    shares: list[float] = []
    synthesise(model, told, (1, 3, 12, 12), 300, recipe=Recipe(steps=3), progress=shares.append)
    assert max(shares) == pytest.approx(1)

    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesise(model, told, (1, 3, 12, 12), 300, recipe=Recipe(steps=10**6), progress=interrupt)


def test_large_networks_get_fewer_images() -> None:
    counts = [affordable(macs) for macs in (0, 10**6, 41 * 10**6, 10**9, 10**12)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 1024
    assert counts[-1] > 0
    assert affordable(10**8, 10**7) < affordable(10**8)


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5, 7)])
def test_channel_moments_have_the_gradients_of_torch(shape: tuple[int, ...]) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    axes = [axis for axis in range(len(shape)) if axis != 1]
    wanted = torch.stack([value.mean(dim=axes), value.var(dim=axes, correction=0)])
    got = torch.stack(_ChannelMoments.apply(value))
    weights = torch.arange(1.0, 7.0).reshape(2, 3)
    torch.testing.assert_close(got, wanted)
    gradients = [torch.autograd.grad((weights * one).sum(), [value])[0] for one in (got, wanted)]
    torch.testing.assert_close(*gradients)


def test_statistics_that_were_never_gathered_tell_nothing() -> None:
    proto = build(TWO_NORMS)
    for tensor in proto.graph.initializer:
        if tensor.name.endswith((".mean", ".var")):
            value = np.full(tensor.dims, float(tensor.name.endswith(".var")), dtype=np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    assert norm_outputs(prepare(ir.serde.deserialize_model(proto))) == {}


def test_what_cannot_be_synthesised_is_refused() -> None:
    model, told = folded(trained())
    with pytest.raises(UnsupportedError, match=r"untrained\.\nGive images with --calib PATH"):
        synthesise(model, {}, (1, 3, 12, 12), 16)
    with pytest.raises(UnsupportedError, match="one input of shape"):
        synthesise(model, told, (1, 3), 16)
    with pytest.raises(OptionError, match="count must be at least 1, not 0"):
        Calibration("synthetic", count=0)


def test_an_export_says_that_its_images_were_synthetic(trp: Command, tmp_path: Path) -> None:
    save(trained(), tmp_path / "model.onnx")
    export = ("model.onnx", "--macs", "1.5", "--calib", "synthetic", "--calib-count", "48", "--seed", "7", "--no-bench")
    outcome = trp(*export)
    assert outcome.code == 0, outcome.err
    document = json.loads((tmp_path / "model.trp.json").read_text())
    calibration = document["options"]["calibration"]
    assert (calibration["path"], calibration["count"], calibration["seed"]) == ("synthetic", 48, 7)
    assert any("48 images were synthesised" in note and "seed 7" in note for note in document["notes"])
    outcome = trp(*export, "--bundle", "bundle")
    assert outcome.code == 0, outcome.err
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["provenance"]["options"]["calibration"]["path"] == "synthetic"
    assert any("48 images were synthesised" in note for note in manifest["evidence"]["notes"])
    page = (tmp_path / "bundle" / "report.html").read_text()
    assert "--calib synthetic --calib-count 48 --seed 7" in page


def test_labelled_images_beside_synthetic_ones_are_prepared(trp: Command, tmp_path: Path) -> None:
    save(trained(), tmp_path / "model.onnx")
    images = np.random.default_rng(0).integers(0, 255, (8, 12, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "labelled.npz", images=images, labels=np.arange(8) % 5)
    arguments = ("--calib", "synthetic", "--calib-count", "16", "--eval", "labelled.npz", "--mean", "0.5")
    outcome = trp("model.onnx", "--macs", "1.5", *arguments, "--no-bench", "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["options"]["preprocessing"]["mean"] == [0.5]
    assert document["deviation"]["seen"] is None


def test_a_count_below_one_names_the_option(refuses: Command, tmp_path: Path) -> None:
    save(trained(), tmp_path / "model.onnx")
    for calib in ("synthetic", "images.npy"):
        arguments = ("--macs", "1.5", "--calib", calib, "--calib-count", "0")
        assert "--calib-count must be at least 1, not 0" in refuses(2, "model.onnx", *arguments)


def test_a_folder_of_that_name_is_meant_by_its_path(refuses: Command, tmp_path: Path) -> None:
    save(trained(), tmp_path / "model.onnx")
    assert "does not exist" in refuses(3, "model.onnx", "--macs", "1.5", "--calib", "./synthetic")


def test_without_batch_norm_images_are_drawn(trp: Command, tmp_path: Path) -> None:
    save(build(WITHOUT_NORM), tmp_path / "model.onnx")
    outcome = trp("model.onnx", "--energy", "0.999", "--calib", "synthetic", "--no-bench", "--json")
    assert outcome.code == 0, outcome.err
    assert any("256 images were synthesised" in note for note in json.loads(outcome.out)["notes"])
    again = trp("model.onnx", "--energy", "0.999", "--calib", "synthetic", "--no-bench", "--json")
    assert again.out == outcome.out


def test_an_input_that_is_not_an_image_is_refused(refuses: Command, tmp_path: Path) -> None:
    save(build(ON_FEATURES), tmp_path / "model.onnx")
    error = refuses(4, "model.onnx", "--energy", "0.9", "--calib", "synthetic")
    assert "images cannot be synthesised for input image" in error
    assert "--calib PATH" in error


@pytest.fixture
def unasked(tmp_path: Path) -> Callable[..., Report]:
    """Exports a model file where the user does not mention images."""

    def export(text: str, rule: Rule) -> Report:
        model = save(of_full_rank(text), tmp_path / "model.onnx")
        return compress(model, Options(rule, benchmark=KEEP_ALL, output=tmp_path / "small.onnx"))

    return export


def test_images_are_synthesised_unasked(unasked: Callable[..., Report]) -> None:
    report = unasked(WITHOUT_NORM, Energy(0.9999))
    assert any("256 images were synthesised" in note for note in report.notes)
    assert report.options.calibration is None


@pytest.mark.parametrize("text", [WITHOUT_NORM, None], ids=["shapes", "noise"])
def test_a_result_far_from_the_original_is_refused_unless_the_user_insists(
    unasked: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    monkeypatch.setattr(closeness, "_MOST_DIVERGENCE", 0.0)
    monkeypatch.setattr(closeness, "_MOST_ON_NOISE", 0.1)
    with pytest.raises(FarFromOriginalError, match="--calib PATH") as refused:
        unasked(text or ON_FEATURES, Rank(1))
    assert not (tmp_path / "small.onnx").exists()
    word = "synthetic" if text else "none"
    assert f"--calib {word} writes it all the same" in str(refused.value)
    assert f"Give {'images' if text else 'real inputs'} " in str(refused.value)
    options = Options(Rank(1), calibration=Calibration(word), benchmark=KEEP_ALL, output=tmp_path / "small.onnx")
    compress(tmp_path / "model.onnx", options)
    assert (tmp_path / "small.onnx").exists()


def test_a_refusal_shows_what_would_have_been_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closeness, "_MOST_DIVERGENCE", 0.0)
    model = save(of_full_rank(WITHOUT_NORM), tmp_path / "model.onnx")
    words = [str(model), "--rank", "1", "--no-bench", "--keep-slow-pairs", "-o", str(tmp_path / "small.onnx")]
    ended = CliRunner().invoke(command, words)
    assert isinstance(ended.exception, FarFromOriginalError)
    assert "layers of model would become factor pairs" in ended.stdout
    assert "note: 256 images were synthesised" in ended.stdout
    assert not (tmp_path / "small.onnx").exists()


def test_the_scale_counts_at_which_answers_move_least() -> None:
    score = _held_out(np.array([1.0, 3.0, 0.1, 0.3]), 4, np.array([0, 0, 1, 1]))
    assert (score.divergence, score.least) == (pytest.approx(1.1), pytest.approx(0.2))
    assert _held_out(np.array([1.0, 3.0]), 2, None).least == 2.0


def test_no_images_are_made_for_a_saved_plan_or_none() -> None:
    assert Options().with_calibration.calibration is None
    assert Options(Energy(0.9), calibration=Calibration("none")).with_calibration.calibration is None
    with pytest.raises(OptionError, match="goes by the weights alone"):
        Calibration("none", count=3)
    with pytest.raises(OptionError, match="int8 needs images"):
        Options(Energy(0.9), calibration=Calibration("none"), precision="int8")
