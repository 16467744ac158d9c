"""The TRP class against the algorithm written out by hand, and inside every kind of loop."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_networks import Tiny
from torch import Tensor, nn

from training import TRP, Energy, Macs, TRPSettings, targets
from training.ranks import RankChoice, plan_of_ranks
from training.settings import ByName
from trp_export.errors import OptionError
from trp_export.lowrank import schemes
from trp_export.lowrank.schemes import SPATIAL_WISE
from trp_export.planning.curves import Layer, make_curve
from trp_export.rules import Rank

SHAPE = (1, 3, 8, 8)
EVERY_STEP = TRPSettings(rule=Rank(3), period=1, nuclear=0.01)


def batch(seed: int) -> Tensor:
    return torch.randn(6, *SHAPE[1:], generator=torch.Generator().manual_seed(seed))


def sgd(model: nn.Module, lr: float = 0.05, momentum: float = 0.9) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr, momentum=momentum)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, start: int = 0) -> None:
    for step in range(start, start + count):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()


def by_hand(kernel: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """D(W) and U_r V_r^T through numpy's SVD."""
    (matrix,) = schemes.unfold(kernel.astype(np.float64), SPATIAL_WISE, 1)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    kept = (left[:, :rank] * values[:rank]) @ right[:rank]
    pull = left[:, :rank] @ right[:rank]
    return tuple(schemes.fold(m[None], SPATIAL_WISE, kernel.shape, 1) for m in (kept, pull))


def relative_rank(weight: Tensor) -> int:
    (matrix,) = schemes.unfold(weight.detach().double().numpy(), SPATIAL_WISE, 1)
    return int(np.linalg.matrix_rank(matrix, tol=1e-5 * np.linalg.norm(matrix, 2)))


def weight_of(model: nn.Module, name: str) -> np.ndarray:
    return model.get_submodule(name).weight.detach().numpy()


def test_a_step_with_a_closure_equals_one_without() -> None:
    model = Tiny(norm=False)
    twin = copy.deepcopy(model)
    optimizer, other = sgd(model), sgd(twin)
    for trained, by in ((model, optimizer), (twin, other)):
        TRP(trained, by, EVERY_STEP, SHAPE)
    take_steps(model, optimizer, 3)
    for step in range(3):

        def closure(step: int = step) -> Tensor:
            other.zero_grad()
            loss = twin(batch(step)).square().mean()
            loss.backward()
            return loss

        other.step(closure)
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


@pytest.mark.parametrize("period", [1, 3])
def test_steps_equal_the_algorithm_written_out(period: int) -> None:
    torch.manual_seed(0)
    model = Tiny(norm=False)
    twin = copy.deepcopy(model)
    optimizer = sgd(model)
    TRP(model, optimizer, replace(EVERY_STEP, period=period), SHAPE)
    take_steps(model, optimizer, 7)

    other = sgd(twin)
    for step in range(7):
        pulls = {}
        if step % period == 0:
            for layer in (twin.conv1, twin.conv2):
                kept, pulls[layer] = by_hand(layer.weight.detach().numpy(), 3)
                layer.weight.data.copy_(torch.from_numpy(kept))
        other.zero_grad()
        twin(batch(step)).square().mean().backward()
        for layer, pull in pulls.items():
            layer.weight.grad.add_(torch.from_numpy(pull).float(), alpha=0.01)
        other.step()
    # The class projects after a step, the paper before the next one: bring the twin to the same point.
    if 7 % period == 0:
        for layer in (twin.conv1, twin.conv2):
            layer.weight.data.copy_(torch.from_numpy(by_hand(layer.weight.detach().numpy(), 3)[0]))
    for mine, hand in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, hand, rtol=0, atol=2e-6)


def test_frozen_layers_keep_their_weights() -> None:
    model = Tiny(norm=False)
    model.conv1.requires_grad_(False)
    before = model.conv1.weight.clone()
    optimizer = sgd(model)
    trp = TRP(model, optimizer, EVERY_STEP, SHAPE)
    take_steps(model, optimizer, 2)
    plan = trp.finish()
    assert torch.equal(model.conv1.weight, before)
    assert [decision.reason for decision in plan.decisions if decision.site.name == "conv1"] == ["it is frozen"]
    assert relative_rank(model.conv2.weight) == 3
    with pytest.raises(OptionError, match=r"the filter matches none of .* that can be factored and is not frozen"):
        TRP(model, optimizer, replace(EVERY_STEP, layers=ByName(only=("conv1",))), SHAPE)


def test_following_the_space_trains_as_decomposing_in_full_does() -> None:
    torch.manual_seed(0)
    model = Tiny(norm=False)
    twin = copy.deepcopy(model)
    for network, exact_every in ((model, 5), (twin, 1)):
        optimizer = sgd(network, lr=0.02)
        TRP(network, optimizer, replace(EVERY_STEP, exact_every=exact_every), SHAPE)
        take_steps(network, optimizer, 10)
    assert relative_rank(model.conv1.weight) == relative_rank(model.conv2.weight) == 3
    for followed, exact in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(followed, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_weights_of_any_layout_and_size_train_alike(
    scheme: str, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Tiny(norm=False)
    twin = copy.deepcopy(model)
    settings = replace(EVERY_STEP, exact_every=3, schemes={"*": scheme})
    for network, large in ((model.to(memory_format=memory_format), 0), (twin, 1 << 30)):
        monkeypatch.setattr(targets, "_LARGE", large)
        optimizer = sgd(network, lr=0.02)
        TRP(network, optimizer, settings, SHAPE)
        take_steps(network, optimizer, 7)
    for mine, others in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, others, rtol=0, atol=1e-5)


def test_training_resumes_bit_for_bit_between_projections() -> None:
    settings = TRPSettings(rule=Rank(2), period=4, nuclear=1e-3)
    model = Tiny()
    optimizer = sgd(model)
    trp = TRP(model, optimizer, settings, SHAPE)
    take_steps(model, optimizer, 6)
    twin = copy.deepcopy(model)
    other = sgd(twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed = TRP(twin, other, settings, SHAPE, copy.deepcopy(trp.state_dict()))
    take_steps(model, optimizer, 3, start=6)
    take_steps(twin, other, 3, start=6)
    assert trp.step == resumed.step == 9
    for mine, others in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, others)


def test_following_resumes_in_another_memory_layout() -> None:
    torch.manual_seed(0)
    settings = replace(EVERY_STEP, exact_every=9, schemes={"*": "channel"})
    model = Tiny(norm=False).to(memory_format=torch.channels_last)
    optimizer = sgd(model, lr=0.02)
    trp = TRP(model, optimizer, settings, SHAPE)
    take_steps(model, optimizer, 3)
    twin = Tiny(norm=False)
    twin.load_state_dict(model.state_dict())
    other = sgd(twin, lr=0.02)
    TRP(twin, other, settings, SHAPE, copy.deepcopy(trp.state_dict()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(model, optimizer, 3, start=3)
    take_steps(twin, other, 3, start=3)
    for mine, others in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, others, rtol=0, atol=1e-5)


def test_bfloat16_weights_reach_their_ranks_up_to_rounding() -> None:
    torch.manual_seed(0)
    model = Tiny(norm=False).to(torch.bfloat16)
    optimizer = sgd(model, lr=0.02)
    TRP(model, optimizer, replace(EVERY_STEP, exact_every=2), SHAPE)
    for step in range(4):
        optimizer.zero_grad()
        model(batch(step).to(torch.bfloat16)).square().mean().backward()
        optimizer.step()
    for layer in (model.conv1, model.conv2):
        (matrix,) = schemes.unfold(layer.weight.detach().double().numpy(), SPATIAL_WISE, 1)
        values = np.linalg.svd(matrix, compute_uv=False)
        assert values[3:].max() <= 2**-7 * values[0]


def test_a_layer_of_full_rank_is_no_longer_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiny(norm=False)
    optimizer = sgd(model, lr=0.02)
    trp = TRP(model, optimizer, replace(EVERY_STEP, exact_every=2), SHAPE)
    take_steps(model, optimizer, 3)
    assert relative_rank(model.conv1.weight) == 3
    whole = {target.name: target.curve.full_rank for target in trp._targets}
    monkeypatch.setattr(trp, "_ranks", lambda rule: whole | {"conv2": 3})
    take_steps(model, optimizer, 4)
    assert relative_rank(model.conv1.weight) > 3
    assert relative_rank(model.conv2.weight) == 3


def test_finish_leaves_exactly_the_ranks_of_its_plan() -> None:
    model = Tiny()
    optimizer = sgd(model)
    trp = TRP(model, optimizer, TRPSettings(rule=Macs(1.8), period=4), SHAPE)
    take_steps(model, optimizer, 5)
    plan = trp.finish([batch(i) for i in range(4)])
    assert {decision.site.name for decision in plan.changed} <= {"conv1", "conv2"}
    assert plan.changed
    for decision in plan.changed:
        assert relative_rank(model.get_submodule(decision.site.name).weight) == decision.rank
    again = plan_of_ranks(
        [Layer(c.site, (make_curve(c.site, c.scheme, weight_of(model, c.site.name)),)) for c in plan.changed],
        RankChoice(Energy(1 - 1e-10), 1),
    )
    assert [d.branches[0].rank for d in again.decisions] == [c.rank for c in plan.changed]
    dense = sum(decision.site.macs for decision in plan.decisions)
    assert dense / sum(decision.macs for decision in plan.decisions) >= 1.8
    weights = [parameter.clone() for parameter in model.parameters()]
    trp_free = sgd(model, lr=0.0, momentum=0.0)
    take_steps(model, trp_free, 1)
    take_steps(model, optimizer, 1)  # Hooks are gone: an ordinary step, no projection.
    assert relative_rank(model.conv2.weight) > plan.changed[-1].rank
    assert not all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_measure_changes_no_weight() -> None:
    model = Tiny()
    trp = TRP(model, sgd(model), TRPSettings(rule=Energy(0.5), ramp="linear", ramp_steps=10), SHAPE)
    before = copy.deepcopy(model.state_dict())
    plan = trp.measure()
    assert plan.changed
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_gradient_accumulation_counts_optimizer_steps() -> None:
    model = Tiny(norm=False)
    optimizer = sgd(model)
    trp = TRP(model, optimizer, TRPSettings(rule=Rank(2), period=2), SHAPE)
    for step in range(2):
        optimizer.zero_grad()
        for part in range(3):
            (model(batch(3 * step + part)).square().mean() / 3).backward()
        assert trp.step == step
        optimizer.step()
    assert trp.step == 2
    assert relative_rank(model.conv1.weight) == 2


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_pull_is_added_to_unscaled_gradients(dtype: torch.dtype, fused: bool) -> None:
    torch.manual_seed(0)
    model = Tiny(norm=False)
    twin = copy.deepcopy(model)
    results = []
    for network, scale in ((model, 1024.0), (twin, 1.0)):
        optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, fused=fused)
        TRP(network, optimizer, EVERY_STEP, SHAPE)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        for step in range(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = network(batch(step)).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append([parameter.detach().clone() for parameter in network.parameters()])
    for scaled, plain in zip(*results, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=0, atol=2e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_not_counted(fused: bool) -> None:
    model = Tiny(norm=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, fused=fused)
    trp = TRP(model, optimizer, EVERY_STEP, SHAPE)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38, growth_interval=1000)
    optimizer.zero_grad()
    scaler.scale(model(1e6 * batch(0)).square().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert trp.step == 0
    assert torch.isfinite(model.conv1.weight).all()


def test_channels_last_weights_stay_channels_last() -> None:
    model = Tiny().to(memory_format=torch.channels_last)
    optimizer = sgd(model)
    TRP(model, optimizer, EVERY_STEP, SHAPE)
    take_steps(model, optimizer, 2)
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert relative_rank(model.conv1.weight) == 3


def test_a_compiled_model_is_trained_alike() -> None:
    torch.manual_seed(0)
    model = Tiny(norm=False)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="eager")
    for network in (compiled, twin):
        optimizer = sgd(network)
        TRP(network, optimizer, EVERY_STEP, SHAPE)
        take_steps(network, optimizer, 3)
    for mine, plain in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, plain)


def test_averages_of_weights_see_projected_weights() -> None:
    model = Tiny(norm=False)
    optimizer = sgd(model)
    TRP(model, optimizer, EVERY_STEP, SHAPE)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    take_steps(model, optimizer, 1)
    average.update_parameters(model)
    assert relative_rank(average.module.conv1.weight) == 3


def test_a_saved_state_resumes_to_the_same_bits() -> None:
    torch.manual_seed(0)
    first = Tiny()
    second = copy.deepcopy(first)
    settings = TRPSettings(Macs(2.0), period=1, nuclear=0.01, ramp="cosine", ramp_steps=8, exact_every=2)
    optimizer = sgd(first)
    TRP(first, optimizer, settings, SHAPE)
    take_steps(first, optimizer, 9)

    optimizer = sgd(second)
    trp = TRP(second, optimizer, settings, SHAPE)
    take_steps(second, optimizer, 3)
    saved = copy.deepcopy((second.state_dict(), optimizer.state_dict(), trp.state_dict()))
    third = Tiny()
    optimizer = sgd(third)
    trp = TRP(third, optimizer, settings, SHAPE)
    third.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    trp.load_state_dict(saved[2])
    take_steps(third, optimizer, 6, start=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))


def test_nuclear_norm_on_every_step_pulls_without_projecting() -> None:
    torch.manual_seed(0)
    model = Tiny(norm=False)
    settings = TRPSettings(rule=Rank(2), project=False, nuclear=0.5, nuclear_every_step=True)
    before = torch.linalg.svdvals(schemes_matrix(model)).sum()
    optimizer = sgd(model, momentum=0.0)
    TRP(model, optimizer, settings, SHAPE)
    take_steps(model, optimizer, 10)
    after = torch.linalg.svdvals(schemes_matrix(model))
    assert after.sum() < 0.9 * before
    assert len(after) == relative_rank(model.conv2.weight)


def schemes_matrix(model: Tiny) -> Tensor:
    return torch.from_numpy(schemes.unfold(model.conv2.weight.detach().numpy(), SPATIAL_WISE, 1)[0].copy())


@pytest.mark.parametrize("momentum", ["keep", "project", "reset"])
def test_momentum_at_a_projection(momentum: str) -> None:
    model = Tiny(norm=False)
    optimizer = sgd(model)
    TRP(model, optimizer, TRPSettings(rule=Rank(2), period=1, momentum=momentum), SHAPE)
    take_steps(model, optimizer, 1)
    buffer = optimizer.state[model.conv2.weight]["momentum_buffer"]
    if momentum == "reset":
        assert not buffer.any()
    else:
        assert (relative_rank(buffer) <= 2) == (momentum == "project")


def test_energy_can_be_preserved() -> None:
    model = Tiny(norm=False)
    norms = [model.conv1.weight.norm().item(), model.conv2.weight.norm().item()]
    TRP(model, sgd(model), TRPSettings(rule=Rank(2), preserve_energy=True), SHAPE)
    assert [model.conv1.weight.norm().item(), model.conv2.weight.norm().item()] == pytest.approx(norms, rel=1e-5)


def test_schemes_and_layers_can_be_chosen_by_name() -> None:
    model = Tiny()
    settings = TRPSettings(
        rule=Rank(2), schemes={"conv1": "channel", "*": "decouple"}, layers=ByName(only=("conv*", "head", "point"))
    )
    plan = TRP(model, sgd(model), settings, SHAPE).measure()
    names = {decision.site.name: decision.scheme.name for decision in plan.changed}
    assert names["conv1"] == "channel-wise"
    assert names["head"] == names["point"] == "matrix"


def test_contradictions_are_refused() -> None:
    model = Tiny()
    with pytest.raises(OptionError, match="no layer is trained for low rank"):
        TRP(model, sgd(model), TRPSettings(layers=ByName(only=("nothing",))), SHAPE)
    with pytest.raises(OptionError, match="out of reach"):
        TRP(model, sgd(model), TRPSettings(rule=Macs(1000.0)), SHAPE)
    for wrong in ({"period": 0}, {"nuclear": -1.0}, {"ramp": "up"}, {"momentum": "?"}, {"schemes": {"*": "?"}}):
        with pytest.raises(OptionError):
            TRPSettings(**wrong)
