"""Dagger and removal by magnitude: closed channels have no part in the outputs, and gates follow their gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tied_networks import CIFAR, SHAPE, Joined, Padded, Projected, randomised
from torch import Tensor, nn

from models_zoo.cifar_resnet import CifarResNet
from training import Dagger, DaggerSettings, Macs, Magnitude, MagnitudeSettings, Widths
from training.channels.gates import Gates, filter_features, hard_gates
from training.channels.groups import REMOVED, ChannelPlan
from training.channels.magnitude import magnitudes
from training.channels.removal import Removal
from trp_export.errors import OptionError, TrpError

State = dict[str, Any] | None
Make = Callable[..., Removal]
HALF = DaggerSettings(rule=Widths(0.5), gate_steps=3, gate_lr=0.1)


def batch(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(6, *shape[1:], generator=torch.Generator().manual_seed(seed))


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 2e-3, momentum=0.9, weight_decay=1e-3, **options)


def by_gates(model: nn.Module, optimizer: torch.optim.Optimizer, state: State = None) -> Dagger:
    return Dagger(model, optimizer, HALF, SHAPE, state)


def by_magnitude(model: nn.Module, optimizer: torch.optim.Optimizer, state: State = None) -> Magnitude:
    return Magnitude(model, optimizer, MagnitudeSettings(Widths(0.5)), SHAPE, state)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, start: int = 0) -> None:
    for step in range(start, start + count):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()


@torch.no_grad()
def with_other_removed_filters(model: nn.Module, plan: ChannelPlan) -> nn.Module:
    """A copy in which all that belongs to removed channels, statistics too, has other values."""
    made = copy.deepcopy(model)
    for merge in plan.merges:
        for name, rows in merge.group.rows.items():
            gone = [row for row, label in zip(rows, merge.labels, strict=True) if label == REMOVED]
            for value in made.get_submodule(name).state_dict().values():
                if value.ndim:
                    value[gone] = value[gone] + 1
    return made


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("make", [by_gates, by_magnitude])
@pytest.mark.parametrize("network", [Projected, Joined, Padded])
def test_finish_leaves_outputs_that_removed_filters_have_no_part_in(
    make: Make, network: type[nn.Module], steps: int
) -> None:
    model = randomised(network())
    optimizer = sgd(model)
    method = make(model, optimizer)
    take_steps(model, optimizer, steps)
    plan = method.finish([batch(9)])
    assert all(bool(reader.weight.any()) for reader in method._readers)
    other = with_other_removed_filters(model, plan).eval()
    assert any(REMOVED in merge.labels for merge in plan.merges)
    assert torch.equal(model.eval()(batch(1)), other(batch(1)))
    assert not torch.equal(model.train()(batch(1)), model(batch(2)))


@pytest.mark.parametrize("make", [by_gates, by_magnitude])
def test_as_cut_is_what_finish_leaves_and_changes_nothing(make: Make) -> None:
    model = randomised(Projected())
    optimizer = sgd(model)
    method = make(model, optimizer)
    for steps in (1, 4):  # Dagger's gates train before and its weights after.
        take_steps(model, optimizer, steps)
        before = copy.deepcopy(model.state_dict())
        cut = method.as_cut([batch(9)])
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        other = with_other_removed_filters(cut, method.measure()).eval()
        assert torch.equal(cut.eval()(batch(1)), other(batch(1)))
    method.finish([batch(9)])
    assert torch.equal(cut.eval()(batch(1)), model.eval()(batch(1)))


def test_gate_gradients_are_those_of_gates_on_what_layers_read() -> None:
    model = randomised(Projected()).double()
    dagger = by_gates(model, sgd(model))
    gates = [torch.ones(len(group), dtype=torch.float64, requires_grad=True) for group in dagger._groups]
    extended = torch.cat([*gates, torch.ones(1, dtype=torch.float64)])

    def gate(reader: Any) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
        return lambda module, inputs: inputs[0] * extended[reader.index].reshape(1, -1, *[1] * (inputs[0].ndim - 2))

    owners = {id(module.weight): module for module in model.modules() if hasattr(module, "weight")}
    hooks = [owners[id(reader.weight)].register_forward_pre_hook(gate(reader)) for reader in dagger._readers]
    model(batch(0).double()).square().mean().backward()
    for hook in hooks:
        hook.remove()
    expected = torch.cat([values.grad for values in gates])
    model.zero_grad()
    model(batch(0).double()).square().mean().backward()
    torch.testing.assert_close(dagger._gate_gradients(None).double(), expected, rtol=1e-5, atol=1e-6)


def test_gates_train_alone_then_weights_of_what_is_left() -> None:
    model = randomised(Projected())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = sgd(model)
    dagger = by_gates(model, optimizer)
    logits = torch.cat(dagger._gates()).detach()
    take_steps(model, optimizer, 2)
    assert not torch.equal(torch.cat(dagger._gates()).detach(), logits)
    assert dagger.plan is None
    assert not optimizer.state
    take_steps(model, optimizer, 1, start=2)
    assert dagger.plan is not None
    assert [merge.kept for merge in dagger.plan.merges] == [len(merge.group) // 2 for merge in dagger.plan.merges]
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) or bool(((value == before[name]) | (value == 0)).all())
    take_steps(model, optimizer, 1, start=3)
    assert not any(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_the_penalty_alone_closes_gates_until_the_budget_is_met() -> None:
    model = CifarResNet(8)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.zero_()  # The loss depends on no gate.
    optimizer = sgd(model)
    settings = DaggerSettings(rule=Macs(2), gate_steps=1000, gate_lr=1e-3)
    dagger = Dagger(model, optimizer, settings, CIFAR)
    open_gates = []
    for _ in range(60):
        dagger._train_gates(torch.zeros(sum(map(len, dagger._groups))))
        counts = [float(gates.sum()) for gates in hard_gates(dagger._gates())]
        open_gates.append(float(dagger._costs.expected(torch.tensor(counts))))
    assert open_gates[0] > 0.9 * dagger.measure().dense_macs
    assert min(open_gates) < 0.6 * dagger.measure().dense_macs
    assert 2 <= dagger.measure().ratio < 2.2


@pytest.mark.parametrize("rule", [Macs(2), Widths(0.5)])
def test_gates_that_diverge_are_named(rule: Macs | Widths) -> None:
    model = randomised(Projected())
    optimizer = sgd(model)
    dagger = Dagger(model, optimizer, DaggerSettings(rule=rule, gate_steps=3), SHAPE)
    next(dagger._gates.parameters()).data.fill_(float("nan"))
    with pytest.raises(TrpError, match=r"step 1: the gates are no longer finite\. Start again with a lower --gate-lr"):
        dagger.measure()
    with pytest.raises(TrpError, match="the gates are no longer finite"):
        take_steps(model, optimizer, 1)


def test_gates_keep_the_channels_that_the_loss_needs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 4))
    with torch.no_grad():
        model[2].weight[:, 4:] *= 0.01  # Half of the channels hardly matter.
    twin = copy.deepcopy(model)
    optimizer = sgd(model)
    settings = DaggerSettings(Widths(0.5), gate_steps=100, gate_lr=0.01, layers=lambda name: name == "0")
    dagger = Dagger(model, optimizer, settings, SHAPE)
    for step in range(100):
        optimizer.zero_grad()
        x = batch(step)
        (100 * (model(x) - twin(x)).square().mean()).backward()
        optimizer.step()
    (merge,) = dagger.measure().merges
    assert [label != REMOVED for label in merge.labels] == [True] * 4 + [False] * 4


def test_magnitude_keeps_the_filters_of_the_largest_sums() -> None:
    model = randomised(Projected())
    method = by_magnitude(copy.deepcopy(model), sgd(model))
    assert method.plan is not None
    for merge in method.plan.merges:
        sums = np.zeros(len(merge.group))
        for layer in merge.group.layers:
            kernel = model.get_submodule(layer).weight.detach().abs().flatten(1).sum(1).double().numpy()
            sums += kernel[list(merge.group.rows[layer])] / kernel[list(merge.group.rows[layer])].mean()
        np.testing.assert_allclose(magnitudes(model, merge.group), sums)
        kept = {place for place, label in enumerate(merge.labels) if label != REMOVED}
        assert kept == set(np.argsort(-sums)[: len(merge.group) // 2].tolist())


@pytest.mark.parametrize(("make", "steps"), [(by_gates, 2), (by_gates, 4), (by_magnitude, 3)])
def test_training_resumes_bit_for_bit(make: Make, steps: int) -> None:
    model = randomised(Projected())
    optimizer = sgd(model)
    method = make(model, optimizer)
    take_steps(model, optimizer, steps)
    twin = copy.deepcopy(model)
    other = sgd(twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed = make(twin, other, copy.deepcopy(method.state_dict()))
    take_steps(model, optimizer, 3, start=steps)
    take_steps(twin, other, 3, start=steps)
    assert method.finish([batch(9)]) == resumed.finish([batch(9)]) or method.step == resumed.step == steps + 3
    for mine, others in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, others)


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": 3},
        {"stay": []},
        {"stay": [[True] * 8, [False] * 6, [True] * 12]},
        {"stay": [[1] * 8, [True] * 6, [True] * 12]},
        {"open": []},
        {"open": [torch.ones(1)] * 5},
        {"gates": {}},
        {"gates": {"x": torch.tensor(float("nan"))}},
        {"adam": {0: {"exp_avg": torch.ones(3)}}},
        {"adam": 5},
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, object]) -> None:
    model = Projected()
    optimizer = sgd(model)
    dagger = by_gates(model, optimizer)
    take_steps(model, optimizer, 1)
    with pytest.raises((AttributeError, LookupError, RuntimeError, TypeError, ValueError)):
        dagger.load_state_dict(dagger.state_dict() | change)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("make", [by_gates, by_magnitude])
def test_a_gradient_scaler_changes_nothing(make: Make, fused: bool) -> None:
    model = randomised(Projected())
    twin = copy.deepcopy(model)
    plain, scaled = sgd(model, fused=fused), sgd(twin, fused=fused)
    methods = make(model, plain), make(twin, scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    take_steps(model, plain, 4)
    for step in range(4):
        scaled.zero_grad()
        scaler.scale(twin(batch(step)).square().mean()).backward()
        scaler.step(scaled)
        scaler.update()
    assert [method.step for method in methods] == [4, 4]
    assert methods[0].measure().merges[0].labels == methods[1].measure().merges[0].labels
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_layers_of_one_shape_share_a_network_and_see_their_batch_norm() -> None:
    model = randomised(CifarResNet(8))
    dagger = Dagger(model, sgd(model), DaggerSettings(), CIFAR)
    gates = Gates(model, dagger._groups, seed=0)
    assert set(gates.networks) == {"3x3x3", "16x3x3", "32x3x3", "64x3x3"}
    (group,) = [group for group in dagger._groups if group.layers == ("layer1.0.conv1",)]
    features = filter_features(model, group, "layer1.0.conv1")
    norm = model.layer1[0].bn1
    for column, values in ((-2, norm.weight), (-1, norm.bias)):
        relative = values.detach() / values.detach().square().mean().sqrt()
        torch.testing.assert_close(features[:, column], relative[list(group.rows["layer1.0.conv1"])])


def test_a_budget_out_of_reach_is_refused() -> None:
    for make in (
        lambda model: Dagger(model, sgd(model), DaggerSettings(rule=Macs(5000)), CIFAR),
        lambda model: Magnitude(model, sgd(model), MagnitudeSettings(rule=Macs(5000)), CIFAR),
    ):
        with pytest.raises(OptionError, match=r"--macs 5000 is out of reach: with one filter in each layer"):
            make(CifarResNet(8))
