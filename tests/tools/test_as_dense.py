"""A network of factor pairs gives the same outputs and updates where its pairs run as dense convs."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from as_dense import AsDense, program_of  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from models_zoo.cifar_resnet import CifarResNet  # noqa: E402
from models_zoo.pairs import with_pairs  # noqa: E402
from trp_export.lowrank.schemes import CHANNEL_WISE, SPATIAL_WISE, Branch, Scheme  # noqa: E402

CPU = torch.device("cpu")


def network(scheme: Scheme = SPATIAL_WISE) -> nn.Module:
    torch.manual_seed(0)
    ranks = {"layer1.0.conv1": 3, "layer1.0.conv2": 5, "layer2.0.conv1": 4, "layer3.0.conv2": 7}
    made = with_pairs(CifarResNet(8), [(name, (Branch(scheme, rank),)) for name, rank in ranks.items()])
    for buffer in made.buffers():
        if buffer.ndim:
            buffer.uniform_(0.5, 1.5)
    return made


def pixels() -> Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_outputs_and_statistics_are_those_of_the_pairs() -> None:
    pairs = network().train()
    whole = AsDense(copy.deepcopy(pairs), program_of(CifarResNet(8), CPU))
    torch.testing.assert_close(whole(pixels()), pairs(pixels()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        whole.network.get_buffer("bn1.running_var"), pairs.get_buffer("bn1.running_var"), rtol=1e-5, atol=1e-6
    )


def test_after_steps_of_both_the_pairs_are_the_same() -> None:
    pairs = network().train()
    whole = AsDense(copy.deepcopy(pairs), program_of(CifarResNet(8), CPU))
    for module in (pairs, whole):
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.01, 0.9, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(pixels()).square().mean().backward()
            optimizer.step()
    finished = whole.finish()
    for name, value in pairs.named_parameters():
        torch.testing.assert_close(finished.get_parameter(name), value, rtol=1e-3, atol=1e-5)
        assert finished.get_parameter(name).requires_grad


def test_pairs_of_another_scheme_are_refused() -> None:
    with pytest.raises(ValueError, match="spatial-wise"):
        AsDense(network(CHANNEL_WISE), program_of(CifarResNet(8), CPU))
