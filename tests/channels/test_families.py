"""Networks of torchvision and found ones: channels that are made equal are merged, and the outputs stay.

Every group is free but those that the outputs hold, those that a layer norm mixes, and the classes of a softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torchvision
from equal_channels import equal_pairs, make_equal
from models import relative_l2, run
from networks import input_shapes
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.regnet import BlockParams, RegNet

from trp_export.channels.analysis import analyse_channels
from trp_export.channels.groups import find_groups
from trp_export.channels.removal import remove_channels
from trp_export.channels.thin import ChannelChoice, choose_channels
from trp_export.graph.model_files import save_model
from trp_export.graph.prepare import prepare, remove_unused
from trp_export.graph.shapes import Shape
from trp_export.graph.simplify import simplify
from trp_export.runtime.measured_shapes import measure_value_shapes


def small_vgg() -> nn.Module:
    """Convs with batch norm, a pooling that changes nothing, then a flattened head."""
    convs = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(16)]
    head = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU()]
    return nn.Sequential(*convs, *head, nn.Linear(8, 5))


SMALL: dict[str, Callable[[], nn.Module]] = {
    "densenet": lambda: torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8),
    "shufflenet": lambda: torchvision.models.ShuffleNetV2([2, 2, 1], [8, 16, 32, 64, 64]),
    "mnasnet": lambda: torchvision.models.MNASNet(0.1),
    "regnet": lambda: RegNet(BlockParams.from_init_params(4, 16, 16, 2.0, 8, se_ratio=0.25)),
    "vgg": small_vgg,
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]),
}
LARGER = ("mnasnet", "regnet", "densenet")
FAMILIES = (
    *("alexnet", "vgg11_bn", "resnet18", "resnext50_32x4d", "densenet121", "squeezenet1_1", "googlenet"),
    *("inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0"),
    *("regnet_y_400mf", "convnext_tiny"),
)
# VGG and AlexNet pool to 7 x 7 and 6 x 6 before they flatten.
EXTENTS = {"alexnet": 224, "vgg11_bn": 224, "inception_v3": 96}
MIXED = {"convnext": 3, "convnext_tiny": 7}  # Groups that layer norms read.


@torch.no_grad()
def exported(network: nn.Module, extent: int, path: Path) -> Path:
    """The network with random batch norms, as an ONNX file with an open batch."""
    torch.manual_seed(0)
    for module in network.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.3, 0.3)
    open_batch = ({0: torch.export.Dim("batch", min=1)},)
    x = torch.randn(2, 3, extent, extent)
    torch.onnx.export(network, (x,), path, dynamo=True, verbose=False, dynamic_shapes=open_batch, external_data=False)
    return path


def value_shapes(model: ir.Model, shape: tuple[int, ...], folder: Path) -> dict[str, Shape]:
    """The shapes of all values in a run."""
    given = input_shapes(model, shape)
    save_model(model, folder / "run.onnx", apart=True)
    return measure_value_shapes(folder / "run.onnx", given)


def require_all_merged(path: Path, shape: tuple[int, ...], folder: Path, mixed: int) -> None:
    """Make channels of all free groups equal, and require that they go and the outputs stay."""
    model = prepare(simplify(ir.load(path))[0])
    analysis = analyse_channels(model, value_shapes(model, shape, folder))
    groups = find_groups(analysis)
    stay = [str(group) for group in groups if group.reason is not None]
    assert len(stay) == 1 + mixed, stay
    pairs = equal_pairs(analysis, groups)
    make_equal(analysis, pairs)
    wide = ir.to_proto(model)
    model = ir.from_proto(wide)
    choice = ChannelChoice(None, lambda name: None)
    analysis, gone, _ = choose_channels(model, value_shapes(model, shape, folder), choice)
    assert len(gone) == len(pairs) > 0
    remove_channels(analysis, gone)
    remove_unused(model)
    (name,) = input_shapes(model, shape)
    x = {name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    for wanted, got in zip(run(wide, x), run(ir.to_proto(model), x), strict=True):
        assert relative_l2(wanted, got) < 1e-5


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGER else name for name in SMALL]
)
def test_equal_channels_of_small_networks_go(name: str, tmp_path: Path) -> None:
    extent = EXTENTS.get(name, 64)
    path = exported(SMALL[name](), extent, tmp_path / "net.onnx")
    require_all_merged(path, (2, 3, extent, extent), tmp_path, MIXED.get(name, 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_equal_channels_of_a_family_go(name: str, tmp_path: Path) -> None:
    extent = EXTENTS.get(name, 64)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, weights=None, **extra)
    path = exported(network, extent, tmp_path / "net.onnx")
    require_all_merged(path, (2, 3, extent, extent), tmp_path, MIXED.get(name, 0))


def test_equal_channels_of_a_found_classifier_go(shared: Path, tmp_path: Path) -> None:
    path = shared / "models" / "real" / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    require_all_merged(path, (1, 3, 48, 192), tmp_path, mixed=0)
