"""C-SGD against its update written out, inside every kind of loop."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thin_resnet import thin_resnet
from tied_networks import SHAPE, Projected, randomised
from torch import Tensor, nn

from models_zoo import find_architecture
from models_zoo.cifar_resnet import CifarResNet
from training import CSGD, CSGDSettings, Widths
from training.channels.groups import Merge
from trp_export.errors import OptionError

CIFAR = (1, 3, 32, 32)
HALF = CSGDSettings(rule=Widths(0.5), strength=0.1)


def batch(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(6, *SHAPE[1:], generator=torch.Generator().manual_seed(seed)).to(dtype)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, start: int = 0) -> None:
    for step in range(start, start + count):
        optimizer.zero_grad()
        model(batch(step, next(model.parameters()).dtype)).square().mean().backward()
        optimizer.step()


def spreads(model: nn.Module, merges: tuple[Merge, ...], key: str) -> dict[str, Tensor]:
    """The distance of each row from the mean of its cluster, by layer and group."""
    found = {}
    for number, merge in enumerate(merges):
        for name, rows in merge.group.rows.items():
            tensor = getattr(model.get_submodule(name), key, None)
            if tensor is not None and not (key == "weight" and name not in merge.group.layers):
                mine = tensor.detach()[list(rows)]
                labels = torch.tensor(merge.labels)
                means = torch.stack([mine[labels == label].mean(0) for label in range(merge.kept)])
                found[f"{name} {number}"] = mine - means[labels]
    return found


def parameter_scale(model: nn.Module) -> Tensor:
    return torch.stack([p.detach().abs().max() for p in model.parameters()]).max()


@settings(max_examples=25, deadline=None)
@given(
    lr=st.floats(1e-3, 0.1),
    decay=st.none() | st.floats(0, 0.1),
    added=st.floats(0, 0.1),
    strength=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_spread_of_a_cluster_decays_by_the_same_factor_whatever_the_loss(
    lr: float, decay: float | None, added: float, strength: float, seed: int
) -> None:
    model = randomised(Projected(), seed).double()
    optimizer = torch.optim.SGD(model.parameters(), lr, weight_decay=added)
    csgd = CSGD(model, optimizer, replace(HALF, strength=strength, decay=decay, seed=seed), SHAPE)
    eta = added if decay is None else decay
    for key, factor in (("weight", 1 - lr * (eta + strength)), ("bias", 1 - lr * 0.1 * strength)):
        before = spreads(model, csgd.plan.merges, key)
        take_steps(model, optimizer, 1, start=seed)
        for name, spread in spreads(model, csgd.plan.merges, key).items():
            rounding = 1e-12 * max(1.0, float(parameter_scale(model)))
            torch.testing.assert_close(spread, before[name] * factor, rtol=1e-9, atol=rounding)


def test_a_step_equals_the_update_written_out() -> None:
    model = randomised(Projected()).double()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.03)
    csgd = CSGD(model, optimizer, HALF, SHAPE)
    take_steps(model, optimizer, 1)
    twin(batch(0, torch.float64)).square().mean().backward()
    written = {name: p.detach() - 0.1 * (p.grad + 0.03 * p.detach()) for name, p in twin.named_parameters()}
    for merge in csgd.plan.merges:
        for name, rows in merge.group.rows.items():
            for key, p in twin.get_submodule(name).named_parameters(recurse=False):
                is_kernel = key == "weight" and name in merge.group.layers
                eta, eps = (0.03, 0.1) if is_kernel else (0.0, 0.01)
                for cluster in merge.clusters(name):
                    members = list(cluster)
                    mean = p.detach()[members].mean(0)
                    for row in members:
                        update = p.grad[members].mean(0) + eta * p.detach()[row] + eps * (p.detach()[row] - mean)
                        written[f"{name}.{key}"][row] = p.detach()[row] - 0.1 * update
                assert sorted(rows) == sorted(row for cluster in merge.clusters(name) for row in cluster)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), written[name], rtol=1e-10, atol=1e-12)


def test_gradients_of_a_cluster_are_equal_after_the_step() -> None:
    model = randomised(Projected())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    csgd = CSGD(model, optimizer, replace(HALF, strength=0.0), SHAPE)
    take_steps(model, optimizer, 3)
    for merge in csgd.plan.merges:
        for name in merge.group.layers:
            gradient = model.get_submodule(name).weight.grad
            for cluster in merge.clusters(name):
                assert all(torch.equal(gradient[row], gradient[cluster[0]]) for row in cluster)


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_changes_nothing(fused: bool) -> None:
    model = randomised(Projected())
    twin = copy.deepcopy(model)
    plain, scaled = (torch.optim.SGD(m.parameters(), 0.01, momentum=0.9, fused=fused) for m in (model, twin))
    CSGD(model, plain, HALF, SHAPE)
    csgd = CSGD(twin, scaled, HALF, SHAPE)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    take_steps(model, plain, 3)
    for step in range(3):
        scaled.zero_grad()
        scaler.scale(twin(batch(step)).square().mean()).backward()
        scaler.step(scaled)
        scaler.update()
    assert csgd.step == 3
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_training_resumes_bit_for_bit() -> None:
    model = randomised(Projected())
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)
    csgd = CSGD(model, optimizer, HALF, SHAPE)
    take_steps(model, optimizer, 3)
    twin = copy.deepcopy(model)
    other = torch.optim.SGD(twin.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)
    settings = replace(HALF, seed=7)  # Other clusters, if the state did not name them.
    assert CSGD(twin, torch.optim.SGD(twin.parameters(), 0.02), settings, SHAPE).plan != csgd.plan
    resumed = CSGD(twin, other, settings, SHAPE, copy.deepcopy(csgd.state_dict()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(model, optimizer, 3, start=3)
    take_steps(twin, other, 3, start=3)
    for network, method in ((model, csgd), (twin, resumed)):
        method.finish([batch(9)])
        assert method.step == 6
        assert network is not None
    for mine, others in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, others)


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": True},
        {"clusters": []},
        {"clusters": [[0] * 8, [0] * 6, [0] * 12]},
        {"clusters": [[0, 1, 2, 3] * 2, [0, 1, 2] * 2, ["x"] * 12]},
        {"clusters": 5},
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, object]) -> None:
    model = Projected()
    csgd = CSGD(model, torch.optim.SGD(model.parameters(), 0.1), HALF, SHAPE)
    with pytest.raises((LookupError, TypeError, ValueError)):
        csgd.load_state_dict(csgd.state_dict() | change)


def test_finish_makes_filters_of_a_cluster_equal_bit_for_bit() -> None:
    model = randomised(Projected())
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    csgd = CSGD(model, optimizer, HALF, SHAPE)
    take_steps(model, optimizer, 2)
    plan = csgd.finish([batch(1), batch(2)])
    for merge in plan.merges:
        for name in merge.group.rows:
            state = model.get_submodule(name).state_dict()
            for tensor in (value for value in state.values() if value.ndim):
                for cluster in merge.clusters(name):
                    assert all(torch.equal(tensor[row], tensor[cluster[0]]) for row in cluster)
    take_steps(model, optimizer, 1)  # Hooks are gone: an ordinary step sets filters apart again.
    assert csgd.step == 2


def test_merging_a_trained_network_gives_a_thin_one_of_the_same_function() -> None:
    model = randomised(CifarResNet(8))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    csgd = CSGD(model, optimizer, CSGDSettings(rule=Widths(0.625), strength=1.0), CIFAR)
    x = torch.randn(4, *CIFAR[1:], generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    plan = csgd.finish([x])
    thin = thin_resnet(model, plan, width=0.625)
    trained = model.eval()(x).detach()
    torch.testing.assert_close(thin(x).detach(), trained, rtol=1e-5, atol=1e-5 * float(trained.abs().max()))


def test_a_wide_network_is_squeezed_to_the_plain_widths() -> None:
    model = find_architecture("resnet20x1.6").build(None)
    plan = CSGD(model, torch.optim.SGD(model.parameters(), 0.1), CSGDSettings(rule=Widths(0.616)), CIFAR).plan
    assert plan.macs == 40_551_040


@pytest.mark.parametrize(("kind", "added"), [("SGD", True), ("Adam", True), ("AdamW", False), ("Adafactor", False)])
def test_decay_outside_the_gradient_is_left_alone(kind: str, added: bool) -> None:
    model = randomised(Projected())
    optimizer = getattr(torch.optim, kind)(model.parameters(), 0.1, weight_decay=0.5)
    csgd = CSGD(model, optimizer, replace(HALF, strength=0.0), SHAPE)
    model(batch(0)).square().mean().backward()
    before = model.outer.bias.grad.clone()
    csgd._before_update()
    (merge,) = [merge for merge in csgd.plan.merges if "outer" in merge.group.layers]
    for cluster in merge.clusters("outer"):
        rows = list(cluster)
        own = model.outer.bias.detach()[rows]
        expected = before[rows].mean().expand(len(rows)) - (0.5 * own if added else 0.0)
        torch.testing.assert_close(model.outer.bias.grad[rows], expected)


def test_filters_that_the_optimizer_does_not_train_are_refused() -> None:
    model = Projected()
    weights = [parameter for name, parameter in model.named_parameters() if name != "outer.bias"]
    with pytest.raises(OptionError, match=r"outer\.bias is not among the parameters of the optimizer"):
        CSGD(model, torch.optim.SGD(weights, 0.1), HALF, SHAPE)


def test_maximising_draws_filters_together_too() -> None:
    model = randomised(Projected())
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, maximize=True, weight_decay=0.1)
    csgd = CSGD(model, optimizer, replace(HALF, strength=100.0), SHAPE)
    before = csgd.spread()
    take_steps(model, optimizer, 3)
    assert csgd.spread() == pytest.approx(before * (1 - 1e-3 * 100.1) ** 3, rel=0.1)
