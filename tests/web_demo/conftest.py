"""A real bundle, and the page built from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from site_server import CHECKPOINT, IMAGES, web_demo

from trp_export import Options, compress
from trp_export.bench.devices.base import cached
from trp_export.options import Benchmark, Bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-20, trained for low rank, exported."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    compress(CHECKPOINT, Options(benchmark=Benchmark(run=False), bundle=Bundle(folder)))
    return folder


@pytest.fixture(scope="session")
def site(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with that bundle and the original."""
    if web_demo.unlike_pinned(cached("web")):
        pytest.skip(f"onnxruntime-web {web_demo.VERSION} is missing: python tools/setup_web.py")
    folder = tmp_path_factory.mktemp("built") / "site"
    web_demo.build(bundle, folder, CHECKPOINT)
    return folder


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """64 test images of CIFAR-10, uint8 (64, 32, 32, 3)."""
    return np.asarray(np.load(IMAGES)["images"][:64])
