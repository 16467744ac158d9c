"""The torch unfolding is the numpy one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.matrices import fold, unfold, unfolding
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
def test_unfold_and_fold_equal_numpy(kernel_and_group: tuple[np.ndarray, int], scheme: Scheme) -> None:
    kernel, group = kernel_and_group
    tensor = torch.from_numpy(kernel)
    matrices = unfold(tensor, scheme, group)
    expected = schemes.unfold(kernel, scheme, group)
    assert np.array_equal(matrices.numpy(), expected)
    assert torch.equal(fold(matrices, scheme, kernel.shape, group), tensor)


@given(kernels(), st.sampled_from([*SCHEMES.values(), SLICED]), st.permutations(range(5)))
def test_in_memory_order_keeps_rows_and_columns(
    kernel_and_group: tuple[np.ndarray, int], scheme: Scheme, memory: list[int]
) -> None:
    kernel, group = torch.from_numpy(kernel_and_group[0]), kernel_and_group[1]
    order = [axis for axis in memory if axis < kernel.dim()]
    kernel = kernel.permute(order).contiguous().permute([order.index(axis) for axis in range(kernel.dim())])
    canonical = unfolding(scheme, kernel.shape, group)
    lying = canonical.in_memory_order(kernel)
    matrices = lying.unfold(kernel)
    assert torch.equal(lying.fold(matrices), kernel)
    expected = unfold(kernel, scheme, group)
    torch.testing.assert_close(torch.linalg.svdvals(matrices), torch.linalg.svdvals(expected), rtol=0, atol=1e-4)
    torch.testing.assert_close(matrices.sort(dim=1)[0].sum(dim=2), expected.sort(dim=1)[0].sum(dim=2))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_channel_wise_matrices_are_views(memory_format: torch.memory_format) -> None:
    kernel = torch.randn(8, 6, 3, 3).contiguous(memory_format=memory_format)
    matrices = unfolding(schemes.CHANNEL_WISE, kernel.shape, 1).in_memory_order(kernel).unfold(kernel)
    assert matrices.data_ptr() == kernel.data_ptr()


def test_gradients_flow_back_through_unfold() -> None:
    kernel = torch.randn(4, 3, 3, 3, requires_grad=True)
    weights = torch.randn(1, 9, 12)
    (unfold(kernel, schemes.SPATIAL_WISE, 1) * weights).sum().backward()
    assert kernel.grad is not None
    assert torch.equal(kernel.grad, fold(weights, schemes.SPATIAL_WISE, kernel.shape, 1))
