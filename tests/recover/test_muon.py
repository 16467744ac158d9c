"""Muon: the update is orthogonal whatever the gradient, and a quadratic is descended."""

from __future__ import annotations

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch

from trp_export.recover.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (7, 7)], ids=str)
def test_singular_vectors_stay_and_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ orthogonal(matrix) @ vt.T
    assert (core - core.diagonal().diag()).abs().max() < 1e-4
    assert 0.6 < core.diagonal().min() <= core.diagonal().max() < 1.3


def test_nothing_is_made_of_no_gradient() -> None:
    assert orthogonal(torch.zeros(3, 4)).abs().max() == 0


def test_a_kernel_is_moved_to_the_least_squares_solution() -> None:
    random = torch.Generator().manual_seed(0)
    wanted, kernel = torch.randn(6, 4, 3, 3, generator=random), torch.zeros(6, 4, 3, 3, requires_grad=True)
    unused = torch.ones(2, 2, requires_grad=True)
    optimizer = Muon([kernel, unused], lr=0.1)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        ((kernel - wanted) ** 2).sum().backward()
        optimizer.step()
    assert (kernel - wanted).norm() < 0.02 * wanted.norm()
    assert (unused == 1).all()
