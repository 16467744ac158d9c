"""A bundle of a real network, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from trp_export import Benchmark, Images, Options, compress
from trp_export.options import Bundle

ZOO = Path(__file__).parent.parent.parent / "models_zoo"
IMAGES = ZOO / "images" / "cifar10-256.npz"


@dataclass(frozen=True, slots=True)
class Made:
    folder: Path
    digest: str


@pytest.fixture(scope="session")
def resnet20(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """ResNet-20 as low-rank pairs, with ORT format."""
    return make_resnet20(tmp_path_factory.mktemp("resnet20") / "bundle")


def make_resnet20(folder: Path) -> Made:
    options = Options(images=Images(IMAGES), benchmark=Benchmark(run=False), bundle=Bundle(folder, ort="arm"))
    report = compress(ZOO / "weights" / "resnet20-trp-spatial-2.84x.pt", options)
    assert report.digest is not None
    return Made(folder, report.digest)
