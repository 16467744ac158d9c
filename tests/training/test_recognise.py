"""Networks trained for low rank by others are recognised; ordinary ones are not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models_zoo.cifar_resnet import CifarResNet
from training import TRP, Energy, TRPSettings
from training.layers import find_layers
from trp_export.planning.curves import Curve, make_curve, schemes_for
from trp_export.planning.trained_low_rank import recognise, sharp_drop


@given(st.integers(6, 60), st.integers(4, 60), st.integers(0, 999))
def test_random_matrices_do_not_drop(rows: int, surplus: int, seed: int) -> None:
    # Of square ones a few in a thousand have a very small last value and do drop.
    matrix = np.random.default_rng(seed).standard_normal((rows, rows + surplus))
    assert sharp_drop(np.linalg.svd(matrix, compute_uv=False)[None]) is None


@given(st.integers(1, 20), st.integers(0, 999), st.floats(0, 1e-3))
def test_a_low_rank_matrix_drops_at_its_rank_even_a_step_away(rank: int, seed: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    matrix = random.standard_normal((40, rank)) @ random.standard_normal((rank, 60))
    # A product of such factors may itself have a small last value; orthogonal ones cannot.
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    matrix = left[:, :rank] @ right[:rank] + noise * random.standard_normal((40, 60)) / np.sqrt(40)
    assert sharp_drop(np.linalg.svd(matrix, compute_uv=False)[None]) == rank


def test_degenerate_spectra() -> None:
    assert sharp_drop(np.zeros((1, 8))) is None
    assert sharp_drop(np.ones((1, 1))) is None


@pytest.mark.parametrize("trained", [False, True])
def test_only_networks_trained_for_low_rank_are_recognised(trained: bool) -> None:
    torch.manual_seed(0)
    model = CifarResNet(8)
    if trained:
        optimizer = torch.optim.SGD(model.parameters(), 0.001)
        TRP(model, optimizer, TRPSettings(rule=Energy(0.5), period=1), (1, 3, 32, 32))
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        for parameter in model.parameters():
            step = 1e-4 * parameter.norm() / parameter.grad.norm().clamp_min(1e-12)
            parameter.data.add_(parameter.grad, alpha=-step.item())  # One step away, as the authors' checkpoints are.
    found = recognise(curves_of(model))
    if trained:
        assert found is not None
        assert found.energy > 0.999
        assert found.layers >= 6
    else:
        assert found is None


def curves_of(model: torch.nn.Module) -> list[Curve]:
    return [
        make_curve(layer.site, schemes_for(layer.site, "spatial")[0], layer.weight.detach().numpy())
        for layer in find_layers(model, (1, 3, 32, 32))
        if not layer.site.is_matrix
    ]
