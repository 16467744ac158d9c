"""Reports made by hand: every part of one can be there, missing or hostile, without an export being run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_export.bench import Comparison, Environment, Measurement, Process
from trp_export.graph.cost import Cost
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.load import Source
from trp_export.lowrank.schemes import CHANNEL_WISE, SPATIAL_WISE
from trp_export.lowrank.site import Site, Use
from trp_export.metrics.score import Detail, Score
from trp_export.options import Benchmark, Calibration, Images, Options
from trp_export.planning.curves import Layer, make_curve
from trp_export.planning.frontier import Frontier, Point
from trp_export.planning.plan import Decision, Plan
from trp_export.planning.rules import keep, take
from trp_export.precision.convert import Parity, Variant
from trp_export.report.document import Report
from trp_export.rules import Energy
from trp_export.runtime.distance import Distance
from trp_export.steps.precisions import Precisions
from trp_export.verify import Deviation

# Top-1 accuracy of 500 images with labels, and without them.
LABELLED = Score(
    "top1",
    "top-1 accuracy",
    0.917,
    0.909,
    images=500,
    error=0.0063,
    details=(Detail("top-5", 0.99, 0.988),),
    remark="7 of 500 images were right and are wrong now, 3 the reverse",
)
UNLABELLED = Score("top1", "same class", 1.0, 0.98, images=500, error=0.0063, labelled=False)

HOSTILE = (
    "</title><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; background: url(//example.org) '",
    "$body ${title} %s {0}",
    "line\u202ereversed\u0000\x1b[31mred",
    "[bold red]markup[/]",
    "two\nlines",
)


def make_layer(name: str, seed: int = 0, refusal: str | None = None) -> Layer:
    """A conv of 16 channels with its curves under two schemes, or none where it is refused."""
    site = Site(name, "Conv", (16, 16, 3, 3), 1, (Use((8, 8), (8, 8), (1, 1), (1, 1, 1, 1), (1, 1)),), refusal)
    if refusal:
        return Layer(site, ())
    kernel = np.random.default_rng(seed).standard_normal(site.kernel_shape).astype(np.float32)
    return Layer(site, tuple(make_curve(site, scheme, kernel) for scheme in (CHANNEL_WISE, SPATIAL_WISE)))


def make_plan(layers: tuple[Layer, ...]) -> Plan:
    """By turns channel-wise, spatial-wise and left dense."""
    return Plan(tuple(_decide(layer, index) for index, layer in enumerate(layers)), "energy 0.9")


def _decide(layer: Layer, index: int) -> Decision:
    if not layer.curves:
        return keep(layer.site, layer.site.refusal or "")
    if index % 3 == 2:
        return keep(layer.site, "rank 20 is not below break-even 15")
    curve = layer.curves[index % 3]
    return take(layer.site, curve, curve.top_rank // 2)


def make_comparison(speed: float, processes: int = 6, unit: str = "ns", cleaned: float | None = 1.0) -> Comparison:
    """Times around 2 ms before, `speed` times faster after, and `cleaned` times faster cleaned up alone."""
    rng = np.random.default_rng(1)

    def measurement(model: str, middle: float) -> Measurement:
        samples = [middle * rng.lognormal(0, 0.02, 50) for _ in range(processes)]
        runs = (Process(i, 12.5, 10**7, 5 * 10**7, tuple(map(int, part))) for i, part in enumerate(samples))
        return Measurement(model, "0" * 64, 1000, tuple(runs), None, {})

    environment = Environment(
        "local", "A CPU", "x86_64", "Linux", 4, "unknown", (3,), 1, "CPUExecutionProvider", "1.30", "x", unit
    )
    speeds = {"net.onnx": 1.0, "net.trp.onnx": speed} | ({"cleaned.onnx": cleaned} if cleaned else {})
    measurements = tuple(measurement(model, 2e6 / times) for model, times in speeds.items())
    return Comparison(environment, measurements, ("other programs used 40% of this computer meanwhile",), 12.0)


def make_report(layers: tuple[Layer, ...], speed: float = 1.5, name: str = "net") -> Report:
    """Everything there: measured, compared on labelled images, with a note."""
    source = Source(name, ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), path=Path("/home/someone/net.onnx"))
    images = Images(Path("/home/someone/pictures.npz"))
    options = Options(
        Energy(0.9),
        images=images,
        preprocessing=Preprocessing((0.5,), (0.25,)),
        benchmark=Benchmark(budget_s=5),
        output=Path("/tmp/small.onnx"),
        calibration=Calibration("none"),
    )
    return Report(
        source=source,
        options=options,
        plan=make_plan(layers),
        before=Cost(100_000, 20_000_000, 1_130_000),
        after=Cost(60_000, 12_000_000, 700_000),
        deviation=Deviation("noise", "whole model", Distance(3e-7, 1e-6), Distance(0.04, 0.3), LABELLED),
        latency=make_comparison(speed),
        layer_ms={"conv1": (0.031, 0.02), "conv2": (0.03, 0.033), "conv3": (0.04, 0.04)},
        notes=("the images have one channel",),
        files=(Path("small.onnx"), Path("small.json")),
    )


def make_forms(speed: float = 1.5) -> Precisions:
    """Low rank in two precisions and the same without, each measured; low rank in int8 ships."""
    fp32, int8 = make_comparison(speed).measurements[1], make_comparison(8 * speed).measurements[1]
    alone, rounded = make_comparison(1.01).measurements[1], make_comparison(9.1).measurements[1]
    file, parity, judged = Path("net.onnx"), Parity(1024, 0.985, 0.0031), LABELLED
    how = "grids by percentile; in float: layer1.0.conv1, layer1.0.conv2"
    return Precisions(
        (
            Variant("fp32", True, file, 700_000, judged=judged, latency=fp32),
            Variant("int8", True, file, 211_000, how, parity, judged=judged, latency=int8),
            Variant("fp32", False, file, 1_130_000, judged=judged, latency=alone),
            Variant("int8", False, file, 312_000, how, parity, judged=judged, latency=rounded),
        ),
        shipped=1,
    )


def make_frontier(chosen: int = 1) -> Frontier:
    """Three networks seen, the middle one chosen."""
    points = (
        Point(1.5, 1.51, 70_000, 13_200_000, 0.915, 0.003, holds=True),
        Point(2.0, 2.02, 51_000, 9_900_000, 0.909, 0.004, holds=True),
        Point(3.0, 3.05, 34_000, 6_600_000, 0.871, 0.008, holds=False),
    )
    return Frontier("accuracy", 500, 0.917, 1.0, "macs", points, chosen)


def bare(report: Report) -> Report:
    """The same with nothing measured, nothing compared, nothing written: what a dry run knows."""
    return replace(
        report, before=replace(report.before, bytes=None), after=None, deviation=None, latency=None, notes=(), files=()
    )


LAYERS = (make_layer("conv1"), make_layer("conv2", 1), make_layer("conv3", 2), make_layer("head", 3, "depthwise"))
