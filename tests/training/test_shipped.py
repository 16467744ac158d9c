"""The trained networks that ship are what their names and cards say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from models_zoo import find_architecture
from training.checkpoint import load_network
from training.data.images import load_labelled_images
from training.data.in_memory import ValidationInMemory
from training.data.normalisation import Normalisation
from training.layers import find_layers, total_macs

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "models_zoo" / "weights").glob("*-[0-9]*x.pt"))
DATA = ROOT.parent / "shared" / "data" / "cifar10"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_ratio_is_that_of_the_name(path: Path) -> None:
    network = load_network(path, None)
    dense = total_macs(find_layers(find_architecture(network.arch).build(None), network.input_shape))
    promised = float(re.findall(r"-([\d.]+)x$", path.stem)[0])
    assert dense / total_macs(find_layers(network.module, network.input_shape)) >= promised
    assert path.with_suffix(".md").exists()
    assert path.stat().st_size < 5_000_000


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the test images in {DATA}")
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_accuracy_is_that_of_the_card(path: Path) -> None:
    network = load_network(path, None)
    images = load_labelled_images(f"npz:{DATA}", "test")
    network.module.eval()
    hits = 0
    with torch.no_grad():
        for x, y in ValidationInMemory(images, Normalisation(network.mean, network.std), torch.device("cpu")).batches():
            hits += int((network.module(x).argmax(1) == y).sum())
    (promised,) = re.findall(r"\| reaches \| ([\d.]+) %", path.with_suffix(".md").read_text())
    assert 100 * hits / len(images) == pytest.approx(float(promised), abs=0.05)


@torch.no_grad()
def test_the_trunk_of_the_gated_network_is_the_plain_network() -> None:
    gated = load_network(ROOT / "models_zoo" / "weights" / "resnet20-rignet-t2-cifar10.pt", None)
    plain = load_network(ROOT / "models_zoo" / "weights" / "resnet20-cifar10.pt", None)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, second = gated.module.eval().answers(x)
    assert torch.allclose(first, plain.module.eval()(x), atol=1e-5)
    assert not torch.allclose(first, second, atol=1e-2)
