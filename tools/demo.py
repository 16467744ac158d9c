"""The main job on a small real model: `make demo`. Everything lands in ./demo.

The network was trained for low rank; it becomes 8-bit integers, too. Of the 256 images 64 calibrate and 192 evaluate.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "demo"
MODEL = "models_zoo/weights/vgg8-factors-2.5x.pt"
IMAGES = ROOT / "models_zoo" / "images" / "cifar10-256.npz"
CALIBRATION = 64


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    split_images()
    command = Path(sys.executable).with_name("trp-export")
    arguments = [
        MODEL,
        *("--precision", "int8"),
        *("--calib", "demo/photos.npz"),
        *("--eval", "demo/labelled.npz"),
        *("-o", "demo/vgg8.onnx"),
        *("--report", "demo/vgg8.html"),
    ]
    print("$", shlex.join(["trp-export", *arguments]), flush=True)
    return subprocess.run([str(command), *arguments], cwd=ROOT).returncode


def split_images() -> None:
    """Some images without labels to calibrate on, and the others to evaluate on."""
    with np.load(IMAGES) as data:
        images, labels = data["images"], data["labels"]
    np.savez(FOLDER / "photos.npz", images=images[:CALIBRATION])
    np.savez(FOLDER / "labelled.npz", images=images[CALIBRATION:], labels=labels[CALIBRATION:])


if __name__ == "__main__":
    sys.exit(main())
