"""Fill the tables of docs/results/int8.md: low rank and int8 together, beside either alone.

    python tools/precision_results.py accuracy --data ../shared/data/cifar10 --models ../shared/models \
        [--networks resnet20 resnet32] [--ratios 1.5 2 3] [--test train_5.npz] [--out runs/precision]
    python tools/precision_results.py latency --networks resnet20 resnet18 [--device local] [--budget 60]
    python tools/precision_results.py counts --networks resnet20 resnet18 [--device arm]
    python tools/precision_results.py answers --cpu own             kept, to be compared with those of another CPU
    qemu-x86_64 -cpu Haswell python tools/precision_results.py answers --cpu avx2
    python tools/precision_results.py tables

Calibration takes 1,024 images of training shards 1 to 4, without labels; accuracy is that on --test. Ranks are in fours
in every form, as --precision int8 makes them. Every result is a
line of a JSON file as soon as it is there; a second call goes on where the first one ended. The files of resnet18 come
from tools/int8_kernels.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from common import append, missing, read

from trp_export import Benchmark, Options, Selection, compress
from trp_export.calibration.divergence import agreement, divergence
from trp_export.graph.model_files import save_model, size_bytes
from trp_export.graph.weights import set_value
from trp_export.inputs.images import ImageSet, load_images
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.options import INT8_CHANNELS, Calibration, LoadOptions
from trp_export.precision.convert import convert
from trp_export.precision.equalise import equalise
from trp_export.precision.grids import round_weight, weight_scales
from trp_export.precision.quantisable import find_units
from trp_export.precision.ranges import METHODS, gather_spreads
from trp_export.precision.rounding import round_model, rounded_values
from trp_export.rules import Energy, Macs
from trp_export.runtime.partial import Tap

CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet32": "resnet32-d509ac18.th"}
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
IMAGES = 1024
BATCH = 64


def main() -> None:
    options = parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = {
        "accuracy": run_accuracy,
        "ablation": run_ablation,
        "latency": run_latency,
        "counts": run_counts,
        "answers": run_answers,
        "tables": print_tables,
    }
    jobs[options.job](options)


def run_accuracy(options: argparse.Namespace) -> None:
    """Dense and low rank in every form; "int8 first" is low rank of weights that were rounded before."""
    test = load_images(options.data / options.test, IMAGENET)
    batches = calibration_batches(options)
    for network in options.networks:
        for ratio in (1.0, *options.ratios):
            for form in options.forms:
                if ratio == 1 and form == "int8 first":
                    continue
                job = {"job": "accuracy", "test": options.test, "network": network, "ratio": ratio, "form": form}

                def work(network: str = network, ratio: float = ratio, form: str = form) -> dict[str, Any]:
                    file, how = make(options, network, ratio, form, batches)
                    return {"accuracy": accuracy(file, test), "bytes": size_bytes(file), "how": how}

                record(options.out / "accuracy.jsonl", job, work)


def make(
    options: argparse.Namespace, network: str, ratio: float, form: str, batches: Sequence[np.ndarray]
) -> tuple[Path, str]:
    """The file of a network at a ratio in a form, and how it was made. Files are kept."""
    file = options.out / f"{network}-{ratio:g}-{form.replace(' ', '-')}.onnx"
    if form == "fp32":
        if not file.exists():
            export(options, options.models / CHECKPOINTS[network], ratio, file)
        return file, ""
    if form == "int8 first":
        rounded = options.out / f"{network}-rounded.onnx"
        if not rounded.exists():
            save_model(with_rounded_weights(make(options, network, 1.0, "fp32", batches)[0]), rounded)
        source = options.out / f"{network}-{ratio:g}-of-rounded.onnx"
        if not source.exists():
            export(options, rounded, ratio, source)
        form = "int8"
    else:
        source, _ = make(options, network, ratio, "fp32", batches)
    made = convert(form, source, file, batches, ratio > 1, lambda step, share: None)
    if made.refused:
        raise SystemExit(f"{file.name}: {made.refused}")
    assert made.parity is not None
    return file, f"{made.how}; divergence {made.parity.divergence:.2g}, agreement {made.parity.agreement:.4f}"


def export(options: argparse.Namespace, model: Path, ratio: float, output: Path) -> None:
    calibration = Calibration(calibration_file(options)) if ratio > 1 else None
    arch = next((name for name, file in CHECKPOINTS.items() if file == model.name), None)
    compress(
        model,
        Options(
            rule=Macs(ratio) if ratio > 1 else Energy(1.0),
            load=LoadOptions(arch=arch),
            calibration=calibration,
            selection=Selection(align=INT8_CHANNELS),
            benchmark=Benchmark(run=False),
            output=output,
        ),
    )


def with_rounded_weights(file: Path) -> ir.Model:
    """The model whose kernels are what int8 makes of them, as floats."""
    model = ir.load(file)
    model.metadata_props.clear()  # Else a second export would find nothing left to decide.
    for unit in find_units(model):
        if unit.weight is not None:
            kernel, axis = unit.weight.array(), unit.output_axis
            scales = weight_scales(kernel, axis)
            shape = [-1 if other == axis else 1 for other in range(kernel.ndim)]
            set_value(unit.weight.root, round_weight(kernel, scales, axis) * scales.reshape(shape))
    return model


def run_ablation(options: argparse.Namespace) -> None:
    """What each choice is worth: divergence from the float model on held-out calibration images."""
    batches = calibration_batches(options)
    shown, tested = [batch for index, batch in enumerate(batches) if index % 4], batches[::4]
    for network in options.networks:
        for ratio in (1.0, *options.ratios):
            file, _ = make(options, network, ratio, "fp32", batches)
            model = ir.load(file)
            reference = outputs(model, tested)
            for equal in (False, True):
                own = model.clone()
                if equal:
                    equalise(own, shown)
                spreads = None
                for images in options.shown:
                    few = shown[: max(1, images // BATCH)]
                    spreads = gather_spreads(own, sorted(set(rounded_values(own).values())), few)
                    for method in METHODS:
                        for kept in ("none", "Add", "Conv first", "Gemm"):
                            if kept != "none" and (method != "least error" or images != options.shown[-1]):
                                continue
                            job = {"job": "ablation", "network": network, "ratio": ratio, "equalised": equal,
                                   "images": images, "method": method, "kept": kept}  # fmt: skip

                            def work(
                                own=own, spreads=spreads, method=method, kept=kept, reference=reference
                            ) -> dict[str, Any]:  # type: ignore[no-untyped-def]
                                copy = own.clone()
                                grids = {name: METHODS[method](one) for name, one in spreads.items()}
                                round_model(copy, grids, kept_units(own, kept))
                                found = outputs(copy, tested)
                                return {
                                    "divergence": divergence(reference, found),
                                    "agreement": agreement(reference, found),
                                }

                            record(options.out / "ablation.jsonl", job, work)


def kept_units(model: ir.Model, kept: str) -> list[str]:
    units = find_units(model)
    if kept == "Conv first":
        return [next(unit.name for unit in units if unit.node.op_type == "Conv")]
    return [unit.name for unit in units if unit.node.op_type == kept]


def outputs(model: ir.Model, batches: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    names = [value.name or "" for value in model.graph.outputs]
    tap = Tap(model, [model.graph.inputs[0].name or ""], names)
    parts = [tap({tap.inputs[0]: batch}) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def accuracy(file: Path, images: ImageSet) -> float:
    """Top-1 in percent."""
    model = ir.load(file)
    found = outputs(model, list(images.batches(100)))
    assert images.labels is not None
    return 100 * float((next(iter(found.values())).argmax(axis=1) == images.labels).mean())


def run_latency(options: argparse.Namespace) -> None:
    """All forms of a network side by side, one thread."""
    from trp_export import bench

    for network in options.networks:
        path = latency_file(options, network)
        if not path.exists():
            files = made_files(options, network)
            bench.save(bench.compare(files, device=options.device, threads=1, budget_s=options.budget), path)
        result = bench.load(path)
        print(f"{network}: {result.environment.cpu}, onnxruntime {result.environment.onnxruntime}")
        alone = next(one for one in result.measurements if one.model == f"{network}-1-int8.onnx")
        for one in result.measurements:
            against = bench.ratio(result.measurements[0], one), bench.ratio(alone, one)
            print(f"| {one.model} | {bench.summary(one).median / 1e6:.4g} | {against[0]} | {against[1]} |")


def latency_file(options: argparse.Namespace, network: str) -> Path:
    ratios = "-".join(f"{ratio:g}" for ratio in options.ratios)
    path: Path = options.out / f"latency-{network}-{options.device.partition(':')[0]}-{ratios}.json"
    return path


def made_files(options: argparse.Namespace, network: str) -> list[Path]:
    """The files of a network that are there, dense and at the ratios asked for; dense fp32 is the first."""
    forms = [f"{form}{cut}" for form in ("fp32", "int8") for cut in ("", *(f"-{cut}" for cut in options.cuts))]
    names = [f"{network}-{ratio:g}-{form}.onnx" for ratio in (1.0, *options.ratios) for form in forms]
    return [options.out / name for name in names if (options.out / name).exists()]


def run_counts(options: argparse.Namespace) -> None:
    """Instructions of one inference on an emulated ARM processor, file by file: nothing disturbs them."""
    from trp_export import bench

    device = arm_device(options)
    for network in options.networks:
        for file in made_files(options, network):

            def work(file: Path = file) -> dict[str, Any]:
                (one,) = (result := bench.compare([file], device=device, budget_s=options.budget)).measurements
                assert one.deviation is not None
                counted = {"instructions": int(bench.summary(one).median), **one.counts}
                off = {"apart": one.deviation.relative_l2, "onnxruntime": result.environment.onnxruntime}
                return {"cpu": result.environment.cpu, **counted, **off}

            record(options.out / "counts.jsonl", {"file": file.name, "device": device}, work)


def run_answers(options: argparse.Namespace) -> None:
    """Outputs on 128 calibration images, kept; those of several CPUs are compared with the float model's."""
    images = load_images(calibration_file(options), IMAGENET).batch(0, 128)
    for network in options.networks:
        for ratio in (1.0, *options.ratios):
            float_file, file = (options.out / f"{network}-{ratio:g}-{form}.onnx" for form in ("fp32", "int8"))
            kept = file.with_suffix(f".{options.cpu}.npz")
            if not kept.exists():
                np.savez(kept, **outputs(ir.load(file), [images]))
            reference = outputs(ir.load(float_file), [images])
            for one in sorted(options.out.glob(f"{file.stem}.*.npz")):
                found = dict(np.load(one))
                agree = f"divergence {divergence(reference, found):.2g}, same class {agreement(reference, found):.4f}"
                print(f"{one.stem}: {agree}")


def calibration_file(options: argparse.Namespace) -> Path:
    """1,024 images out of the training shards 1 to 4, without their labels."""
    path: Path = options.out / "calibration.npz"
    if not path.exists():
        shards = [
            load_images(options.data / f"train_{index}.npz", count=IMAGES // 4, seed=0).pixels for index in range(1, 5)
        ]
        np.savez(path, images=np.concatenate([np.asarray(shard) for shard in shards]))
    return path


def calibration_batches(options: argparse.Namespace) -> list[np.ndarray]:
    return list(load_images(calibration_file(options), IMAGENET).batches(BATCH))


def record(path: Path, job: dict[str, Any], work: Callable[[], Mapping[str, Any]]) -> None:
    if missing(path, [job]):
        append(path, {**job, **work()})


def arm_device(options: argparse.Namespace) -> str:
    return options.device if options.device.startswith("arm") else "arm"


def print_tables(options: argparse.Namespace) -> None:
    """All that is there as Markdown."""
    print_accuracy(options)
    for network in options.networks:
        print_forms(options, network)
    print_ablation(options)


def print_accuracy(options: argparse.Namespace) -> None:
    lines = [line for line in read(options.out / "accuracy.jsonl") if line["test"] == options.test]
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


def print_forms(options: argparse.Namespace, network: str) -> None:
    """Every form: size, time here, ARM instructions, time in WebAssembly; ratios are over the dense fp32 network."""
    here, web = (read_latencies(options.out, network, device) for device in ("local", "web"))
    counts = {
        line["file"]: line["instructions"]
        for line in read(options.out / "counts.jsonl")
        if line["device"] == arm_device(options)
    }
    files = made_files(options, network)
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


def print_ablation(options: argparse.Namespace) -> None:
    """A thousand times the divergence; what a way to choose is worth shows in a row."""
    lines = read(options.out / "ablation.jsonl")
    ratios = list(dict.fromkeys(line["ratio"] for line in lines))
    own: dict[tuple[Any, ...], dict[float, str]] = {}
    for line in lines:
        way = line["network"], line["equalised"], line["images"], line["method"], line["kept"]
        own.setdefault(way, {})[line["ratio"]] = f"{1e3 * line['divergence']:.2f}"
    heads = "network", "equalised", "images", "grids by", "in float", *(f"{ratio:g}x" for ratio in ratios)
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for way, found in own.items():
        print("| " + " | ".join([*map(str, way), *(found.get(ratio, "") for ratio in ratios)]) + " |")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=["accuracy", "ablation", "latency", "counts", "answers", "tables"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    parser.add_argument("--test", default="train_5.npz", help="test_half.npz is looked at in the end")
    parser.add_argument("--networks", nargs="+", default=list(CHECKPOINTS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[1.5, 2.0, 3.0])
    parser.add_argument("--cuts", nargs="+", default=["blind", "chosen"], help="of resnet18; planned is another")
    parser.add_argument("--forms", nargs="+", default=["fp32", "int8", "int8 first"], help="fp16 is another")
    parser.add_argument("--shown", nargs="+", type=int, default=[64, 256, 768], help="images that show ranges")
    parser.add_argument("--cpu", default="own", help="what the answers are kept as")
    parser.add_argument("--device", default="local")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of a latency comparison")
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
