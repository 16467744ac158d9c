"""Channels through the command: without a rule, with one, from a saved plan, and with plans that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Command
from models import CONV_NET, build, noise, relative_l2, run, save
from onnx import numpy_helper

BATCH_NORM = ("bn1.weight", "bn1.bias", "bn1.mean", "bn1.var")


def redundant(path: Path) -> Path:
    """conv1 has 16 channels: three of them are equal, and one is always zero."""
    model = build(CONV_NET)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        array = rng.uniform(0.5, 1.5, array.shape).astype(np.float32) if tensor.name in BATCH_NORM else array.copy()
        if tensor.name in ("conv1.weight", *BATCH_NORM):
            array[5] = array[9] = array[2]
        if tensor.name in ("bn1.weight", "bn1.bias"):
            array[3] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return save(model, path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return redundant(tmp_path / "model.onnx")


def require_same(wide: Path, thin: Path) -> None:
    inputs = noise(onnx.load(wide))
    for wanted, got in zip(run(wide, inputs), run(thin, inputs), strict=True):
        assert relative_l2(wanted, got) < 1e-5


def test_without_a_rule_equal_and_dead_channels_go(model: Path, trp: Command, tmp_path: Path) -> None:
    outcome = trp("model.onnx", "--no-bench", "--json", "--report", "page.html", "-o", "thin.onnx")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    (group,) = report["plan"]["channels"]
    assert (group["name"], group["channels"], group["kept"]) == ("conv1", 16, 13)
    assert (group["merged"], group["dropped"]) == ([[2, 5, 9]], [3])
    assert report["after"]["macs"] < report["before"]["macs"]
    assert "1 of 3 channel groups lose channels" in (tmp_path / "page.html").read_text()
    require_same(model, tmp_path / "thin.onnx")


def test_without_anything_to_remove_the_graph_is_cleaned_up(trp: Command, tmp_path: Path) -> None:
    save(build(), tmp_path / "model.onnx")
    outcome = trp("model.onnx", "--no-bench", "-o", "clean.onnx")
    assert outcome.code == 0, outcome.err
    assert "No two channels of model are equal and none is constant" in outcome.out
    require_same(tmp_path / "model.onnx", tmp_path / "clean.onnx")


def test_dry_run_lists_the_groups_that_lose_channels(model: Path, trp: Command) -> None:
    outcome = trp("model.onnx", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "16 to 13  2 equal to another and 1 constant or not read" in outcome.out
    assert "1 of 3 channel groups of model would lose channels at no loss" in outcome.out


def test_layers_become_thinner_and_factors(model: Path, trp: Command, tmp_path: Path) -> None:
    outcome = trp("model.onnx", "--rank", "2", "--no-bench", "--json", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    plan = json.loads(outcome.out)["plan"]
    assert plan["channels"][0]["kept"] == 13
    assert any(layer["rank"] == 2 for layer in plan["layers"])
    require_same(model, tmp_path / "small.onnx")  # Its weights have rank 2, with and without copies.


def test_budget_counts_removed_channels(model: Path, trp: Command) -> None:
    outcome = trp("model.onnx", "--macs", "1.2", "--no-bench", "--json", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert not any(layer["rank"] for layer in report["plan"]["layers"])
    assert report["before"]["macs"] / report["after"]["macs"] >= 1.2


def test_calibrated_export_of_a_thinner_network(model: Path, trp: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).standard_normal((24, 3, 12, 12)).astype(np.float32))
    outcome = trp("model.onnx", "--rank", "2", "--calib", "images.npy", "--no-bench", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    require_same(model, tmp_path / "small.onnx")


def test_saved_plan_is_repeated(model: Path, trp: Command, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(trp("model.onnx", "--dry-run", "--json").out)
    outcome = trp("model.onnx", "--plan", "plan.json", "--no-bench", "-o", "thin.onnx")
    assert outcome.code == 0, outcome.err
    require_same(model, tmp_path / "thin.onnx")


def test_a_plan_that_merges_into_the_first_channel_of_the_network_is_repeated(trp: Command, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y)
    <float[8, 3, 1, 1] a__weight, float[5, 8, 1, 1] b__weight> { a = Conv (x, a__weight)  y = Conv (a, b__weight) }"""
    model = build(text)
    for tensor in model.graph.initializer:
        if tensor.name == "a.weight":
            array = numpy_helper.to_array(tensor).copy()
            array[4:] = array[:4]
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    wide = save(model, tmp_path / "model.onnx")
    plan = trp("model.onnx", "--dry-run", "--json").out
    assert json.loads(plan)["channels"][0]["merged"][0] == [0, 4]
    (tmp_path / "plan.json").write_text(plan)
    outcome = trp("model.onnx", "--plan", "plan.json", "--no-bench", "-o", "thin.onnx")
    assert outcome.code == 0, outcome.err
    require_same(wide, tmp_path / "thin.onnx")


def test_plan_without_channels_removes_none(model: Path, trp: Command, tmp_path: Path) -> None:
    plan = json.loads(trp("model.onnx", "--dry-run", "--json").out)
    del plan["channels"]
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"version": 1}))
    outcome = trp("model.onnx", "--plan", "plan.json", "--dry-run", "--json")
    assert "channels" not in json.loads(outcome.out)


def test_skipped_layer_keeps_its_channels(model: Path, trp: Command) -> None:
    outcome = trp("model.onnx", "--skip", "conv1", "--dry-run", "--json")
    assert "channels" not in json.loads(outcome.out)


DEPTHWISE = """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y)
<float[8, 3, 1, 1] a__weight, float[8, 1, 3, 3] b__weight, float[5, 8, 1, 1] c__weight> {
    a = Conv (x, a__weight)  b = Conv <group = 8, pads = [1, 1, 1, 1]> (a, b__weight)  y = Conv (b, c__weight)
}"""
RECURRENT = """<ir_version: 10, opset_import: ["" : 17]> net (float[5, 1, 3] x) => (float[1, 1, 4] y)
<float[3, 8] a__weight, float[1, 16, 8] w, float[1, 16, 4] r> {
    a = MatMul (x, a__weight)  [rnn] all, y, last = LSTM <hidden_size = 4> (a, w, r)
}"""


@pytest.mark.parametrize(("text", "layer"), [(DEPTHWISE, "b"), (RECURRENT, "rnn")])
def test_what_a_skipped_layer_reads_stays_whatever_kind_of_layer_it_is(
    text: str, layer: str, trp: Command, tmp_path: Path
) -> None:
    proto = build(text)
    for tensor in proto.graph.initializer:
        array = np.random.default_rng(0).standard_normal(tuple(tensor.dims)).astype(np.float32)
        for axis in range(array.ndim):
            if array.shape[axis] == 8 and tensor.name in ("a.weight", "b.weight"):
                array = np.take(array, np.arange(8) // 2, axis)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    save(proto, tmp_path / "model.onnx")
    plan = trp("model.onnx", "--dry-run", "--json").out
    assert json.loads(plan)["channels"][0]["kept"] == 4
    (tmp_path / "plan.json").write_text(plan)
    for wish in ((), ("--plan", "plan.json")):
        outcome = trp("model.onnx", "--skip", layer, *wish, "--dry-run", "--json")
        assert outcome.code == 0, outcome.err
        assert "channels" not in json.loads(outcome.out)


@pytest.mark.parametrize("wish", [("--skip", "conv1"), ("--only", "conv2")])
def test_a_saved_plan_leaves_out_layers_by_name(
    wish: tuple[str, str], model: Path, trp: Command, tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_text(trp("model.onnx", "--dry-run", "--json").out)
    outcome = trp("model.onnx", "--plan", "plan.json", *wish, "--no-bench", "--json", "-o", "wide.onnx")
    assert outcome.code == 0, outcome.err
    assert "channels" not in json.loads(outcome.out)["plan"]
    require_same(model, tmp_path / "wide.onnx")


@pytest.mark.parametrize("fault", ["no kernel is cut", "an error"])
def test_a_network_that_would_not_run_with_fewer_channels_keeps_them(
    fault: str, model: Path, trp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(removal: object, step: object) -> None:
        if fault == "an error":
            raise LookupError("an operator of next year")

    monkeypatch.setattr("trp_export.channels.removal._Removal.cut_kernel", cut)
    outcome = trp("model.onnx", "--no-bench", "-o", "wide.onnx")
    assert outcome.code == 0, outcome.err
    assert "all channels stay, since with fewer this network does not run" in outcome.out
    require_same(model, tmp_path / "wide.onnx")


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        ({"name": "conv9"}, "the network has no channel group of that name", 2),
        ({"channels": 20}, "the network has 16 channels in the group of that name", 2),
        ({"merged": [[0, 1]], "dropped": []}, "the plan merges channels that are not equal in conv1", 2),
        ({"merged": [], "dropped": [0]}, "the plan drops channels that are not zero in conv1", 2),
        ({"merged": [[2, 99]]}, "conv1 has 16 channels, counted from 0", 3),
        ({"merged": [[2, 2]]}, "a channel is named twice", 3),
        ({"merged": [[2]]}, '"merged" must be a list of lists of two or more channels', 3),
        ({"channels": "16"}, '"channels" must be a whole number', 3),
    ],
)
def test_plan_that_does_not_fit_is_refused(
    change: dict[str, object], message: str, code: int, model: Path, trp: Command, refuses: Command, tmp_path: Path
) -> None:
    plan = json.loads(trp("model.onnx", "--dry-run", "--json").out)
    plan["channels"][0] |= change
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert message in refuses(code, "model.onnx", "--plan", "plan.json", "-o", "thin.onnx")
