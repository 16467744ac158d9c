"""One network of every torchvision family, and real model files, through the command. Slow: some take minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from command import Command
from models import operators

FAMILIES = (
    *("alexnet", "vgg16_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121"),
    *("squeezenet1_1", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mnasnet1_0"),
    *("shufflenet_v2_x1_0", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny"),
)
# Their batch norm comes before the conv, behind an activation or a concatenation: nothing there to fold it into.
KEEP_BATCH_NORM = ("densenet121",)
RULE = ("--macs", "1.5", "--no-bench", "--json")

pytestmark = pytest.mark.slow


def check(trp: Command, made: Path, *arguments: object) -> None:
    outcome = trp(*arguments, *RULE, "-o", made)
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["before"]["macs"] / report["after"]["macs"] >= 1.5
    assert any(layer["scheme"] for layer in report["layers"])
    assert report["deviation"]["rewrite"]["relative_l2"] < 1e-4
    assert all(layer["reason"] for layer in report["layers"])


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, trp: Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.save(torchvision.models.get_model(name, weights=None, **extra).state_dict(), tmp_path / "net.pt")
    check(trp, tmp_path / "small.onnx", tmp_path / "net.pt", "--arch", f"torchvision:{name}")
    folded = "BatchNormalization" not in operators(tmp_path / "small.onnx")
    assert folded or name in KEEP_BATCH_NORM


@pytest.mark.parametrize("name", ["super_resolution_prepost_op18.onnx", "ultraface_slim_320.onnx"])
def test_model_as_found(name: str, trp: Command, tmp_path: Path, shared: Path) -> None:
    check(trp, tmp_path / "small.onnx", shared / "models" / name)


@pytest.mark.parametrize("name", ["resnet20-12fca82f.th", "resnet32-d509ac18.th"])
def test_checkpoint_as_found(name: str, trp: Command, tmp_path: Path, shared: Path) -> None:
    check(trp, tmp_path / "small.onnx", shared / "models" / name, "--arch", name.split("-")[0])
