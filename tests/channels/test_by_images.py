"""Channels that go by images: the budget, the proof, the plan and its replay."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from command import Command
from models import build, run, save

from models_zoo import find_architecture
from trp_export.calibration.divergence import divergence
from trp_export.calibration.moments import load_moments
from trp_export.errors import OptionError
from trp_export.options import Benchmark, Calibration, Options, Selection
from trp_export.pipeline import silent
from trp_export.rules import Energy, Macs, Speedup
from trp_export.steps import thin_channels
from trp_export.steps.knowledge import learn
from trp_export.steps.thin_channels import Thinner
from trp_export.workspace import open_workspace

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 16, 16] image) => (float[N, 8] scores)
<float[8, 3, 3, 3] conv1__weight, float[64, 8, 1, 1] conv2__weight, float[64] conv2__bias,
 float[64, 1, 3, 3] conv3__weight, float[8, 64, 1, 1] conv4__weight, float[8] conv4__bias>
{
    a = Conv <pads = [1, 1, 1, 1]> (image, conv1__weight)
    b = Conv (a, conv2__weight, conv2__bias)
    c = Relu (b)
    d = Conv <pads = [1, 1, 1, 1], group = 64> (c, conv3__weight)
    e = Relu (d)
    f = Conv (e, conv4__weight, conv4__bias)
    g = GlobalAveragePool (f)
    scores = Flatten (g)
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network with four times as many inner channels as it needs, almost, and images."""
    rng = np.random.default_rng(5)
    proto = build(NET)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in proto.graph.initializer}
    for name, value in values.items():
        if value.ndim == 4:
            values[name] = rng.standard_normal(value.shape) / np.sqrt(np.prod(value.shape[1:]))
    for name, value in values.items():
        if name.startswith(("conv2", "conv3")):
            values[name] = np.tile(value[:16], (4, *[1] * (value.ndim - 1)))
    values["conv2.weight"] += 0.01 * rng.standard_normal(values["conv2.weight"].shape)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(values[tensor.name].astype(np.float32), tensor.name))
    save(proto, tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", rng.standard_normal((64, 3, 16, 16)).astype(np.float32))
    return tmp_path


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer}


EXPORT = ("model.onnx", "--macs", "1.8", "--channels", "on", "--calib", "images.npy", "--no-bench")


def test_channels_that_others_can_stand_for_go(trp: Command, folder: Path) -> None:
    outcome = trp(*EXPORT, "--report", "page.html")
    assert outcome.code == 0, outcome.err
    (kernel,) = (shape for shape in shapes(folder / "model.trp.onnx").values() if shape[1:] == (1, 3, 3))
    assert kernel[0] <= 32
    document = json.loads((folder / "model.trp.json").read_text())
    assert document["before"]["macs"] / document["after"]["macs"] >= 1.8
    (group,) = (group for group in document["plan"].get("channels", ()) if group.get("fitted"))
    assert group["name"] == "conv2"
    assert "what reads them is refitted" in outcome.out
    assert "at no loss" not in (folder / "page.html").read_text()
    assert document["deviation"]["truncation"]["relative_l2"] < 0.2


def test_the_plan_repeats_it_with_images_and_needs_them(trp: Command, refuses: Command, folder: Path) -> None:
    assert trp(*EXPORT).code == 0
    document = json.loads((folder / "model.trp.json").read_text())
    (folder / "plan.json").write_text(json.dumps(document["plan"]))
    again = trp("model.onnx", "--plan", "plan.json", "--calib", "images.npy", "--no-bench", "-o", "again.onnx")
    assert again.code == 0, again.err
    first, second = (onnx.load(folder / name).graph.initializer for name in ("model.trp.onnx", "again.onnx"))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other))
    error = refuses(2, "model.onnx", "--plan", "plan.json", "--no-bench", "-o", "other.onnx")
    assert "which needs images: give --calib PATH" in error


def test_the_plan_leaves_channels_of_skipped_layers_alone(trp: Command, folder: Path) -> None:
    assert trp(*EXPORT).code == 0
    document = json.loads((folder / "model.trp.json").read_text())
    (folder / "plan.json").write_text(json.dumps(document["plan"]))
    words = ("model.onnx", "--plan", "plan.json", "--calib", "images.npy", "--skip", "conv3", "--no-bench")
    outcome = trp(*words, "-o", "kept.onnx")
    assert outcome.code == 0, outcome.err
    assert (64, 1, 3, 3) in shapes(folder / "kept.onnx").values()


def test_saved_statistics_are_of_the_network_with_all_channels(trp: Command, folder: Path) -> None:
    for run_number in (1, 2):
        outcome = trp(*EXPORT, "--calib-stats", "stats.npz", "-o", f"{run_number}.onnx")
        assert outcome.code == 0, outcome.err
    moments = load_moments(folder / "stats.npz")
    assert moments["conv4"].total.shape == (1, 64)
    assert moments["conv4"].images == 48  # The same images count once.


REDUCED = "low rank and fewer channels"


def test_the_original_in_another_precision_has_all_channels(trp: Command, folder: Path) -> None:
    words = ("model.onnx", "--macs", "2.4", "--channels", "on", "--calib", "images.npy", "--keep-slow-pairs")
    outcome = trp(*words, "--precision", "int8", "--budget", "0.2")
    assert outcome.code in (0, 10), outcome.err
    assert fitted(folder)
    variants = json.loads((folder / "model.trp.json").read_text())["variants"]
    assert {one["name"] for one in variants if one["low_rank"]} == {f"{REDUCED}, {one}" for one in ("fp32", "int8")}
    (alone,) = (one for one in variants if one["name"] == "fp32 alone")
    assert alone["bytes"] > 0.9 * (folder / "model.onnx").stat().st_size


def test_a_skipped_layer_keeps_its_channels(trp: Command, folder: Path) -> None:
    outcome = trp(*EXPORT, "--macs", "1.2", "--skip", "conv4", "-o", "kept.onnx")
    assert outcome.code == 0, outcome.err
    assert (64, 1, 3, 3) in shapes(folder / "kept.onnx").values()


@pytest.mark.slow
def test_a_pytorch_network_may_lose_channels(trp: Command, folder: Path) -> None:
    torch.save(find_architecture("resnet14x0.5").build(None).state_dict(), folder / "thin.pt")
    np.save(folder / "small.npy", np.random.default_rng(3).standard_normal((16, 3, 32, 32)).astype(np.float32))
    words = ("thin.pt", "--arch", "resnet14x0.5", "--macs", "2", "--calib", "small.npy", "--channels", "on")
    outcome = trp(*words, "--no-recover", "--no-bench", "-o", "model.trp.onnx")
    assert outcome.code == 0, outcome.err
    assert fitted(folder)


def fitted(folder: Path) -> list[str]:
    document = json.loads((folder / "model.trp.json").read_text())
    return [group["name"] for group in document["plan"].get("channels", ()) if group.get("fitted")]


AUTO = tuple(word for word in EXPORT if word not in ("--channels", "on"))


def test_channels_go_unasked_where_that_does_less_damage(trp: Command, folder: Path) -> None:
    assert trp(*AUTO).code == 0
    assert fitted(folder) == ["conv2"]
    assert trp(*AUTO, "--channels", "off", "-o", "pairs.onnx").code == 0
    assert (64, 1, 3, 3) in shapes(folder / "pairs.onnx").values()


def test_channels_stay_where_pairs_do_less_damage(trp: Command, folder: Path) -> None:
    rng = np.random.default_rng(8)
    proto = onnx.load(folder / "model.onnx")
    for tensor in proto.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.ndim == 4 and 1 not in value.shape[:2]:  # Every channel is needed, and the kernels have a low rank.
            rows = value.reshape(len(value), -1)
            value = (rng.standard_normal((len(rows), 3)) @ rng.standard_normal((3, rows.shape[1]))).reshape(value.shape)
        elif value.ndim == 4:
            value = rng.standard_normal(value.shape)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), tensor.name))
    save(proto, folder / "model.onnx")
    assert trp(*AUTO, "--macs", "1.4").code == 0
    assert fitted(folder) == []


def test_channels_of_a_gated_block_go_from_all_that_reads_them(trp: Command, folder: Path) -> None:
    """As in MobileNetV3: a depthwise conv whose channels a squeeze reads, gates and a projection."""
    gate = """h = GlobalAveragePool (e)
    i = Conv (h, squeeze__weight, squeeze__bias)
    j = Relu (i)
    k = Conv (j, excite__weight)
    l = HardSigmoid (k)
    m = Mul (e, l)
    f = Conv (m,"""
    weights = "float[16, 64, 1, 1] squeeze__weight, float[16] squeeze__bias, float[64, 16, 1, 1] excite__weight>"
    proto = build(
        NET.replace("f = Conv (e,", gate).replace("float[8] conv4__bias>", f"float[8] conv4__bias, {weights}")
    )
    rng = np.random.default_rng(6)
    known = {tensor.name: tensor for tensor in onnx.load(folder / "model.onnx").graph.initializer}
    for tensor in proto.graph.initializer:
        value = rng.standard_normal(tensor.dims) / 4
        if tensor.name == "excite.weight":
            value = np.tile(value[:16], (4, 1, 1, 1))
        own = onnx.numpy_helper.from_array(value.astype(np.float32), tensor.name)
        tensor.CopyFrom(known.get(tensor.name, own))
    save(proto, folder / "model.onnx")
    assert trp(*AUTO).code == 0
    assert "conv2" in fitted(folder)
    made = shapes(folder / "model.trp.onnx")
    assert made["squeeze.weight"][1] == made["excite.weight"][0] < 64
    document = json.loads((folder / "model.trp.json").read_text())
    assert document["deviation"]["truncation"]["relative_l2"] < 0.2


def test_a_graph_that_cannot_be_followed_is_no_obstacle_unasked(
    trp: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*given: object) -> None:
        raise KeyError("an operator of next year")

    monkeypatch.setattr("trp_export.steps.thin_channels.find_thinnable", stumble)
    outcome = trp(*AUTO)
    assert outcome.code == 0, outcome.err
    assert fitted(folder) == []
    assert "all channels stay, since this network is unlike those known" in outcome.out


def answer_a_map(folder: Path) -> None:
    """Leave out what comes behind the last conv."""
    proto = build(NET.replace("scores)", "f)", 1).replace("float[N, 8] f)", "float[N, 8, 16, 16] f)"))
    weights = {tensor.name: tensor for tensor in onnx.load(folder / "model.onnx").graph.initializer}
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(weights[tensor.name])
    del proto.graph.node[-2:]
    save(proto, folder / "model.onnx")


def test_channels_go_unasked_where_the_answer_is_a_map(trp: Command, folder: Path) -> None:
    answer_a_map(folder)
    assert trp(*AUTO).code == 0
    assert fitted(folder) == ["conv2"]
    assert trp(*AUTO, "--channels", "off", "-o", "pairs.onnx").code == 0
    assert moved(folder / "model.trp.json") < moved(folder / "pairs.json")


def moved(report: Path) -> float:
    return float(json.loads(report.read_text())["deviation"]["truncation"]["relative_l2"])


def test_the_damage_of_channels_is_measured(folder: Path) -> None:
    options = Options(
        Macs(1.8),
        Calibration(folder / "images.npy"),
        selection=Selection(channels="on"),
        benchmark=Benchmark(run=False),
        output=folder / "out.onnx",
    )
    with open_workspace(folder / "model.onnx", options, silent) as work:
        wide = learn(folder / "model.onnx", options, work)
        thin = Thinner(wide, options, work).fewer(options.effective_rule)
        assert wide.calibration is not None
        (images,) = (batch.arrays for batch in wide.calibration.held_out)
        (before,), (after,) = (run(knowledge.network.file, images) for knowledge in (wide, thin))
    assert thin.fewer_macs > 1
    assert thin.damage_done == pytest.approx(divergence({"y": before}, {"y": after}), rel=1e-3)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_of_networks_that_are_too_fast_the_last_is_kept(
    rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round asks for less; a later one may find that no channel needs to go."""
    made: list[Path] = []

    def choose(thinner: Thinner, *given: object) -> thin_channels._Gone:
        return thin_channels._Gone({"conv2": (0, 1)} if len(made) < rounds else {}, 0.1, 0.1)

    def without(*given: object) -> SimpleNamespace:
        made.append(tmp_path / f"{len(made)}" / "dense.onnx")
        made[-1].parent.mkdir()
        return SimpleNamespace(file=made[-1])

    monkeypatch.setattr(Thinner, "_choose", choose)
    monkeypatch.setattr(thin_channels, "_without", without)
    monkeypatch.setattr(thin_channels, "_refitted", lambda *given: None)
    latency = SimpleNamespace(speedup_of=lambda network: 1.3)
    wide = SimpleNamespace(network=None, by_images=SimpleNamespace(required=True), measured_latency=latency)
    removable = SimpleNamespace(data=SimpleNamespace(sensitivities={}))
    found = Thinner(wide, None, None)._not_too_fast(Speedup(1.1), None, removable, 1.0)
    assert found is not None
    assert found[0].file == made[rounds - 1]
    assert list(tmp_path.iterdir()) == [made[rounds - 1].parent]


def test_channels_need_a_budget_and_images() -> None:
    with pytest.raises(OptionError, match="give --speedup, --macs, --params or --max-drop"):
        Options(Energy(0.9), selection=Selection(channels="on"))
    with pytest.raises(OptionError, match="goes by your images"):
        Options(Macs(2), Calibration("none"), selection=Selection(channels="on"))
    with pytest.raises(OptionError, match="goes by your images"):
        Options(Macs(2), Calibration("synthetic"), selection=Selection(channels="on"))
    with pytest.raises(OptionError, match="must be one of auto, on, off"):
        Options(Macs(2), selection=Selection(channels="yes"))
