"""Sound files of every kind, made once; attempts copy and damage them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from attempt import Call, run
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

EXPORT = ("--rank", "2", "--calib", "none", "--no-bench", "--quiet")
PLAN = {
    "format": "trp-plan",
    "version": 1,
    "rule": "by hand",
    "layers": [
        {"name": "conv1", "scheme": "spatial-wise", "rank": 2, "reason": "as an example"},
        {"name": "fc", "scheme": None, "rank": None, "reason": "kept"},
    ],
}
# Of another device, so that nothing is measured with it.
TABLE = {
    "format": "trp-latency",
    "version": 2,
    "conditions": {
        "device": "local",
        "cpu": "another",
        "machine": "x86_64",
        "logical_cores": 2,
        "cores": [0],
        "threads": 1,
        "provider": "CPUExecutionProvider",
        "onnxruntime": "1.20",
        "unit": "ms",
        "precision": "fp32",
        "build": "",
        "features": "",
    },
    "costs": {"conv 3 16": [0.5, 0.6]},
}


@dataclass(frozen=True, slots=True)
class Kit:
    """A folder of sound files; `copy` brings some of them into the folder of an attempt."""

    folder: Path

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def copy(self, folder: Path, *names: str) -> None:
        for name in names:
            source = self.folder / name
            if source.is_dir():
                shutil.copytree(source, folder / name, symlinks=True)
            else:
                shutil.copyfile(source, folder / name)

    def copy_beside_old_outputs(self, folder: Path) -> None:
        """A model and its images, and the outputs of an earlier export, each of which holds its own name."""
        self.copy(folder, "base.onnx", "good.npz")
        for name in ("o.onnx", "o.json", "r.html"):
            (folder / name).write_text(f"old {name}")


def make_kit(folder: Path) -> Kit:
    folder.mkdir()
    kit = Kit(folder)
    onnx.save(network(), kit["base.onnx"])
    onnx.save(network(), kit["apart.onnx"], save_as_external_data=True, location="apart.data", size_threshold=0)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 12, 12, 3), dtype=np.uint8)
    np.savez(kit["good.npz"], images=pixels)
    np.savez(kit["labelled.npz"], images=pixels, labels=rng.integers(0, 10, 12))
    np.save(kit["good.npy"], pixels)
    np.savez(kit["input.npz"], image=rng.standard_normal((2, 3, 12, 12)).astype(np.float32))
    kit["images"].mkdir()
    for index, image in enumerate(pixels[:8]):
        Image.fromarray(image).save(kit["images"] / f"{index}.png")
    kit["plan.json"].write_text(json.dumps(PLAN))
    kit["table.json"].write_text(json.dumps(TABLE))
    _torch_files(kit)
    _data(kit)
    for call in _made_by_commands():
        make(call, kit)
    return kit


def in_turn(*steps: Callable[[Path], object]) -> Callable[[Path], None]:
    """All of these with one path, one after the other."""

    def take_all(path: Path) -> None:
        for step in steps:
            step(path)

    return take_all


def network(names: tuple[str, str, str] = ("conv1", "conv2", "fc")) -> onnx.ModelProto:
    """Two convs and a Gemm for images of 3x12x12, random weights; layers are named after their weights."""
    rng = np.random.default_rng(0)
    shapes = ((16, 3, 3, 3), (16, 16, 3, 3), (10, 16))
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"{name}.weight")
        for name, shape in zip(names, shapes, strict=True)
    ]
    first, second, last = (weight.name for weight in weights)
    nodes = [
        helper.make_node("Conv", ["image", first], ["a"], name=names[0], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", second], ["c"], name=names[1], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", last], ["logits"], name=names[2], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _torch_files(kit: Kit) -> None:
    from safetensors.torch import save_file

    from models_zoo import find_architecture

    torch.manual_seed(0)
    state = find_architecture("resnet20").build(None).state_dict()
    torch.save(state, kit["state.pt"])
    torch.save(state, kit["legacy.pt"], _use_new_zipfile_serialization=False)
    save_file(state, kit["state.safetensors"])
    checkpoint = {
        "format": "trp-checkpoint",
        "version": 1,
        "arch": "resnet20",
        "state_dict": state,
        "kind": "dense",
        "input_shape": [1, 3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "classes": ["cat", "dog"],
    }
    torch.save(checkpoint, kit["checkpoint.pt"])


def _data(kit: Kit) -> None:
    kit["data"].mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", 64), ("test", 32)):
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(kit["data"] / f"{name}.npz", images=images, labels=rng.integers(0, 10, count))


TRAIN = ("--arch", "resnet20", "--data", "npz:data", "--batch", "32", "--validation", "16", "--epochs", "1")


def _made_by_commands() -> Iterator[Call]:
    yield Call("trp-export", ["base.onnx", *EXPORT, "-o", "small.onnx", "--report", "report.html"])
    yield Call(
        "trp-export", ["base.onnx", *EXPORT, "--calib", "good.npz", "--calib-stats", "moments.npz", "-o", "c.onnx"]
    )
    yield Call("trp-export", ["base.onnx", *EXPORT, "--bundle", "bundle"])
    yield Call("trp-bench", ["base.onnx", "--budget", "1", "--processes", "2", "--save", "samples.json"])
    yield Call("trp-train", [*TRAIN, "-o", "run"])


def make(call: Call, kit: Kit) -> None:
    """Run a command in the kit's own folder, to add what it writes."""
    place = kit.folder / "making"
    for name in ("home", "tmp"):
        (place / name).mkdir(parents=True, exist_ok=True)
    (place / "work").unlink(missing_ok=True)
    (place / "work").symlink_to(kit.folder)
    ended = run(call, place)
    if ended.code not in (call.codes or (0,)):
        sys.exit(f"the kit cannot be made: {call.program} ended with {ended.code}: {ended.err}")
