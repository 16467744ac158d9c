"""The wide plain network: its shapes and its cost are those that its docstring describes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models_zoo import find_architecture
from training.layers import find_layers, total_macs
from trp_export import Benchmark, Calibration, Macs, Options, Selection, compress
from trp_export.options import LoadOptions


@pytest.mark.parametrize("classes", [None, 7])
@torch.no_grad()
def test_vgg8_answers_with_one_logit_for_each_class(classes: int | None) -> None:
    architecture = find_architecture("vgg8")
    model = architecture.build(classes).eval()
    assert model(torch.zeros(2, *architecture.input_shape[1:])).shape == (2, classes or 10)


def test_vgg8_costs_as_many_multiply_adds_as_its_shapes_say() -> None:
    architecture = find_architecture("vgg8")
    # Inputs, outputs, kernel area, output area of each layer; the stem has no padding, and pooling rounds down.
    layers = [
        (3, 32, 9, 30 * 30),
        (32, 64, 9, 30 * 30),
        (64, 64, 9, 15 * 15),
        (64, 192, 9, 15 * 15),
        (192, 192, 9, 7 * 7),
        (192, 256, 9, 7 * 7),
        (256, 256, 9, 3 * 3),
        (256, 10, 1, 1),
    ]
    expected = sum(inputs * outputs * kernel * area for inputs, outputs, kernel, area in layers)
    assert total_macs(find_layers(architecture.build(None), architecture.input_shape)) == expected


def test_unknown_name_near_vgg8_suggests_it() -> None:
    with pytest.raises(LookupError, match="vgg8"):
        find_architecture("vgg9")


def test_vgg8_at_half_the_multiply_adds_has_pairs_and_passes_verification(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(find_architecture("vgg8").build(None).state_dict(), weights := tmp_path / "vgg8.pt")
    options = Options(
        rule=Macs(2),
        load=LoadOptions(arch="vgg8"),
        selection=Selection(align=16),
        calibration=Calibration("none"),
        benchmark=Benchmark(run=False),
        output=tmp_path / "small.onnx",
    )
    report = compress(weights, options)
    assert report.before.macs / report.after.macs >= 2
    ranks = [branch.rank for decision in report.plan.decisions for branch in decision.branches]
    assert ranks
    assert all(rank % 16 == 0 for rank in ranks)
