"""One thread: these networks are too small for more, and the same number gives the same bits."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stripes(tmp_path: Path) -> Path:
    """A folder of 320 images of 8x8 in four classes: stripes of white, red, green or blue."""
    folder = tmp_path / "stripes"
    folder.mkdir()
    random = np.random.default_rng(0)
    labels = np.arange(320) % 4
    images = random.integers(0, 80, (320, 8, 8, 3), dtype=np.uint8)
    colours = [slice(0, 3), 0, 1, 2]
    for image, label in zip(images, labels, strict=True):
        image[::2, :, colours[label]] += 150
    for part in (0, 1):
        np.savez(folder / f"train_{part}.npz", images=images[part::2], labels=labels[part::2])
    return folder
