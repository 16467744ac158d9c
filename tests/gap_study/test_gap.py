"""Plans drawn to try scores on, how they are judged, and what is left of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from gap import CEILING, ENERGY, PREDICTED, SEARCHED, VARIANCE, Gap, measure_gap, recover, score, summary, table
from networks import make_images, make_network
from recovery import Recovery, split_images
from sample import TOLERANCE, Drawn, as_plan, draw_plans

from training.search.options import SearchOptions
from training.search.run import read_search, run_search
from training.search.space import Space, by_macs
from trp_export.errors import LoadError, OptionError
from trp_export.inputs.images import ImageSet
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.planning.knapsack import Menu, allocate
from trp_export.rules import Macs, Speedup


@pytest.fixture(scope="module")
def spaces() -> tuple[Space, ...]:
    _, located = make_network()
    return by_macs([place.site for place in located], "all")


def damages(spaces: tuple[Space, ...]) -> list[np.ndarray]:
    return [(1 - space.costs / space.dense) ** 2 for space in spaces]


def drawn(spaces: tuple[Space, ...], count: int, seed: int = 0) -> tuple[Drawn, ...]:
    dense = sum(space.dense for space in spaces)
    logits = {space.site.name: -10 * own for space, own in zip(spaces, damages(spaces), strict=True)}
    return draw_plans(spaces, dense / 2, dense / 2, damages(spaces), logits, count, seed)


def test_plans_differ_and_cost_what_the_budget_says(spaces: tuple[Space, ...]) -> None:
    plans = drawn(spaces, 15)
    budget = sum(space.dense for space in spaces) / 2
    assert len({plan.chosen for plan in plans}) == 15
    assert [plan.source for plan in plans] == ["planner"] * 7 + ["search"] * 8
    assert all(abs(plan.cost(spaces) / budget - 1) <= TOLERANCE for plan in plans)
    assert all(plan.cost(spaces) == sum(d.macs for d in as_plan(spaces, plan).decisions) for plan in plans)
    schemes = {branch.scheme for plan in plans for d in as_plan(spaces, plan).decisions for branch in d.branches}
    assert len(schemes) > 3


def test_the_planner_comes_first(spaces: tuple[Space, ...]) -> None:
    menus = [Menu(space.costs, own) for space, own in zip(spaces, damages(spaces), strict=True)]
    best = allocate(menus, sum(space.dense for space in spaces) / 2)
    assert best is not None
    assert drawn(spaces, 4)[0].chosen == tuple(best.options)


def test_a_seed_says_which_plans(spaces: tuple[Space, ...]) -> None:
    assert drawn(spaces, 10, 3) == drawn(spaces, 10, 3) != drawn(spaces, 10, 4)


def test_more_plans_than_there_are_is_refused() -> None:
    _, located = make_network()
    few = by_macs([place.site for place in located][:1], "channel")
    dense = few[0].dense
    with pytest.raises(OptionError, match="ask for fewer"):
        draw_plans(few, dense / 2, dense / 2, damages(few), {}, 40, 0)


def images_of(pixels: np.ndarray, labels: np.ndarray | None = None) -> ImageSet:
    return ImageSet("made", pixels.astype(np.float32), labels, Preprocessing(), 3, None, ())


def test_nothing_is_judged_on_what_was_seen_before() -> None:
    pixels = np.random.default_rng(0).standard_normal((400, 3, 4, 4))
    seen = images_of(pixels[::4])
    parts = split_images(images_of(pixels, np.arange(400)), seen, 1)
    numbers = [set(part.labels.tolist()) for part in (*parts.draws, parts.judge) if part.labels is not None]
    assert [len(own) for own in numbers] == [75, 75, 150]
    assert len(set.union(*numbers)) == 300
    assert all(number % 4 for own in numbers for number in own)
    np.testing.assert_array_equal(parts.judge.inputs, pixels[parts.judge.labels].astype(np.float32))
    with pytest.raises(OptionError, match="256 images that the search has not seen, not 0"):
        split_images(seen, seen, 1)


class Fake:
    """Recovers a plan to the accuracy that its first choice says, and counts."""

    def __init__(self) -> None:
        self.done = 0

    def judge(self, plan: Any, draw: int) -> float:
        self.done += 1
        if self.done == 4:
            raise KeyboardInterrupt
        return float(self.done)


def test_what_was_recovered_is_not_recovered_again(spaces: tuple[Space, ...], tmp_path: Path) -> None:
    plans, path, fake = drawn(spaces, 4), tmp_path / "recovered.json", Fake()

    def run(recovery: Any) -> np.ndarray:
        return recover(recovery, spaces, plans, path, lambda step, share: None)

    with pytest.raises(KeyboardInterrupt):
        run(fake)
    fake.done = 10
    assert run(fake).tolist() == [[1, 2], [3, 11], [12, 13], [14, 15]]
    assert fake.done == 15
    path.write_text("{")
    with pytest.raises(LoadError, match="damaged"):
        run(fake)


def test_scores_are_sums_over_layers() -> None:
    class Search:
        def score(self, chosen: tuple[int, ...]) -> float:
            return float(10 * chosen[0] + chosen[1])

    lost = {"lost": [np.array([0.0, 1.0]), np.array([0.0, 2.0, 4.0])]}
    plans = [Drawn("search", (1, 2)), Drawn("search", (0, 1))]
    found = score(Search(), plans, lost)  # type: ignore[arg-type]
    assert {name: own.tolist() for name, own in found.items()} == {SEARCHED: [12, 1], "lost": [5, 2]}


@pytest.mark.slow
def test_the_table_has_a_line_for_each_score_and_the_ceiling() -> None:
    plans = tuple(Drawn("search", (index,)) for index in range(12))
    accuracy = np.stack([90 + np.arange(12.0), 90 + np.arange(12.0)], axis=1)
    scores = {"right": -np.arange(12.0), "wrong": np.arange(12.0)}
    gap = Gap(plans, np.ones(12), scores, accuracy, "accuracy", {"judged on": 100})
    lines = table(gap).splitlines()
    assert lines[0].startswith("| score | tau-b | rho | tau-b, top fifth |")
    assert lines[2].startswith("| right | 1.00 [1.00, 1.00] |")
    assert lines[2].endswith("| 0.00 [0.00, 0.00] |")
    assert lines[3].startswith("| wrong | -1.00 [-1.00, -1.00] |")
    assert lines[4].startswith(f"| {CEILING} | 1.00 ")
    assert gap.to_json()["trust"]["wrong"]["regret"][0][1]["value"] == 11


@pytest.mark.slow
def test_the_gap_of_a_finished_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = make_network()
    onnx.save(ir.serde.serialize_model(model), tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", make_images(400).inputs)
    monkeypatch.chdir(tmp_path)
    options = SearchOptions(Macs(2.0), Path("plan.json"), "images.npy", epochs=2, batch=8, count=48)
    run_search(Path("model.onnx"), options, silent, lambda record: None)
    saved = read_search(options.folder)
    gap = measure_gap(Path("model.onnx"), options, saved, 11, silent)
    document = json.loads((options.folder / "gap.json").read_text())
    assert document["measure"] == "agreement"
    assert len(document["plans"]) == 11
    assert set(document["trust"]) == {SEARCHED, PREDICTED, VARIANCE, ENERGY, CEILING}
    assert (options.folder / "gap.png").read_bytes().startswith(b"\x89PNG")
    written = (options.folder / "gap.md").read_text()
    values = {line.split("|")[1].strip(): line.split("|") for line in written.splitlines()[2:]}
    for name in (SEARCHED, PREDICTED, VARIANCE, ENERGY, CEILING):
        (line,) = (line for line in summary(gap).splitlines() if line.startswith(name))
        assert values[name][2].strip() in line
        assert len(line) <= 100
    # Plans that are recovered are not recovered again, and the result is the same.
    monkeypatch.setattr(Recovery, "judge", None)
    measure_gap(Path("model.onnx"), options, saved, 11, silent)
    assert (options.folder / "gap.md").read_text() == written
    for change in ({"branches": 2}, {"rule": Speedup(2.0)}, {"data": None, "no_data": True}):
        with pytest.raises(OptionError, match="the search must have used"):
            measure_gap(Path("model.onnx"), replace(options, **change), saved, 11, silent)
    with pytest.raises(OptionError, match="at least 11 plans"):
        measure_gap(Path("model.onnx"), options, saved, 10, silent)


def silent(step: str, share: float) -> None:
    pass
