"""Channels go by images under a speed-up, and under a limit on what is lost, as under fewer multiply-adds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from command import Command
from latency.fake import FakeDevice

from trp_export import bench
from trp_export.latency import network

from .test_by_images import answer_a_map, fitted, folder, shapes

__all__ = ["folder"]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> FakeDevice:
    """One that takes time in proportion to multiply-adds, in the place of this machine."""
    device = FakeDevice({"image": (1, 3, 16, 16)}, per_node=0.0)
    monkeypatch.setattr(network, "DeviceUnderTest", lambda *_: device)
    monkeypatch.setattr(bench, "compare", lambda models, **_: device.compare(models))
    monkeypatch.setenv("TRP_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    return device


@pytest.mark.parametrize("map_out", [False, True])
def test_channels_go_for_a_speedup_that_pairs_do_not_reach_as_well(
    map_out: bool, trp: Command, folder: Path, device: FakeDevice
) -> None:
    if map_out:
        answer_a_map(folder)
    words = ("model.onnx", "--speedup", "1.6", "--calib", "images.npy", "--no-bench")
    outcome = trp(*words)
    assert outcome.code == 0, outcome.err
    document = json.loads((folder / "model.trp.json").read_text())
    assert fitted(folder) == ["conv2"]
    assert document["forecast"]["measured"] == pytest.approx(1.6, rel=0.06)
    assert any("held-out images the outputs differ" in note for note in document["notes"])
    assert trp(*words, "--channels", "off", "-o", "pairs.onnx").code == 0
    assert (64, 1, 3, 3) in shapes(folder / "pairs.onnx").values()


def test_the_smallest_network_within_a_drop_may_have_fewer_channels(trp: Command, folder: Path) -> None:
    images = np.load(folder / "images.npy")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    labels = session.run(None, {"image": images})[0].argmax(axis=1)
    np.savez(folder / "labelled.npz", images=images, labels=labels)
    words = ("model.onnx", "--max-drop", "5", "--eval", "labelled.npz", "--calib", "images.npy", "--no-bench")
    outcome = trp(*words)
    assert outcome.code == 0, outcome.err
    assert fitted(folder) == ["conv2"]
    document = json.loads((folder / "model.trp.json").read_text())
    reached = document["before"]["macs"] / document["after"]["macs"]
    assert reached >= 1.5
    chosen = document["frontier"]["points"][document["frontier"]["chosen"]]
    assert chosen["reached"] == pytest.approx(reached, rel=0.01)
    got = onnxruntime.InferenceSession(folder / "model.trp.onnx").run(None, {"image": images})[0].argmax(axis=1)
    assert (got == labels).mean() >= 0.95
    onnx.checker.check_model(folder / "model.trp.onnx")
