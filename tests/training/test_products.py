"""Products by convolution are products, and full precision is full whatever the training around allows."""

import itertools
from collections.abc import Iterator

import pytest
import torch

from training import spectra
from training.spectra import full_precision, product


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("shape", [(7, 33, 20), (20, 33, 7), (9, 40, 9), (9, 5, 9)])
@pytest.mark.parametrize("as_columns", list(itertools.product([False, True], repeat=2)))
def test_products_by_convolution(
    count: int, shape: tuple[int, int, int], as_columns: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectra, "_WORTH_A_CONVOLUTION", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    generator, (m, k, n) = torch.Generator().manual_seed(0), shape
    pair = torch.randn(count, m, k, generator=generator), torch.randn(count, k, n, generator=generator)
    left, right = (one.mT.contiguous().mT if turned else one for one, turned in zip(pair, as_columns, strict=True))
    found = product(left, right)
    assert found.shape == (count, m, n)
    torch.testing.assert_close(found.double(), left.double() @ right.double(), rtol=0, atol=1e-5)


def test_products_with_their_own_transpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "_WORTH_A_CONVOLUTION", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    matrix = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(product(matrix, matrix.mT), matrix @ matrix.mT, rtol=0, atol=1e-5)
    torch.testing.assert_close(product(matrix.mT, matrix), matrix.mT @ matrix, rtol=0, atol=1e-5)


@pytest.fixture
def rounding() -> Iterator[None]:
    """A training that allows itself TF32 and bfloat16."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with torch.autocast("cpu", torch.bfloat16):
        yield
    torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.usefixtures("rounding")
def test_full_precision_restores_the_settings_around_it() -> None:
    matrix = torch.randn(1, 300, 300, generator=torch.Generator().manual_seed(0))
    assert product(matrix, matrix).dtype == torch.bfloat16
    with full_precision(matrix.device):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        found = product(matrix, matrix)
    assert torch.is_autocast_enabled("cpu")
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    torch.testing.assert_close(found.double(), matrix.double() @ matrix.double(), rtol=0, atol=1e-4)
