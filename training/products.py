"""Batched matrix products in full precision, as fast as the processor allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Products of fewer multiply-adds than this are done before a convolution has been set up.
_WORTH_A_CONVOLUTION = 1 << 24

_ONEDNN: Any = torch.backends.mkldnn
_MAY_ROUND: tuple[Any, ...] = (torch.backends.cuda.matmul, _ONEDNN.matmul, _ONEDNN.conv)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, and float32 as it is, whatever the training around allows (TF32, bfloat16)."""
    before = [backend.fp32_precision for backend in _MAY_ROUND]
    try:
        for backend in _MAY_ROUND:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(_MAY_ROUND, before, strict=True):
            backend.fp32_precision = precision


def product(left: Tensor, right: Tensor) -> Tensor:
    """left (b, m, k) @ right (b, k, n).

    On CPU threads large ones in float32 go through 1x1 convolutions: torch leaves these to oneDNN, matrix products to
    MKL, which takes twice the time on processors that are not Intel's. Not where the result is the largest of the
    three: a convolution leaves it in fresh memory, and that costs what was gained.
    """
    _, m, k = left.shape
    n = right.shape[2]
    convolves = left.device.type == "cpu" and left.dtype == torch.float32 and torch.get_num_threads() > 1
    if not convolves or m * k * n < _WORTH_A_CONVOLUTION or m * n >= k * max(m, n):
        return left @ right
    larger = left if m > n else right
    if larger.mT.is_contiguous():  # As it lies in memory, without a copy.
        return _by_convolution(right.mT, left.mT).mT
    return _by_convolution(left, right)


def _by_convolution(left: Tensor, right: Tensor) -> Tensor:
    parts = [_convolved(*pair) for pair in zip(left, right, strict=True)]
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def _convolved(left: Tensor, right: Tensor) -> Tensor:
    """One product: k channels into m at n places."""
    return functional.conv2d(right[None, :, :, None], left.contiguous()[:, :, None, None])[0, :, :, 0]
