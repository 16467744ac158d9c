"""The times of int8 kernels by rank, and ResNet-18 cut so that they lose least time.

    python tools/int8_kernels.py kernels     microseconds of 3x3 layers and of their pairs, fp32 and int8, as Markdown
    python tools/int8_kernels.py planned     plans of ResNet-18 by --speedup in int8, as fast as those chosen by hand
    python tools/int8_kernels.py resnet18    ResNet-18 files, dense and cut, for tools/precision_results.py latency

Files are in --out, by default runs/precision; kernels and planned need a quiet machine. ResNet-18 is torchvision's with
random weights: it has a latency and no accuracy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx
import onnx_ir as ir
from common import append, macs_ratio, missing, read, silent

from trp_export import Benchmark, Options, Selection, compress
from trp_export.graph.model_files import save_model
from trp_export.graph.sites import find_sites
from trp_export.inputs.options import InputOptions
from trp_export.inputs.samples import Batch
from trp_export.latency.network import open_latency
from trp_export.latency.search import plan_for_speedup
from trp_export.load import load
from trp_export.network import analyse, measure_layers
from trp_export.options import Calibration, LoadOptions
from trp_export.planning.budgets import lost_energy
from trp_export.planning.plan import Plan
from trp_export.precision.ranges import METHODS, gather_spreads
from trp_export.precision.rounding import round_model, rounded_values
from trp_export.rules import Energy, Macs, SavedPlan

# ResNet-18: what the layers become, chosen so that int8 kernels lose least time at these ratios, none cut more than
# five times. Layer patterns, scheme, rank; the first that fits counts, other layers stay dense.
Choices = tuple[tuple[str, str, int], ...]
CHOSEN: dict[float, Choices] = {
    2.0: (
        ("conv1", "channel-wise", 16),
        ("layer2.[01].conv2", "channel-wise", 32),
        ("layer2.1.conv1", "channel-wise", 32),
        ("layer3.[01].conv2", "pointwise-first", 48),
        ("layer3.1.conv1", "pointwise-first", 48),
        ("layer4.0.conv1", "spatial-wise", 96),
        ("layer4.?.conv?", "spatial-wise", 192),
    ),
    3.0: (
        ("conv1", "channel-wise", 16),
        ("layer1.0.conv?", "pointwise-first", 16),
        ("layer1.1.conv1", "pointwise-first", 16),
        ("layer2.[01].conv2", "channel-wise", 32),
        ("layer2.1.conv1", "channel-wise", 32),
        ("layer3.0.conv1", "channel-wise", 48),
        ("layer3.?.conv?", "pointwise-first", 48),
        ("layer4.0.conv1", "pointwise-first", 48),
        ("layer4.?.conv?", "channel-wise", 96),
    ),
}


def make_resnet18(out: Path) -> None:
    """Dense, cut by --macs with ranks in 16s, as CHOSEN and as planned; each in fp32 and with all layers in int8."""
    rng = np.random.default_rng(0)
    noise = [Batch({"input": rng.standard_normal((1, 3, 224, 224), dtype=np.float32)}) for _ in range(16)]
    source = out / "resnet18-1-fp32.onnx"
    if not source.exists():
        save_resnet18(source)
    plan = out / "plan.json"
    for ratio, chosen in CHOSEN.items():
        file = out / f"resnet18-{ratio:g}-fp32-chosen.onnx"
        if not file.exists():
            plan.write_text(json.dumps(plan_of(source, chosen)))
            report = compress(source, Options(rule=SavedPlan(plan), benchmark=Benchmark(run=False), output=file))
            print(f"{file.name}: {macs_ratio(report):.2f} times fewer MACs")
        planned = out / f"plan-{ratio:g}-planned.json"
        file = out / f"resnet18-{ratio:g}-fp32-planned.onnx"
        if planned.exists() and not file.exists():
            report = compress(source, Options(rule=SavedPlan(planned), benchmark=Benchmark(run=False), output=file))
            print(f"{file.name}: {macs_ratio(report):.2f} times fewer MACs")
        file = out / f"resnet18-{ratio:g}-fp32-blind.onnx"
        if not file.exists():
            selection = Selection("channel", align=16)
            weights_alone = Calibration("none")
            options = Options(
                Macs(ratio), weights_alone, selection=selection, benchmark=Benchmark(run=False), output=file
            )
            compress(source, options)
    for file in sorted(out.glob("resnet18-*fp32*.onnx")):
        rounded = file.with_name(file.name.replace("fp32", "int8"))
        if not rounded.exists():
            model = ir.load(file)
            round_layers(model, noise)
            save_model(model, rounded)


# How many times as fast as int8 alone the plans by --speedup are to be, by name: as those chosen by hand are.
PLANNED = {"2": 1.72, "3": 2.23}


def plan_resnet18(out: Path) -> None:
    """Plans by the latency of layers in int8; with random weights, only lost energy can be weighed against it."""
    source = out / "resnet18-1-fp32.onnx"
    with TemporaryDirectory() as folder:
        network = analyse(load(source, LoadOptions()), Path(folder))
        layers = measure_layers(network, Selection(), (), silent)
        latency = open_latency(
            network,
            layers,
            selection=Selection(),
            benchmark=Benchmark(),
            precision="int8",
            folder=Path(folder),
            progress=silent,
        )
        alone = latency.measured(Plan((), "dense"))
        for name, ratio in PLANNED.items():
            plan = plan_for_speedup(layers, latency, ratio * alone, lost_energy)
            print(f"{name}, --speedup {ratio * alone:.2f}: {latency.forecast(plan)}")
            (out / f"plan-{name}-planned.json").write_text(json.dumps(plan.to_json()))


def save_resnet18(path: Path) -> None:
    """torchvision's ResNet-18 with random weights, cleaned up as every result is."""
    import torch
    import torchvision

    torch.manual_seed(0)
    compress(
        torchvision.models.resnet18(weights=None).eval(),
        Options(
            Energy(1.0),
            Calibration("none"),
            inputs=InputOptions.of(1, 3, 224, 224),
            benchmark=Benchmark(run=False),
            output=path,
        ),
    )
    model = ir.load(path)
    model.metadata_props.clear()  # Else a second export would find nothing left to decide.
    save_model(model, path)


def plan_of(source: Path, chosen: Choices) -> dict[str, Any]:
    """The plan that makes these choices."""
    layers = [site.site.name for site in find_sites(ir.load(source), {})]
    lines = []
    for name in layers:
        scheme, rank = next(((s, r) for pattern, s, r in chosen if fnmatch(name, pattern)), (None, None))
        lines.append({"name": name, "scheme": scheme, "rank": rank, "reason": "by kernel times"})
    return {"format": "trp-plan", "version": 1, "rule": "by kernel times", "layers": lines}


# Of ResNet-18: channels in and out, extent in, stride.
STAGES = ((64, 64, 56, 1), (128, 128, 28, 1), (256, 256, 14, 1), (512, 512, 7, 1))
MACS: dict[str, Callable[[int, int], int]] = {
    "channel-wise": lambda c, n: 9 * c + n,
    "spatial-wise": lambda c, n: 3 * c + 3 * n,
    "pointwise-first": lambda c, n: c + 9 * n,
}
RANKS = (6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128)


def run_kernels(out: Path) -> None:
    """Microseconds of the convs of a 3x3 layer and of its pairs, one thread, from onnxruntime's profiler."""
    path = out / "kernels.jsonl"
    for c, n, extent, stride in STAGES:
        layers = {("dense", 0): [(n, 3, 3, stride, stride)]}
        for rank in (rank for rank in RANKS if rank <= n / 2):
            layers["channel-wise", rank] = [(rank, 3, 3, stride, stride), (n, 1, 1, 1, 1)]
            layers["spatial-wise", rank] = [(rank, 3, 1, stride, 1), (n, 1, 3, 1, stride)]
            layers["pointwise-first", rank] = [(rank, 1, 1, 1, 1), (n, 3, 3, stride, stride)]
        for (scheme, rank), convs in layers.items():
            for job in missing(path, [{"layer": [c, n, extent, stride], "scheme": scheme, "rank": rank}]):
                append(path, {**job, **time_chain(c, extent, convs)})
    print_kernels(read(path))


def print_kernels(lines: Sequence[dict[str, Any]]) -> None:
    """int8 microseconds by rank, and how much of the multiply-adds saved comes out as time: 1.00 would be perfect."""
    for layer in (list(stage) for stage in STAGES):
        own = {(line["scheme"], line["rank"]): line for line in lines if line["layer"] == layer}
        dense = own["dense", 0]
        c, n, extent, _ = layer
        print(f"\n{c} to {n} channels, {extent} x {extent}: dense {sum(dense['int8_us']):.0f} us, "
              f"in fp32 {sum(dense['fp32_us']):.0f} us\n")  # fmt: skip
        ranks = [rank for rank in RANKS if ("channel-wise", rank) in own]
        print("| rank | " + " | ".join(map(str, ranks)) + " |\n" + "|---" * (len(ranks) + 1) + "|")
        for scheme, macs in MACS.items():
            cells = []
            for rank in ranks:
                taken = own[scheme, rank]["int8_us"]
                quotient = sum(dense["int8_us"]) / sum(taken) / (9 * c * n / (rank * macs(c, n)))
                cells.append(f"{' + '.join(f'{us:.0f}' for us in taken)}: {quotient:.2f}")
            print(f"| {scheme} | " + " | ".join(cells) + " |")


def time_chain(channels: int, extent: int, convs: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Convs (outputs, kernel height and width, strides) one after another, alone in a model."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((1, channels, extent, extent)).astype(np.float32)
    nodes, weights, name, inputs = [], [], "x", channels
    for index, (outputs_, high, wide, *strides) in enumerate(convs):
        kernel = rng.standard_normal((outputs_, inputs, high, wide)) / np.sqrt(inputs * high * wide)
        weights += [onnx.numpy_helper.from_array(kernel.astype(np.float32), f"w{index}")]
        weights += [onnx.numpy_helper.from_array(np.zeros(outputs_, dtype=np.float32), f"b{index}")]
        pads = [high // 2, wide // 2] * 2
        nodes.append(
            onnx.helper.make_node(
                "Conv", [name, f"w{index}", f"b{index}"], [f"y{index}"], f"c{index}", strides=strides, pads=pads
            )
        )
        name, inputs = f"y{index}", outputs_
    nodes.append(onnx.helper.make_node("Relu", [name], ["out"]))
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, data.shape)], [info("out", 1, None)], weights)
    opset = onnx.helper.make_opsetid("", 17)
    model = ir.serde.deserialize_model(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8))
    rounded = model.clone()
    round_layers(rounded, [Batch({"x": data})])
    return {"fp32_us": profile_convs(model, data), "int8_us": profile_convs(rounded, data)}


def round_layers(model: ir.Model, batches: Sequence[Batch]) -> None:
    """All layers in int8, whatever that does to the answers: with random weights these say nothing."""
    spreads = gather_spreads(model, sorted(set(rounded_values(model).values())), batches)
    round_model(model, {name: METHODS["full range"](one) for name, one in spreads.items()})


def profile_convs(model: ir.Model, data: np.ndarray, runs: int = 20) -> list[float]:
    import onnxruntime

    with TemporaryDirectory() as folder:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = 1, 4
        settings.enable_profiling, settings.profile_file_prefix = True, f"{folder}/profile"
        proto = ir.serde.serialize_model(model).SerializeToString()
        session = onnxruntime.InferenceSession(proto, settings, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, {"x": data})
        events = json.loads(Path(session.end_profiling()).read_text())
    taken: dict[str, list[int]] = {}
    for event in events:
        if event["name"].endswith("_kernel_time") and "Conv" in event["args"]["op_name"]:
            taken.setdefault(event["name"], []).append(event["dur"])
    return [float(np.median(some)) for some in taken.values()]


@click.command()
@click.argument("job", type=click.Choice(["kernels", "planned", "resnet18"]))
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/precision"), show_default=True)
def main(job: str, out: Path) -> None:
    """Times of int8 kernels, and ResNet-18 cut so that they lose least time."""
    out.mkdir(parents=True, exist_ok=True)
    {"kernels": run_kernels, "planned": plan_resnet18, "resnet18": make_resnet18}[job](out)


if __name__ == "__main__":
    main()
