"""A real bundle, and the page built from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from site_server import CHECKPOINT, CLASSES, IMAGES, MEAN, STD, web_demo

from trp_export import Options, compress
from trp_export.bench.devices.cache import cached
from trp_export.options import Benchmark
from trp_export.ship.manifest import NAME, File, Manifest, Preprocessing, Tensor


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-20, trained for low rank, exported."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    folder.mkdir()
    compress(CHECKPOINT, Options(benchmark=Benchmark(run=False), output=folder / "model.onnx"))
    (folder / "model.json").unlink()
    model = onnx.load(folder / "model.onnx")
    written = (folder / "model.onnx").read_bytes()
    manifest = Manifest(
        model="model.onnx",
        files={"model.onnx": File(hashlib.sha256(written).hexdigest(), len(written))},
        opset={one.domain: one.version for one in model.opset_import},
        ir_version=model.ir_version,
        precision="fp32",
        inputs=(_tensor(model.graph.input[0]),),
        outputs=(_tensor(model.graph.output[0]),),
        preprocessing=Preprocessing(MEAN, STD, resize="cover", crop=(32, 32)),
        classes=CLASSES,
        provenance={"source": {"name": "<b>resnet20</b>", "arch": "resnet20", "files": {}}},
    )
    (folder / NAME).write_bytes(manifest.to_bytes())
    return folder


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    shape = value.type.tensor_type.shape.dim
    return Tensor(value.name, tuple(one.dim_value or None for one in shape), "float32")


@pytest.fixture(scope="session")
def site(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with that bundle and the original."""
    if not all((cached("web") / name).is_file() for name in web_demo.RUNTIME):
        pytest.skip("onnxruntime-web is missing: python tools/setup_web.py")
    folder = tmp_path_factory.mktemp("built") / "site"
    web_demo.build(bundle, folder, CHECKPOINT)
    return folder


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """64 test images of CIFAR-10, uint8 (64, 32, 32, 3)."""
    return np.asarray(np.load(IMAGES)["images"][:64])
