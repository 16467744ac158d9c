"""Layers of batch norm that run more than once: found, not estimated again, and held at the end of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_run import options_for
from tiny_networks import Tiny, TinyTwice

from models_zoo import find_architecture
from training.batch_norm import norms_run_again, reestimate_batch_norm
from training.loop import TrainingRun
from training.optimisation import Optimisation


def test_norms_that_run_again_are_found() -> None:
    x = torch.zeros(1, 3, 8, 8)
    twice = TinyTwice()
    assert norms_run_again(Tiny(), x) == []
    assert norms_run_again(twice, x) == [twice.norm2]


def test_all_norms_of_a_gated_trunk_but_the_stem_run_again() -> None:
    model = find_architecture("resnet14-dignet-t2").build(None)
    assert len(norms_run_again(model, torch.zeros(1, 3, 32, 32))) == 12


def test_finding_norms_changes_nothing() -> None:
    model = TinyTwice().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    norms_run_again(model, torch.randn(4, 3, 8, 8))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_norms_that_run_again_are_not_estimated() -> None:
    model = TinyTwice().eval()
    batches = [torch.randn(16, 3, 8, 8) for _ in range(3)]
    before = model.norm2.running_mean.clone()
    reestimate_batch_norm(model, batches)
    assert torch.equal(model.norm2.running_mean, before)
    expected = torch.stack([model.stem(x).mean((0, 2, 3)) for x in batches]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, expected)


@pytest.mark.parametrize(("epochs", "settled"), [(1, []), (3, [2]), (10, [9]), (20, [18, 19]), (164, range(148, 164))])
def test_the_last_tenth_of_the_epochs_settles(epochs: int, settled: list[int]) -> None:
    options = Optimisation(epochs=epochs)
    assert [epoch for epoch in range(epochs) if options.settles(epoch)] == list(settled)


def test_a_run_ends_with_repeated_norms_held(stripes: Path, tmp_path: Path) -> None:
    means: dict[str, list[torch.Tensor]] = {"norm1": [], "norm2": []}

    def record(progress: dict[str, Any]) -> None:
        if "accuracy" in progress:
            for name, values in means.items():
                values.append(run.network.module.get_submodule(name).running_mean.clone())

    options = options_for(stripes, tmp_path / "run", arch="tiny_networks:tiny_twice", macs=None, epochs=3)
    run = TrainingRun(options, record)
    run.train()
    before, held, last = means["norm2"]
    assert not torch.equal(before, held)
    assert torch.equal(held, last)
    assert not torch.equal(means["norm1"][1], means["norm1"][2])
