"""The main job on a small real model: `make demo`. Everything lands in ./demo."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = "models_zoo/weights/resnet20-trp-spatial-2.84x.pt"
IMAGES = "models_zoo/images/cifar10-256.npz"


def main() -> int:
    (ROOT / "demo").mkdir(exist_ok=True)
    command = Path(sys.executable).with_name("trp-export")
    arguments = [
        MODEL,
        "--eval",
        IMAGES,
        "-o",
        "demo/resnet20.onnx",
        "--report",
        "demo/resnet20.html",
    ]
    print("$", shlex.join(["trp-export", *arguments]), flush=True)
    return subprocess.run([str(command), *arguments], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
