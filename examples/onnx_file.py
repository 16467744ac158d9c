"""Export an ONNX file with calibration images, measure what is lost on other images, and run the result.

python examples/onnx_file.py out/
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from models_zoo import find_architecture
from trp_export import Benchmark, Calibration, Images, Macs, Options, Preprocessing, compress

ZOO = Path(__file__).resolve().parents[1] / "models_zoo"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_onnx_file(path: Path) -> None:
    """Any ONNX file will do; this one is ResNet-20 from the checkpoint in models_zoo."""
    checkpoint = torch.load(ZOO / "weights" / "resnet20-cifar10.pt", weights_only=True)
    network = find_architecture("resnet20").build(10).eval()
    network.load_state_dict(checkpoint["state_dict"])
    batch = {0: torch.export.Dim("batch")}
    program = torch.onnx.export(
        network,
        (torch.zeros(2, 3, 32, 32),),
        input_names=["image"],
        dynamic_shapes=(batch,),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path)


def split_images(folder: Path) -> tuple[Path, Path]:
    """128 images to calibrate on, without labels, and 128 others to measure on."""
    data = np.load(ZOO / "images" / "cifar10-256.npz")
    calibration, evaluation = folder / "calibration.npz", folder / "evaluation.npz"
    np.savez(calibration, images=data["images"][:128])
    np.savez(evaluation, images=data["images"][128:], labels=data["labels"][128:])
    return calibration, evaluation


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    make_onnx_file(folder / "resnet20.onnx")
    calibration, evaluation = split_images(folder)

    report = compress(
        folder / "resnet20.onnx",
        Options(
            rule=Macs(1.5),
            calibration=Calibration(calibration),
            images=Images(evaluation),
            preprocessing=Preprocessing(mean=MEAN, std=STD),
            benchmark=Benchmark(run=False),  # True times both in fresh processes, in about 20 s
            output=folder / "small.onnx",
        ),
    )
    assert report.after is not None
    assert report.deviation is not None
    assert report.deviation.score is not None
    score = report.deviation.score
    print(f"multiply-adds: {report.before.macs:,} -> {report.after.macs:,}")
    print(f"accuracy on {score.images} images: {score.before:.1%} -> {score.after:.1%}")

    session = ort.InferenceSession(folder / "small.onnx")
    image = np.load(evaluation)["images"][:1].transpose(0, 3, 1, 2) / np.float32(255)
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    scores = session.run(None, {"image": (image - mean) / std})[0]
    print("class of the first image:", int(np.asarray(scores).argmax()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
