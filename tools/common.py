"""What the scripts of the results share: the networks, their preprocessing, accuracy, and files of results.

A file of results has a line of JSON for each result, written as soon as it is known, so that a second call continues
where the first one ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from trp_export.inputs.images import ImageSet, Preprocessing

CIFAR_RESNETS = ("resnet20", "resnet32")
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def accuracy(model: Path, images: ImageSet) -> float:
    """Top-1 of an ONNX file of one input, in percent."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    logits = np.concatenate([session.run(None, {name: batch})[0] for batch in images.batches(100)])
    return 100 * float((logits.argmax(axis=1) == images.labels).mean())


def draw_images(folder: Path, count: int, seed: int) -> np.ndarray:
    """`count` images (N, 32, 32, 3) of the training files 1 to 4, in their order, without labels."""
    random = np.random.default_rng(seed)
    parts = []
    for shard in range(1, 5):
        with np.load(folder / f"train_{shard}.npz") as file:
            images = file["images"]
        parts.append(images[np.sort(random.choice(len(images), count // 4, replace=False))])
    return np.concatenate(parts)


def silent(step: str, share: float) -> None:
    """Progress that prints nothing."""


def read(path: Path) -> list[dict[str, Any]]:
    """All results of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def missing(path: Path, jobs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The jobs without a result in the file."""
    done = read(path)
    return [dict(job) for job in jobs if not any(line.items() >= job.items() for line in done)]


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a result to the file, and print it without its layers."""
    print({name: value for name, value in line.items() if name != "layers"}, flush=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
