"""Statistics of images: each counts once, none that counted is held out, and gradients may be missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import Command
from models import build, save

from trp_export.calibration.moments import load_counted, load_moments, save_moments

EXPORT = ("model.onnx", "--rank", "2", "--no-bench", "--calib-stats", "stats.npz", "--calib")


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    save(build(), tmp_path / "model.onnx")
    images = np.random.default_rng(0).standard_normal((60, 3, 12, 12)).astype(np.float32)
    np.save(tmp_path / "first.npy", images[:40])
    np.save(tmp_path / "more.npy", images)


def notes(folder: Path) -> str:
    return " ".join(json.loads((folder / "model.trp.json").read_text())["notes"])


def test_the_same_images_count_once(trp: Command, tmp_path: Path) -> None:
    """They give the same network again: those that were held out still are."""
    made = []
    for _ in range(3):
        outcome = trp(*EXPORT, "first.npy")
        assert outcome.code == 0, outcome.err
        assert "10 held-out images" in outcome.out
        made.append((tmp_path / "model.trp.onnx").read_bytes())
        assert load_moments(tmp_path / "stats.npz")["conv1"].images == 30
    assert "30 of 40 images are in stats.npz already: they do not count again" in notes(tmp_path)
    assert made[1] == made[2]


def test_images_that_are_new_add_to_the_others(trp: Command, tmp_path: Path) -> None:
    assert trp(*EXPORT, "first.npy").code == 0
    before = load_counted(tmp_path / "stats.npz")
    assert "15 held-out images" in trp(*EXPORT, "more.npy").out
    after = load_counted(tmp_path / "stats.npz")
    assert load_moments(tmp_path / "stats.npz")["conv1"].images == len(after) == 60 - 15
    assert before < after


def test_nothing_is_held_out_of_images_that_all_counted(trp: Command, tmp_path: Path) -> None:
    assert trp(*EXPORT, "first.npy", "--calib-count", "1").code == 0
    assert trp(*EXPORT, "first.npy", "--calib-count", "1").code == 0
    assert "1 of 1 images are in stats.npz already: they do not count again, and none is held out" in notes(tmp_path)


def test_a_file_of_an_earlier_version_is_added_to(trp: Command, tmp_path: Path) -> None:
    assert trp(*EXPORT, "first.npy").code == 0
    save_moments(tmp_path / "stats.npz", load_moments(tmp_path / "stats.npz"))
    assert trp(*EXPORT, "first.npy").code == 0
    assert load_moments(tmp_path / "stats.npz")["conv1"].images == 2 * 30
    assert len(load_counted(tmp_path / "stats.npz")) == 30


def test_statistics_of_another_network_are_refused_for_images_that_counted(
    trp: Command, refuses: Command, tmp_path: Path
) -> None:
    assert trp(*EXPORT, "first.npy").code == 0
    moments, counted = load_moments(tmp_path / "stats.npz"), load_counted(tmp_path / "stats.npz")
    save_moments(tmp_path / "stats.npz", {f"{name}.other": own for name, own in moments.items()}, counted)
    assert "different networks" in refuses(2, *EXPORT, "first.npy")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("idx")], ids=["torch", "rules"])
def test_where_torch_fails_all_channels_count_alike(
    trp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from trp_export.calibration import gradients

    def fail(*arguments: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(gradients, "measure_owed", fail)
    outcome = trp(*EXPORT, "first.npy")
    assert outcome.code == 0, outcome.err
    assert "torch gives no gradients of this network" in notes(tmp_path)
