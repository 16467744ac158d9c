"""Options as a run stores them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.options import TrainOptions
from training.search.options import SearchOptions
from training.stored import Stored

TRAIN = TrainOptions("npz:data", Path("run"), "resnet20", (1, 3, 8, 8), init=Path("dense.pt"), only=("conv*", "fc"))
SEARCH = SearchOptions(Path("model.onnx"), Path("plan.json"), mean=(0.5, 0.25), macs=2.0)


@pytest.mark.parametrize("options", [TRAIN, SEARCH])
def test_options_come_back_from_json(options: Stored) -> None:
    stored = json.loads(json.dumps(options.to_json()))
    assert type(options).from_json(stored | {"of a later version": 1}) == options


def test_an_option_that_is_not_stored_has_its_default() -> None:
    stored = TRAIN.to_json()
    del stored["teacher"], stored["lr"]
    assert TrainOptions.from_json(stored) == TRAIN
