"""Fine-tuning by a saved plan: the factors are those of the plan, trained, kept at its ranks, and taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_run import SHAPE, TINY, load, options_for, silent, train
from tiny_networks import Tiny

from training.checkpoint import FACTORS
from training.cut import decompose, plan_from_file
from training.layers import find_layers, total_macs
from training.loop import TrainingRun
from trp_export.errors import LoadError, OptionError, TrpError
from trp_export.planning.saved_plan import parse_plan

LAYERS: list[dict[str, Any]] = [
    {"name": "stem", "scheme": None, "rank": None},
    {"name": "conv1", "scheme": "channel-wise", "rank": 3},
    {"name": "conv2", "scheme": "spatial-wise", "rank": 5},
    {"name": "point", "scheme": "matrix", "rank": 4},
    {"name": "only/in/the/graph", "scheme": None, "rank": None},
]


def write_plan(path: Path, layers: list[dict[str, Any]]) -> Path:
    document = {"format": "trp-plan", "version": 2, "rule": "by hand", "align": 1, "layers": layers}
    path.write_text(json.dumps({"plan": document}))
    return path


def test_the_factors_of_a_plan_are_trained_at_its_ranks(stripes: Path, tmp_path: Path) -> None:
    train(options_for(stripes, tmp_path / "dense", macs=None, epochs=1))
    dense = tmp_path / "dense" / "model.pt"
    plan = write_plan(tmp_path / "plan.json", LAYERS)
    options = options_for(stripes, tmp_path / "run", init=dense, plan=plan, macs=None, epochs=2, factors=2)
    run = TrainingRun(options, silent)
    module = load(dense).module
    expected = decompose(module, plan_from_file(plan, module, SHAPE))
    for name, value in expected.state_dict().items():
        assert torch.equal(run.network.module.state_dict()[name], value), name
    run.train()
    network = load(tmp_path / "run" / "model.pt")
    assert network.kind == FACTORS
    chosen = {
        choice.name: choice.branches for choice in parse_plan(network.plan, "the checkpoint").layers if choice.branches
    }
    wanted = {
        choice.name: choice.branches
        for choice in parse_plan(json.loads(plan.read_text()), "").layers
        if choice.branches
    }
    assert chosen == wanted
    assert run.history[-1]["ranks"] == {"conv1": 3, "conv2": 5, "point": 4}
    ratio = total_macs(find_layers(module, SHAPE)) / total_macs(find_layers(network.module, SHAPE))
    assert run.history[-1]["macs_ratio"] == ratio > 1
    assert not torch.equal(
        network.module.state_dict()["conv1.reduce.weight"], expected.state_dict()["conv1.reduce.weight"]
    )
    resumed = train(options, resume=True)
    assert all(
        torch.equal(run.network.module.state_dict()[name], value)
        for name, value in resumed.network.module.state_dict().items()
    )
    with pytest.raises(OptionError, match="holds factors already"):
        TrainingRun(
            options_for(stripes, tmp_path / "again", init=tmp_path / "run" / "model.pt", plan=plan, macs=None), silent
        )


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"name": "conv9", "scheme": "channel-wise", "rank": 3}, "the plan names conv9, which this model lacks"),
        ({"name": "conv1", "scheme": "channel-wise", "rank": 900}, "wants rank 900 for conv1, whose full rank is"),
        ({"name": "conv1", "scheme": "matrix", "rank": 1}, "wants matrix for conv1, where only channel-wise, "),
        ({"name": "point", "scheme": "channel-wise", "rank": 1}, "wants channel-wise for point, where only matrix"),
        ({"name": "conv1", "scheme": "input-sliced-3", "rank": 1}, "do not divide so"),
        (
            {
                "name": "conv1",
                "branches": [{"scheme": "channel-wise", "rank": 1}, {"scheme": "spatial-wise", "rank": 1}],
            },
            "makes conv1 the sum of two pairs",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(tmp_path: Path, layer: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        plan_from_file(write_plan(tmp_path / "plan.json", [layer]), Tiny(), SHAPE)


@pytest.mark.parametrize("text", [None, "{", "[" * 100_000, "{}", '{"format": "trp-plan", "version": 9}'])
def test_a_file_that_holds_no_plan_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LoadError, match=r"plan\.json"):
        plan_from_file(path, Tiny(), SHAPE)


def test_a_plan_is_the_only_rule_and_for_all_epochs(stripes: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan.json", LAYERS)
    for wrong in ({"macs": 2.0}, {"macs": None, "factors": 1}):
        with pytest.raises(TrpError, match="plan"):
            options_for(stripes, tmp_path / "run", plan=plan, arch=TINY, **wrong)
