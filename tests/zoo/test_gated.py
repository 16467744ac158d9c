"""Gates on a trunk: one pass is the trunk, more passes follow the recurrence as it is written down."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models_zoo import find_architecture
from models_zoo.gated import DistributedGates, Gated
from models_zoo.registry import iterations_of, with_iterations
from models_zoo.trunk import Trunk
from training.layers import find_layers

GATES = ("rignet", "rignet-nearest", "dignet")


def build(name: str) -> nn.Module:
    """A network with weights, statistics and gates unlike those at the start of training."""
    torch.manual_seed(0)
    model = find_architecture(name).build(None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    if isinstance(model, Gated):
        for parameter in model.gates.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


def images(name: str) -> Tensor:
    shape = find_architecture(name).input_shape
    return torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("trunk", ["resnet14", "resnet14x0.5", "resnet14-seg"])
@pytest.mark.parametrize("gates", GATES)
@torch.no_grad()
def test_one_iteration_is_the_trunk(trunk: str, gates: str) -> None:
    model, x = build(f"{trunk}-{gates}-t1"), images(trunk)
    plain = find_architecture(trunk).build(None).eval()
    plain.load_state_dict(model.trunk.state_dict())
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("gates", GATES)
@torch.no_grad()
def test_every_iteration_adds_a_pass_to_those_before(gates: str) -> None:
    name = f"resnet14-seg-{gates}"
    model, x = build(f"{name}-t3"), images("resnet14-seg")
    answers = model.answers(x)
    assert len(answers) == 3
    for iterations, answer in enumerate(answers, 1):
        shorter = find_architecture(f"{name}-t{iterations}").build(None).eval()
        shorter.load_state_dict(model.state_dict())
        assert torch.equal(shorter(x), answer)
    assert not torch.allclose(answers[0], answers[1], atol=1e-3)
    assert not torch.allclose(answers[1], answers[2], atol=1e-3)


@torch.no_grad()
def test_rignet_follows_its_formula() -> None:
    model, x = build("resnet14-rignet-t2"), images("resnet14")
    trunk = model.trunk
    start = trunk.stem(x)
    last = trunk.layer3(trunk.layer2(trunk.layer1(start)))
    h = start
    for conv, stage in zip(model.gates.convs, trunk.stages, strict=True):
        gate = torch.sigmoid(functional.interpolate(conv(last), size=h.shape[2:], mode="nearest"))
        h = stage(h * gate)
    assert torch.allclose(model(x), trunk.linear(h.mean((2, 3))), atol=1e-5)


@torch.no_grad()
def test_dignet_carries_feedback_from_the_last_stage_to_the_first() -> None:
    gates = DistributedGates((4, 4, 8, 16))
    features = [torch.rand(1, 4, 16, 16), torch.rand(1, 4, 16, 16), torch.rand(1, 8, 8, 8), torch.rand(1, 16, 4, 4)]
    before = gates(features)
    assert [tuple(gate.shape[1:]) for gate in before] == [(4, 16, 16), (4, 16, 16), (8, 8, 8)]
    features[3] = features[3] + 1
    assert all(not torch.equal(a, b) for a, b in zip(before, gates(features), strict=True))
    features[3], features[1] = features[3] - 1, features[1] + 1
    changed = [not torch.allclose(a, b, atol=1e-6) for a, b in zip(before, gates(features), strict=True)]
    assert changed == [True, False, False]


@torch.no_grad()
def test_gates_start_open() -> None:
    for gates in GATES:
        model = find_architecture(f"resnet14-{gates}-t2").build(None)
        *_, (_, opened) = model.passes(images("resnet14"))
        assert all(bool(gate.mean() > 0.8) for gate in opened)


def test_iterations_are_part_of_the_name() -> None:
    assert with_iterations("resnet14x0.5-seg-dignet-t3", 1) == "resnet14x0.5-seg-dignet-t1"
    assert iterations_of("resnet14-rignet-t2") == 2
    assert iterations_of("resnet14") is None
    with pytest.raises(LookupError, match="resnet20 does not run in iterations"):
        with_iterations("resnet20", 2)
    with pytest.raises(LookupError, match="between 1 and 16"):
        with_iterations("resnet14-rignet-t2", 0)
    with pytest.raises(LookupError, match="unknown architecture 'resnet14-rignet'"):
        find_architecture("resnet14-rignet")


def test_trunk_runs_its_parts_in_order() -> None:
    class Parts(Trunk):
        stages = (nn.Flatten(),)

        def stem(self, x: Tensor) -> Tensor:
            return x + 1

        def head(self, features: list[Tensor], size: torch.Size) -> Tensor:
            return features[-1].sum(1) * size[0]

    assert Parts()(torch.ones(1, 2, 3, 3)).tolist() == [18 * 2 * 3]


def test_training_counts_each_pass_of_a_gated_network() -> None:
    trunk, gated = (
        {layer.name.removeprefix("trunk."): layer.site.macs for layer in find_layers(build(name), (1, 3, 32, 32))}
        for name in ("resnet14x0.25", "resnet14x0.25-rignet-t3")
    )
    once = {"conv1", "linear"}
    assert {name: macs for name, macs in gated.items() if name in trunk} == {
        name: macs * (1 if name in once else 3) for name, macs in trunk.items()
    }
    assert sum(name.startswith("gates.") for name in gated) == 3
