"""Logits, what is drawn by them, what a search makes of them, and what is chosen in the end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import as_samples, make_images, make_network

from training.search.choose import choose, plan_of_logits, require_reachable
from training.search.logits import Logits
from training.search.loop import Examples, Search
from training.search.space import Space, by_latency, by_macs
from training.search.supernet import Supernet
from training.stop import StopRequest
from trp_export.calibration.moments import gather_moments
from trp_export.errors import OptionError, TrpError
from trp_export.lowrank.schemes import CHANNEL_WISE, SPATIAL_WISE, Branch
from trp_export.lowrank.site import Site, Use
from trp_export.planning.budgets import LayerTiming


@pytest.fixture(scope="module")
def ground() -> tuple[Supernet, tuple[Space, ...], Examples, float]:
    """A super-network with all that a search takes, and the dense cost of its layers."""
    model, located = make_network()
    images = make_images(48)
    spaces = by_macs([place.site for place in located], "all")
    supernet = Supernet(model, spaces, gather_moments(model, located, as_samples(images)))
    inputs = torch.from_numpy(images.inputs)
    with torch.no_grad():
        wanted = supernet(inputs, {})
    return supernet, spaces, Examples(inputs, None, wanted), sum(space.dense for space in spaces)


def search(ground: Any, ratio: float = 2.0, **changes: Any) -> Search:
    supernet, spaces, examples, dense = ground
    usual = {"epochs": 3, "batch": 8, "lr": 0.05, "seed": 0, "start": "energy"}
    return Search(supernet, spaces, examples, dense / ratio, **(usual | changes))


def train(run: Search) -> None:
    with StopRequest() as stop:
        assert run.train(stop, lambda record: None, lambda: None)


def space_of(costs: list[float], dense: float = 100.0) -> Space:
    site = Site("layer", "Conv", (8, 8, 3, 3), 1, (Use((4, 4), (4, 4), (1, 1), (1, 1, 1, 1), (1, 1)),))
    (whole,) = by_macs([site], "all")
    return Space(site, whole.candidates[: len(costs)], np.array(costs), dense)


def test_candidates_are_drawn_by_their_probabilities() -> None:
    logits = Logits(space_of([100.0, 50.0, 20.0]), torch.tensor([2.0, 1.0, 0.0]))
    random = torch.Generator().manual_seed(0)
    drawn = [logits.draw(1.0, random) for _ in range(4000)]
    first = np.bincount([mixture.candidates[0] for mixture in drawn], minlength=3) / len(drawn)
    np.testing.assert_allclose(first, torch.tensor([2.0, 1.0, 0.0]).softmax(0).numpy(), atol=0.025)
    assert all(mixture.candidates[0] != mixture.candidates[1] for mixture in drawn)
    assert all(float(mixture.weights.detach().sum()) == pytest.approx(1) for mixture in drawn)


def test_the_weights_of_two_are_a_gumbel_softmax() -> None:
    """At temperature 1 the larger weight falls to each of two candidates as often as their probabilities say."""
    logits = Logits(space_of([100.0, 50.0]), torch.tensor([1.0, 0.0]))
    random = torch.Generator().manual_seed(0)
    wins = [
        mixture.candidates[int(mixture.weights.argmax())] == 0
        for mixture in (logits.draw(1.0, random) for _ in range(4000))
    ]
    assert np.mean(wins) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.025)


def test_a_cold_mixture_is_one_candidate_and_a_hot_one_half_of_each() -> None:
    logits = Logits(space_of([100.0, 50.0, 20.0]), torch.zeros(3))
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert float(logits.draw(1e-4, random).weights.detach().max()) > 0.99
        assert float(logits.draw(1e4, random).weights.detach().max()) < 0.51


def test_what_is_learned_is_shared_by_scheme_and_by_size(ground: Any) -> None:
    space = ground[1][1]
    logits = Logits(space, torch.zeros(len(space.candidates)))
    with torch.no_grad():
        logits.by_scheme[1] += 1
        logits.by_size[2] += 10
        logits.own[5] += 100
    schemes = sorted({b[-1].scheme.name if b else "" for b in space.candidates})
    sizes = sorted(set(space.shares))
    for index, (branches, size) in enumerate(zip(space.candidates, space.shares, strict=True)):
        name = branches[-1].scheme.name if branches else ""
        wanted = (name == schemes[1]) + 10 * (size == sizes[2]) + 100 * (index == 5)
        assert float(logits()[index].detach()) == wanted


def test_logits_start_where_the_expected_cost_is_the_budget(ground: Any) -> None:
    for ratio in (1.5, 2.0, 3.0):
        run = search(ground, ratio)
        budget = ground[3] / ratio
        by_hand = 0.0
        for space in ground[1]:
            layer = run.layers.get(space.site.name)
            shares = np.ones(1) if layer is None else np.exp(layer().detach().double().numpy())
            by_hand += float(np.sum(shares / shares.sum() * space.costs))
        assert run.expected_cost() == pytest.approx(by_hand, rel=1e-6)
        assert by_hand == pytest.approx(budget, rel=1e-4)


def test_uniform_logits_start_at_zero(ground: Any) -> None:
    run = search(ground, start="uniform")
    assert all(not layer().detach().any() for layer in run.layers.values())


def test_the_gradient_of_logits_is_that_of_finite_differences(ground: Any) -> None:
    supernet, _, examples, _ = ground
    run = search(ground)
    layer = run.layers["one"]

    def loss() -> torch.Tensor:
        mixture = layer.draw(1.0, torch.Generator().manual_seed(5))
        return supernet(examples.images[:8], {"one": mixture})[0].square().mean()

    loss().backward()
    hit = [int(index) for index in layer.own.grad.nonzero().flatten()]
    assert len(hit) == 2
    for index in hit:
        with torch.no_grad():
            values = []
            for step in (0.02, -0.02):
                # The draw itself goes by probabilities: they move too little to draw others.
                layer.own[index] += step
                values.append(float(loss()))
                layer.own[index] -= step
        slope = (values[0] - values[1]) / 0.04
        assert float(layer.own.grad[index]) == pytest.approx(slope, rel=0.05, abs=1e-5)


def test_a_search_moves_logits_alone_and_meets_the_budget(ground: Any) -> None:
    supernet, spaces, examples, dense = ground
    run = search(ground)
    with torch.no_grad():
        before = supernet(examples.images, {})[0].clone()
    train(run)
    with torch.no_grad():
        torch.testing.assert_close(supernet(examples.images, {})[0], before)
    plan = plan_of_logits(spaces, run.logits(), dense / 2, "searched")
    cost = sum(decision.macs for decision in plan.decisions)
    assert 0.98 * dense / 2 <= cost <= dense / 2
    assert [record["epoch"] for record in run.history] == [1, 2, 3]
    assert run.history[-1]["layers"].keys() == run.layers.keys()


def test_the_plan_kept_is_the_best_that_was_seen(ground: Any) -> None:
    _, spaces, _, dense = ground
    run = search(ground, lr=0.5)
    first = run.score(choose(spaces, run.logits(), dense / 2))
    train(run)
    kept = run.score(choose(spaces, run.logits(), dense / 2))
    assert kept <= min(first, *(record["score"] for record in run.history)) * 1.001


def test_more_damage_is_a_worse_score(ground: Any) -> None:
    _, spaces, _, _ = ground
    run = search(ground)
    dense = run.score([0] * len(spaces))
    cut = run.score([int(np.argmin(space.costs)) for space in spaces])
    assert dense == pytest.approx(0, abs=1e-3)
    assert cut > 0.1


def test_labels_are_learned_from_by_cross_entropy(ground: Any) -> None:
    supernet, spaces, examples, dense = ground
    labels = examples.wanted[0].argmax(1)
    run = search((supernet, spaces, Examples(examples.images, labels, examples.wanted), dense))
    wanted = torch.nn.functional.cross_entropy(examples.wanted[0], labels)
    assert run.score([0] * len(spaces)) == pytest.approx(float(wanted), rel=0.02)
    train(run)


def test_going_on_gives_the_same_bits(ground: Any) -> None:
    whole = search(ground)
    train(whole)
    stopped = search(ground)
    states: list[dict[str, Any]] = []

    class AfterFour(StopRequest):
        steps = 0

        def pending(self, *, also: bool = False) -> bool:
            self.steps += 1
            return self.steps == 9  # In the middle of the second epoch.

    with AfterFour() as stop:
        assert not stopped.train(stop, lambda record: None, lambda: states.append(stopped.state_dict()))
    resumed = search(ground)
    resumed.load_state_dict(states[-1])
    assert (resumed.epoch, resumed.step) == (1, 2)
    train(resumed)
    assert resumed.history == whole.history
    for name, own in whole.logits().items():
        np.testing.assert_array_equal(own, resumed.logits()[name])


def test_a_loss_that_is_not_finite_names_the_layer(ground: Any) -> None:
    layer = ground[0].layers["two"]
    kernel = layer.kernel
    try:
        layer.kernel = lambda index: torch.full_like(kernel(index), math.inf)  # type: ignore[method-assign]
        run = search(ground, start="uniform")
        with pytest.raises(TrpError, match=r"diverged at step 1: the loss is not finite; two is the first layer"):
            train(run)
    finally:
        del layer.kernel


def test_logits_that_are_not_finite_name_the_layer(ground: Any) -> None:
    run = search(ground, lr=3e37, batch=1)
    with pytest.raises(TrpError, match=r"diverged at step \d+: (logits of \w+ are not finite|the loss)"):
        train(run)


@pytest.mark.parametrize("lr", [10.0, 1e30])
@pytest.mark.parametrize("start", ["energy", "uniform"])
def test_logits_that_settle_at_once_name_the_layer_that_moved_most(ground: Any, lr: float, start: str) -> None:
    run = search(ground, lr=lr, start=start, epochs=10)
    with pytest.raises(TrpError, match=r"diverged: within \d+ steps each .* logits of \w+ moved most"):
        train(run)


def test_whether_a_search_found_anything_better_than_its_start(ground: Any) -> None:
    run = search(ground, start="uniform")
    start = run.score(choose(ground[1], run.logits(), ground[3] / 2))
    assert not run.improved
    train(run)
    assert run.improved == (min(record["score"] for record in run.history) < start)


def test_where_all_layers_are_refused_the_reason_is_said() -> None:
    use = Use((4, 4), (4, 4), (1, 1), (1, 1, 1, 1), (1, 1))
    site = Site("layer", "Conv", (8, 8, 3, 3), 1, (use,), "kept by an earlier export")
    with pytest.raises(OptionError, match=r"--macs 2 is out of reach: no layer can be cut: kept by an earlier export"):
        require_reachable(by_macs([site], "all"), 0.0, float(site.macs), 2.0, "--macs")


@settings(max_examples=60)
@given(st.data())
def test_what_is_chosen_is_within_the_budget_and_argmax_where_that_fits(data: Any) -> None:
    count = data.draw(st.integers(1, 4))
    spaces, logits = [], {}
    for index in range(count):
        costs = data.draw(st.lists(st.integers(1, 99), min_size=1, max_size=8))
        space = space_of([100.0, *map(float, costs)])
        site = Site(f"l{index}", "Conv", space.site.kernel_shape, 1, space.site.uses)
        spaces.append(Space(site, space.candidates, space.costs, space.dense))
        values = st.floats(-5, 5, allow_nan=False)
        logits[site.name] = np.array(data.draw(st.lists(values, min_size=len(costs) + 1, max_size=len(costs) + 1)))
    least, most = (sum(float(pick(space.costs)) for space in spaces) for pick in (np.min, np.max))
    budget = data.draw(st.floats(least, most))
    chosen = choose(spaces, logits, budget)
    cost = sum(float(space.costs[k]) for space, k in zip(spaces, chosen, strict=True))
    assert cost <= budget * (1 + 1e-9)
    best = sum(float(space.costs[int(np.argmax(logits[space.site.name]))]) for space in spaces)
    at_best = choose(spaces, logits, best)
    assert sum(float(space.costs[k]) for space, k in zip(spaces, at_best, strict=True)) <= best * (1 + 1e-9)
    gained = sum(float(logits[s.site.name][k]) for s, k in zip(spaces, at_best, strict=True))
    assert gained >= sum(float(own.max()) for own in logits.values()) - 1e-6


def test_by_latency_only_what_was_measured_faster_is_offered() -> None:
    _, located = make_network()
    sites = [place.site for place in located]
    costs = {
        "channel-wise": (np.array([4, 6]), np.array([5.0, 12.0])),
        "spatial-wise": (np.array([3]), np.array([7.0])),
    }
    spaces = {space.site.name: space for space in by_latency(sites, {"one": LayerTiming(10.0, costs)})}
    assert spaces["one"].candidates == ((), (Branch(CHANNEL_WISE, 4),), (Branch(SPATIAL_WISE, 3),))
    np.testing.assert_array_equal(spaces["one"].costs, [10.0, 5.0, 7.0])
    assert spaces["one"].shares == (20, 10, 14)
    assert spaces["two"].candidates == ((),)
    np.testing.assert_array_equal(spaces["two"].costs, [0.0])


def test_a_ratio_out_of_reach_names_the_best() -> None:
    spaces = [space_of([100.0, 50.0, 20.0])]
    require_reachable(spaces, 10.0, 110.0, 3.6, "--macs")
    with pytest.raises(OptionError, match=r"--macs 4 is out of reach: with the smallest candidates it is 3.67"):
        require_reachable(spaces, 10.0, 110.0, 4.0, "--macs")
