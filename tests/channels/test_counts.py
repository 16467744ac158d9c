"""Networks at 5/8 of every width have the multiply-adds that C-SGD was published with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models_zoo.cifar_resnet import CifarResNet
from trp_export import Options, compress
from trp_export.options import LoadOptions


def five_eighths(network: CifarResNet) -> None:
    """Make the filters of every layer equal to those of 5/8 of them, alike in all layers of a residual sum.

    The channels of a later stage are zeros, then those of the stage before, then zeros: each part keeps 5/8.
    """
    first = np.array([channel % 10 for channel in range(16)])
    pads = np.array([channel % 5 for channel in range(8)])
    second = np.concatenate([pads, 8 + first, 24 + pads])
    third = np.concatenate([first, 16 + second, 48 + first])
    kept = {16: first, 32: second, 64: third}
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.copy_(module.weight[kept[module.out_channels]])
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.copy_(tensor[kept[module.num_features]])


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "before", "after"), [(20, 40.55e6, 15.94e6), (56, 125.49e6, 49.12e6)])
def test_widths_of_five_eighths(depth: int, before: float, after: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = CifarResNet(depth)
    five_eighths(network)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    report = compress(tmp_path / "net.pt", Options(load=LoadOptions(arch=f"resnet{depth}"), dry_run=True))
    assert report.before.macs == pytest.approx(before, abs=5e3)
    assert report.before.macs / report.fewer_macs == pytest.approx(after, abs=5e3)
