"""The torch unfolding is the numpy one."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.matrices import fold, unfold
from trp_export.lowrank import schemes
from trp_export.lowrank.schemes import SCHEMES, Scheme

SLICED = Scheme("sliced", reduce_axes=(0, 1, 2), input_slices=2)


@st.composite
def kernels(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    group = draw(st.integers(1, 3))
    n, c = group * draw(st.integers(1, 4)), 2 * draw(st.integers(1, 3))
    extents = draw(st.lists(st.integers(1, 3), min_size=0, max_size=3))
    if not extents:
        group, n = 1, draw(st.integers(1, 5))
    size = (n, c, *extents)
    return np.random.default_rng(draw(st.integers(0, 99))).standard_normal(size).astype(np.float32), group


@given(kernels(), st.sampled_from([*SCHEMES.values(), SLICED]))
@settings(deadline=None)
def test_unfold_and_fold_equal_numpy(kernel_and_group: tuple[np.ndarray, int], scheme: Scheme) -> None:
    kernel, group = kernel_and_group
    tensor = torch.from_numpy(kernel)
    matrices = unfold(tensor, scheme, group)
    expected = schemes.unfold(kernel, scheme, group)
    assert np.array_equal(matrices.numpy(), expected)
    assert torch.equal(fold(matrices, scheme, kernel.shape, group), tensor)


def test_gradients_flow_back_through_unfold() -> None:
    kernel = torch.randn(4, 3, 3, 3, requires_grad=True)
    weights = torch.randn(1, 9, 12)
    (unfold(kernel, schemes.SPATIAL_WISE, 1) * weights).sum().backward()
    assert kernel.grad is not None
    assert torch.equal(kernel.grad, fold(weights, schemes.SPATIAL_WISE, kernel.shape, 1))
