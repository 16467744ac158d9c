"""Runs of trp-train --method csgd: what they write, how they resume, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import TINY, options_for, require_exported_as_trained, stop_at, train
from tied_networks import merged_in_place
from tiny_networks import Tiny

from training import CSGD, CSGDSettings, Widths, cli
from training.checkpoint import load_network
from training.last_state import read_last_state
from training.loop import TrainingRun
from trp_export.errors import LoadError, OptionError, StoppedEarly


def test_a_run_leaves_equal_filters_that_merge_without_loss(stripes: Path, tmp_path: Path) -> None:
    run = train(options_for(stripes, tmp_path / "run", epochs=8, keep="last"))
    network = load_network(tmp_path / "run" / "model.pt", TINY)
    fresh = Tiny()
    plan = CSGD(fresh, torch.optim.SGD(fresh.parameters(), 0.1), CSGDSettings(rule=Widths(0.5)), (1, 3, 8, 8)).plan
    filters = network.module.conv2.weight.detach()
    assert len({tuple(kernel.flatten().tolist()) for kernel in filters}) == 6
    assert network.plan is None
    assert run.history[-1]["cut_accuracy"] > 0.9
    assert run.history[-1]["macs_ratio"] == pytest.approx(plan.ratio)


def test_the_filters_are_merged_by_an_export(stripes: Path, tmp_path: Path) -> None:
    run = train(options_for(stripes, tmp_path / "run", epochs=2))
    require_exported_as_trained(run, tmp_path)


def test_the_best_epoch_is_written_as_it_is_once_merged(stripes: Path, tmp_path: Path) -> None:
    run = TrainingRun(options_for(stripes, tmp_path / "run", epochs=2), lambda record: None)
    plan = run.method.plan  # type: ignore[union-attr]
    run.train()
    network = load_network(tmp_path / "run" / "model.pt", TINY)
    merged = merged_in_place(network.module, plan)
    assert run.accuracy(merged) == run.accuracy(network.module) == run.kept["cut_accuracy"]


@pytest.mark.parametrize(("epoch", "step"), [(0, 5), pytest.param(2, 7, marks=pytest.mark.slow)])
def test_a_stopped_run_resumes_to_the_same_bits(stripes: Path, tmp_path: Path, epoch: int, step: int) -> None:
    whole = train(options_for(stripes, tmp_path / "whole"))
    with pytest.raises(StoppedEarly):
        train(options_for(stripes, tmp_path / "run"), stop_at(epoch, step))
    resumed = TrainingRun(options_for(stripes, tmp_path / "run"), lambda record: None, resume=True)
    resumed.train()
    for name, value in whole.network.module.state_dict().items():
        assert torch.equal(value, resumed.network.module.state_dict()[name]), name


def test_damaged_clusters_are_refused(stripes: Path, tmp_path: Path) -> None:
    options = options_for(stripes, tmp_path / "run")
    with pytest.raises(StoppedEarly):
        train(options, stop_at(0, 5))
    path = tmp_path / "run" / "last.pt"
    content = torch.load(path, weights_only=True)
    assert read_last_state(tmp_path / "run").method is not None
    clusters = content["method"]["clusters"]
    for wrong in ([], clusters[:1], [[0] * len(labels) for labels in clusters], [["x"]] * len(clusters), 7):
        torch.save(content | {"method": content["method"] | {"clusters": wrong}}, path)
        with pytest.raises(LoadError, match="does not fit"):
            TrainingRun(options, lambda record: None, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": None}, "--method csgd needs a number of filters: --macs RATIO or --widths FRACTION"),
        ({"widths": None, "energy": 0.9}, "--method csgd needs a number of filters"),
        ({"method": "trp"}, "--widths needs --method csgd"),
        ({"factors": 2}, "--method csgd makes no factors; leave --factors out"),
        ({"widths": 1.0}, "--widths must be above 0 and below 1, not 1"),
        ({"macs": 2.0}, "--macs and --widths contradict each other"),
        ({"strength": -1.0}, "--strength must be a number from 0"),
    ],
)
def test_options_that_contradict_are_refused(
    stripes: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        options_for(stripes, tmp_path / "run", **changes)


def test_a_budget_out_of_reach_is_one_line(
    stripes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--arch", TINY, "--shape", "1,3,8,8", "--data", f"npz:{stripes}", "--validation", "64"]
    arguments += ["--batch", "16", "--method", "csgd", "-o", str(tmp_path / "run")]
    for more, code in (["--macs", "1000"], 2), (["--widths", "0.5", "--dry-run"], 0):
        monkeypatch.setattr("sys.argv", ["trp-train", *arguments, *more])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        output = capfd.readouterr()
        assert stopped.value.code == code, output.err
        if code:
            assert "--macs 1000 is out of reach" in output.err
            assert output.err.count("\n") == 1
        else:
            assert "4 of    8 filters  stem" in output.out
            assert "all filters of head stay: it is tied to an output of the network" in output.out
    assert not (tmp_path / "run").exists()


def test_history_is_that_of_any_run(stripes: Path, tmp_path: Path) -> None:
    train(options_for(stripes, tmp_path / "run", epochs=1, widths=None, macs=1.5, clusters="even"))
    (line,) = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["macs_ratio"] >= 1.5
