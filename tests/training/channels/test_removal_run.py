"""Runs of trp-train --method dagger and magnitude: what they write, how they resume, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import TINY, options_for, require_exported_as_trained, stop_at, train

from training.checkpoint import load_network
from training.loop import TrainingRun
from trp_export.errors import LoadError, OptionError, StoppedEarly

DAGGER: dict[str, Any] = {"method": "dagger", "strength": None, "gate_steps": 12}
MAGNITUDE: dict[str, Any] = {"method": "magnitude", "strength": None}
WIDTHS: dict[str, Any] = {"widths": 0.5}
MACS: dict[str, Any] = {"widths": None, "macs": 2.0}


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        pytest.param(DAGGER, WIDTHS, marks=pytest.mark.slow),
        (MAGNITUDE, WIDTHS),
        (DAGGER, MACS),
        pytest.param(MAGNITUDE, MACS, marks=pytest.mark.slow),
    ],
    ids=["dagger to widths", "magnitude to widths", "dagger to macs", "magnitude to macs"],
)
def test_removed_filters_go_in_an_export(
    stripes: Path, tmp_path: Path, method: dict[str, Any], rule: dict[str, Any]
) -> None:
    run = train(options_for(stripes, tmp_path / "run", epochs=3, keep="last", **method | rule))
    assert run.history[-1]["macs_ratio"] >= 2
    require_exported_as_trained(run, tmp_path)


@pytest.mark.parametrize("method", [DAGGER, MAGNITUDE], ids=["dagger", "magnitude"])
def test_model_file_has_the_accuracy_of_the_cut_network(stripes: Path, tmp_path: Path, method: dict[str, Any]) -> None:
    run = train(options_for(stripes, tmp_path / "run", epochs=6, **method))
    network = load_network(tmp_path / "run" / "model.pt", TINY)
    assert run.accuracy(network.module) == run.kept["cut_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("method", "epoch", "step"),
    [(DAGGER, 0, 5), pytest.param(DAGGER, 2, 7, marks=pytest.mark.slow), (MAGNITUDE, 1, 3)],
    ids=["gates", "weights", "magnitude"],
)
def test_a_stopped_run_resumes_to_the_same_bits(
    stripes: Path, tmp_path: Path, method: dict[str, Any], epoch: int, step: int
) -> None:
    whole = train(options_for(stripes, tmp_path / "whole", **method))
    with pytest.raises(StoppedEarly):
        train(options_for(stripes, tmp_path / "run", **method), stop_at(epoch, step))
    resumed = TrainingRun(options_for(stripes, tmp_path / "run", **method), lambda record: None, resume=True)
    resumed.train()
    for mine, other in zip(resumed.history, whole.history, strict=True):
        assert all(mine[key] == other[key] for key in ("loss", "accuracy", "cut_accuracy", "macs_ratio"))
    for name, value in whole.network.module.state_dict().items():
        assert torch.equal(value, resumed.network.module.state_dict()[name]), name


def test_damaged_gates_are_refused(stripes: Path, tmp_path: Path) -> None:
    options = options_for(stripes, tmp_path / "run", **DAGGER)
    with pytest.raises(StoppedEarly):
        train(options, stop_at(0, 5))
    path = tmp_path / "run" / "last.pt"
    content = torch.load(path, weights_only=True)
    method = content["method"]
    for change in ({"gates": {}}, {"open": []}, {"adam": {0: {"step": "x"}}}, {"stay": [[True]]}, {"step": 4}):
        torch.save(content | {"method": method | change}, path)
        with pytest.raises(LoadError, match="does not fit"):
            TrainingRun(options, lambda record: None, resume=True)
    torch.save(content | {"method": {key: value for key, value in method.items() if key != "gates"}}, path)
    with pytest.raises(LoadError, match="does not fit"):
        TrainingRun(options, lambda record: None, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (DAGGER | {"widths": None}, "--method dagger needs a number of filters: --macs RATIO or --widths FRACTION"),
        (MAGNITUDE | {"factors": 1}, "--method magnitude makes no factors; leave --factors out"),
        (DAGGER | {"gate_steps": 0}, "--gate-steps must be at least 1, not 0"),
        (DAGGER | {"penalty": 0.0}, "--penalty must be a number above 0"),
        (DAGGER | {"gate_lr": float("nan")}, "--gate-lr must be a number above 0"),
    ],
)
def test_options_that_contradict_are_refused(
    stripes: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        options_for(stripes, tmp_path / "run", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            DAGGER | {"gate_steps": 5000},
            r"--gate-steps 5000 leaves none of the \d+ steps of this run to train the weights",
        ),
        (DAGGER | {"widths": None, "macs": 1000.0}, "--macs 1000 is out of reach"),
        (MAGNITUDE | {"widths": None, "macs": 1000.0}, "--macs 1000 is out of reach"),
    ],
)
def test_targets_out_of_reach_are_refused(stripes: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TrainingRun(options_for(stripes, tmp_path / "run", **changes), lambda record: None)
