"""Fill the tables of docs/results/int8.md: low rank and int8 together, beside either alone.

    python tools/precision_results.py accuracy [--networks resnet20,resnet32] [--ratios 1.5,2,3] [--test train_5]
    python tools/precision_results.py latency --networks resnet20,resnet18 [--device local] [--budget 60]
    python tools/precision_results.py counts --networks resnet20,resnet18 [--device arm]
    python tools/precision_results.py answers --cpu own             # kept, to compare them with those of another CPU
    qemu-x86_64 -cpu Haswell python tools/precision_results.py answers --cpu avx2
    python tools/precision_results.py tables

Calibration takes 1,024 images of the training files 1 to 4, without labels; accuracy is on --test. Ranks are multiples
of four in every form, as with --precision int8. Each result is a line of a file in --out, written as soon as it is
known; a second call continues. The files of resnet18 come from tools/int8_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import data
import numpy as np
import onnx_ir as ir
from common import CIFAR_RESNETS, IMAGENET, Listed, accuracy, append, draw_images, missing, read

from trp_export import Benchmark, Options, Preprocessing, Selection, compress
from trp_export.calibration.divergence import agreement, divergence
from trp_export.graph.model_files import save_model, size_bytes
from trp_export.graph.weights import set_value
from trp_export.inputs.description import describe_inputs
from trp_export.inputs.images import load_images
from trp_export.inputs.samples import Batch
from trp_export.options import INT8_CHANNELS, Calibration, LoadOptions
from trp_export.precision.convert import convert
from trp_export.precision.equalise import equalise
from trp_export.precision.grids import round_weight, weight_scales
from trp_export.precision.quantisable import find_units
from trp_export.precision.ranges import METHODS, Spread, gather_spreads
from trp_export.precision.rounding import round_model, rounded_values
from trp_export.rules import Energy, Macs
from trp_export.runtime.partial import Tap

IMAGES = 1024
BATCH = 64
INPUT = "input"


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of the command."""

    test: str
    networks: tuple[str, ...]
    ratios: tuple[float, ...]
    cuts: tuple[str, ...]
    forms: tuple[str, ...]
    shown: tuple[int, ...]
    cpu: str
    device: str
    budget: float
    out: Path


def run_accuracy(settings: Settings) -> None:
    """Dense and low rank in every form; for "int8 first", weights are rounded before they are factored."""
    test = load_images(data.cifar10() / f"{settings.test}.npz", IMAGENET)
    batches = calibration_batches(settings)
    for network in settings.networks:
        for ratio in (1.0, *settings.ratios):
            for form in settings.forms:
                if ratio == 1 and form == "int8 first":
                    continue
                job = {"job": "accuracy", "test": settings.test, "network": network, "ratio": ratio, "form": form}

                def work(network: str = network, ratio: float = ratio, form: str = form) -> dict[str, Any]:
                    file, how = make(settings, network, ratio, form, batches)
                    return {"accuracy": accuracy(file, test), "bytes": size_bytes(file), "how": how}

                record(settings.out / "accuracy.jsonl", job, work)


def make(settings: Settings, network: str, ratio: float, form: str, batches: Sequence[Batch]) -> tuple[Path, str]:
    """The file of a network at a ratio in a form, and how it was made. Existing files are used again."""
    file = settings.out / f"{network}-{ratio:g}-{form.replace(' ', '-')}.onnx"
    if form == "fp32":
        if not file.exists():
            export(settings, data.network(network), ratio, file)
        return file, ""
    if form == "int8 first":
        rounded = settings.out / f"{network}-rounded.onnx"
        if not rounded.exists():
            save_model(with_rounded_weights(make(settings, network, 1.0, "fp32", batches)[0]), rounded)
        source = settings.out / f"{network}-{ratio:g}-of-rounded.onnx"
        if not source.exists():
            export(settings, rounded, ratio, source)
        form = "int8"
    else:
        source, _ = make(settings, network, ratio, "fp32", batches)
    inputs = describe_inputs(ir.load(source)).completed()
    made = convert(form, source, file, inputs, batches, ratio > 1, lambda step, share: None)
    if made.refused:
        raise SystemExit(f"{file.name}: {made.refused}")
    assert made.parity is not None
    return file, f"{made.how}; divergence {made.parity.divergence:.2g}, agreement {made.parity.agreement:.4f}"


def export(settings: Settings, model: Path, ratio: float, output: Path) -> None:
    calibration = Calibration(calibration_file(settings)) if ratio > 1 else None
    arch = next((name for name in CIFAR_RESNETS if data.network(name) == model), None)
    compress(
        model,
        Options(
            rule=Macs(ratio) if ratio > 1 else Energy(1.0),
            load=LoadOptions(arch=arch),
            calibration=calibration or Calibration("none"),
            preprocessing=IMAGENET if calibration else Preprocessing(),
            selection=Selection(align=INT8_CHANNELS),
            benchmark=Benchmark(run=False),
            output=output,
        ),
    )


def with_rounded_weights(file: Path) -> ir.Model:
    """The model with kernels as int8 rounds them, as floats."""
    model = ir.load(file)
    model.metadata_props.clear()  # Otherwise a second export would find all layers decided.
    for unit in find_units(model):
        if unit.weight is not None:
            kernel, axis = unit.weight.array(), unit.output_axis
            scales = weight_scales(kernel, axis)
            shape = [-1 if other == axis else 1 for other in range(kernel.ndim)]
            set_value(unit.weight.root, round_weight(kernel, scales, axis) * scales.reshape(shape))
    return model


def run_ablation(settings: Settings) -> None:
    """The effect of each choice: divergence from the float model on held-out calibration images."""
    batches = calibration_batches(settings)
    shown, tested = [batch for index, batch in enumerate(batches) if index % 4], batches[::4]
    for network in settings.networks:
        for ratio in (1.0, *settings.ratios):
            file, _ = make(settings, network, ratio, "fp32", batches)
            model = ir.load(file)
            reference = outputs(model, tested)
            for equal in (False, True):
                own = model.clone()
                if equal:
                    equalise(own, shown)
                for images in settings.shown:
                    few = shown[: max(1, images // BATCH)]
                    spreads = gather_spreads(own, sorted(set(rounded_values(own).values())), few)
                    for method in METHODS:
                        for kept in ("none", "Add", "Conv first", "Gemm"):
                            if kept != "none" and (method != "least error" or images != settings.shown[-1]):
                                continue
                            job = {"job": "ablation", "network": network, "ratio": ratio, "equalised": equal,
                                   "images": images, "method": method, "kept": kept}  # fmt: skip

                            def work(
                                own: ir.Model = own,
                                spreads: Mapping[str, Spread] = spreads,
                                method: str = method,
                                kept: str = kept,
                                reference: Mapping[str, np.ndarray] = reference,
                            ) -> dict[str, Any]:
                                copy = own.clone()
                                grids = {name: METHODS[method](one) for name, one in spreads.items()}
                                round_model(copy, grids, kept_units(own, kept))
                                found = outputs(copy, tested)
                                return {
                                    "divergence": divergence(reference, found),
                                    "agreement": agreement(reference, found),
                                }

                            record(settings.out / "ablation.jsonl", job, work)


def kept_units(model: ir.Model, kept: str) -> list[str]:
    units = find_units(model)
    if kept == "Conv first":
        return [next(unit.name for unit in units if unit.node.op_type == "Conv")]
    return [unit.name for unit in units if unit.node.op_type == kept]


def outputs(model: ir.Model, batches: Sequence[Batch]) -> dict[str, np.ndarray]:
    names = [value.name or "" for value in model.graph.outputs]
    tap = Tap(model, [model.graph.inputs[0].name or ""], names)
    parts = [tap(batch.arrays) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def run_latency(settings: Settings) -> None:
    """All forms of a network side by side, one thread."""
    from trp_export import bench

    for network in settings.networks:
        path = latency_file(settings, network)
        if not path.exists():
            files = made_files(settings, network)
            bench.save(bench.compare(files, device=settings.device, threads=1, budget_s=settings.budget), path)
        result = bench.load(path)
        print(f"{network}: {result.environment.cpu}, onnxruntime {result.environment.onnxruntime}")
        alone = next(one for one in result.measurements if one.model == f"{network}-1-int8.onnx")
        for one in result.measurements:
            against = bench.ratio(result.measurements[0], one), bench.ratio(alone, one)
            print(f"| {one.model} | {bench.summary(one).median / 1e6:.4g} | {against[0]} | {against[1]} |")


def latency_file(settings: Settings, network: str) -> Path:
    ratios = "-".join(f"{ratio:g}" for ratio in settings.ratios)
    path: Path = settings.out / f"latency-{network}-{settings.device.partition(':')[0]}-{ratios}.json"
    return path


def made_files(settings: Settings, network: str) -> list[Path]:
    """The existing files of a network, dense and at the given ratios; dense fp32 is the first."""
    forms = [f"{form}{cut}" for form in ("fp32", "int8") for cut in ("", *(f"-{cut}" for cut in settings.cuts))]
    names = [f"{network}-{ratio:g}-{form}.onnx" for ratio in (1.0, *settings.ratios) for form in forms]
    return [settings.out / name for name in names if (settings.out / name).exists()]


def run_counts(settings: Settings) -> None:
    """Instructions of one inference on an emulated ARM processor; they do not depend on the load of the machine."""
    from trp_export import bench

    device = arm_device(settings)
    for network in settings.networks:
        for file in made_files(settings, network):

            def work(file: Path = file) -> dict[str, Any]:
                (one,) = (result := bench.compare([file], device=device, budget_s=settings.budget)).measurements
                assert one.deviation is not None
                counted = {"instructions": int(bench.summary(one).median), **one.counts}
                off = {"apart": one.deviation.relative_l2, "onnxruntime": result.environment.onnxruntime}
                return {"cpu": result.environment.cpu, **counted, **off}

            record(settings.out / "counts.jsonl", {"file": file.name, "device": device}, work)


def run_answers(settings: Settings) -> None:
    """Keep the outputs on 128 calibration images, and compare those of several CPUs with the float model's."""
    images = Batch({INPUT: load_images(calibration_file(settings), IMAGENET).batch(0, 128)})
    for network in settings.networks:
        for ratio in (1.0, *settings.ratios):
            float_file, file = (settings.out / f"{network}-{ratio:g}-{form}.onnx" for form in ("fp32", "int8"))
            kept = file.with_suffix(f".{settings.cpu}.npz")
            if not kept.exists():
                answers: dict[str, Any] = outputs(ir.load(file), [images])
                np.savez(kept, **answers)
            reference = outputs(ir.load(float_file), [images])
            for one in sorted(settings.out.glob(f"{file.stem}.*.npz")):
                found = dict(np.load(one))
                agree = f"divergence {divergence(reference, found):.2g}, same class {agreement(reference, found):.4f}"
                print(f"{one.stem}: {agree}")


def calibration_file(settings: Settings) -> Path:
    """A file of 1,024 images of the training files 1 to 4, without labels."""
    path: Path = settings.out / "calibration.npz"
    if not path.exists():
        np.savez(path, images=draw_images(data.cifar10(), IMAGES, 0))
    return path


def calibration_batches(settings: Settings) -> list[Batch]:
    return [Batch({INPUT: images}) for images in load_images(calibration_file(settings), IMAGENET).batches(BATCH)]


def record(path: Path, job: dict[str, Any], work: Callable[[], Mapping[str, Any]]) -> None:
    if missing(path, [job]):
        append(path, {**job, **work()})


def arm_device(settings: Settings) -> str:
    return settings.device if settings.device.startswith("arm") else "arm"


def print_tables(settings: Settings) -> None:
    """All results so far as Markdown."""
    print_accuracy(settings)
    for network in settings.networks:
        print_forms(settings, network)
    print_ablation(settings)


def print_accuracy(settings: Settings) -> None:
    lines = [line for line in read(settings.out / "accuracy.jsonl") if line["test"] == settings.test]
    for network in dict.fromkeys(line["network"] for line in lines):
        own = {(line["ratio"], line["form"]): line for line in lines if line["network"] == network}
        forms = list(dict.fromkeys(form for _, form in own))
        print(f"\n| {network} | " + " | ".join(forms) + " |\n" + "|---" * (len(forms) + 1) + "|")
        for ratio in dict.fromkeys(ratio for ratio, _ in own):
            cells = [own.get((ratio, form)) for form in forms]
            print(
                f"| {'dense' if ratio == 1 else f'{ratio:g}x'} | "
                + " | ".join(f"{cell['accuracy']:.2f}, {cell['bytes']:,} bytes" if cell else "" for cell in cells)
                + " |"
            )


def print_forms(settings: Settings, network: str) -> None:
    """Every form: size, time here, ARM instructions, time in WebAssembly; ratios are over the dense fp32 network."""
    here, web = (read_latencies(settings.out, network, device) for device in ("local", "web"))
    counts = {
        line["file"]: line["instructions"]
        for line in read(settings.out / "counts.jsonl")
        if line["device"] == arm_device(settings)
    }
    files = made_files(settings, network)
    print(f"\n| {network} | bytes | here, ms | ARM, 1e6 instructions | WASM, ms |\n|---|---|---|---|---|")
    for file in files:
        counted = counts.get(file.name)
        ratio = f"{counted / 1e6:.2f}: {counts[files[0].name] / counted:.2f}x" if counted else ""
        cells = (f"{size_bytes(file):,}", here.get(file.name, ""), ratio, web.get(file.name, ""))
        print(f"| {file.stem} | " + " | ".join(cells) + " |")


def read_latencies(folder: Path, network: str, device: str) -> dict[str, str]:
    """Median in ms and the ratio to the dense network that was measured beside it, by file name."""
    from trp_export import bench

    found: dict[str, str] = {}
    for path in sorted(folder.glob(f"latency-{network}-{device}-*.json")):
        dense, *others = bench.load(path).measurements
        for one in (dense, *others):
            median = f"{bench.summary(one).median / 1e6:.4g}"
            found.setdefault(one.model, median if one is dense else f"{median}: {bench.ratio(dense, one)}")
    return found


def print_ablation(settings: Settings) -> None:
    """A thousand times the divergence, with a row for each way to choose."""
    lines = read(settings.out / "ablation.jsonl")
    ratios = list(dict.fromkeys(line["ratio"] for line in lines))
    own: dict[tuple[Any, ...], dict[float, str]] = {}
    for line in lines:
        way = line["network"], line["equalised"], line["images"], line["method"], line["kept"]
        own.setdefault(way, {})[line["ratio"]] = f"{1e3 * line['divergence']:.2f}"
    heads = "network", "equalised", "images", "grids by", "in float", *(f"{ratio:g}x" for ratio in ratios)
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for way, found in own.items():
        print("| " + " | ".join([*map(str, way), *(found.get(ratio, "") for ratio in ratios)]) + " |")


@click.command()
@click.argument("job", type=click.Choice(["accuracy", "ablation", "latency", "counts", "answers", "tables"]))
@click.option(
    "--test", default="train_5", show_default=True, help="The file of CIFAR-10; use test_half only at the end."
)
@click.option("--networks", type=Listed(), default=CIFAR_RESNETS, help="resnet20,resnet32, or resnet18 for its times.")
@click.option("--ratios", type=Listed(float), default=(1.5, 2.0, 3.0), help="Times fewer multiply-adds.")
@click.option("--cuts", type=Listed(), default=("blind", "chosen"), help="Of resnet18; planned is another one.")
@click.option("--forms", type=Listed(), default=("fp32", "int8", "int8 first"), help="fp16 is another one.")
@click.option("--shown", type=Listed(int), default=(64, 256, 768), help="How many images set ranges.")
@click.option("--cpu", default="own", help="A name for this CPU, under which its answers are kept.")
@click.option("--device", default="local", help="See trp-bench --list-devices.")
@click.option("--budget", default=60.0, help="Seconds of a latency comparison.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/precision"), show_default=True)
def main(job: str, **values: Any) -> None:
    """Low rank and int8 together, beside either alone."""
    settings = Settings(**values)
    settings.out.mkdir(parents=True, exist_ok=True)
    JOBS[job](settings)


JOBS = {
    "accuracy": run_accuracy,
    "ablation": run_ablation,
    "latency": run_latency,
    "counts": run_counts,
    "answers": run_answers,
    "tables": print_tables,
}


if __name__ == "__main__":
    main()
