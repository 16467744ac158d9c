"""Damages files at random and reads each with the reader of its kind: a program for test_fuzz_readers.py to watch.

    python tests/support/fuzz_readers.py KIND SECONDS FOLDER

FOLDER gets a sound file, which is damaged until the time is over. Prints a line of JSON: how many files were read, how
many were accepted, with how many different messages the others were refused, and what else was raised. Damage is the
same in every run; only the number of files depends on the time.
"""

from __future__ import annotations

import io
import json
import re
import resource
import sys
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzz import damage_bytes, damage_onnx, damage_text, walk

from trp_export.errors import TrpError

MEMORY_BYTES = 8 * 2**30
LONGEST_S = 20
MOST_CRASHES = 5
Damage = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name, what makes a sound one, what reads it, and how it is damaged."""

    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    damage: Damage = damage_bytes


def main() -> None:
    name, seconds, place = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    kind = KINDS[name]
    kind.make(place / kind.file)
    sound = (place / kind.file).read_bytes()
    kind.read(place / kind.file)
    refusals, crashes, accepted, runs = Counter[str](), [], 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(crashes) < MOST_CRASHES:
        (place / kind.file).write_bytes(kind.damage(sound, np.random.default_rng(runs)))
        started = time.process_time()
        try:
            kind.read(place / kind.file)
            accepted += 1
        except TrpError as error:
            refusals[_without_details(f"{type(error).__name__}: {error}")] += 1
        except Exception:
            crashes.append(f"{runs}: {traceback.format_exc()[-1500:]}")
        if time.process_time() - started > LONGEST_S:
            crashes.append(f"{runs}: computed for {time.process_time() - started:.0f} s")
        runs += 1
    print(json.dumps({"runs": runs, "accepted": accepted, "messages": len(refusals), "crashes": crashes}))


def _without_details(message: str) -> str:
    """Two messages are one where only names in quotes or numbers differ."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\S*/\S*|[\d.,]+", "_", message)[:100]


# --- damage


def damage_archive(sound: bytes, rng: np.random.Generator) -> bytes:
    """A zip archive of which one member is damaged, or all of its bytes."""
    if rng.random() < 0.3:
        return damage_bytes(sound, rng)
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = sorted(members)[rng.integers(len(members))]
    choice = rng.integers(4)
    if choice == 0:
        del members[name]
    elif choice == 1 and name.endswith(".npy"):
        members[name] = odd_array(members[name], rng)
    else:
        members[name] = damage_bytes(members[name], rng) if members[name] else b"x"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


def odd_array(sound: bytes, rng: np.random.Generator) -> bytes:
    """An array with odd values, or of another type or shape."""
    array = np.load(io.BytesIO(sound), allow_pickle=False)
    types = ("f2", "f4", "f8", "i8", "u1", "?", "c16", "U3", "S2", "M8[D]", "i4, f8")
    choice = rng.integers(4)
    if choice == 0:
        array = np.zeros(array.shape, np.dtype(types[rng.integers(len(types))]))
    elif choice == 1 and array.dtype.kind == "f":
        array = np.full(array.shape, rng.choice([np.nan, np.inf, -1.0, 0.0, 1e300, 1e-320]))
    elif choice == 2:
        array = array[None] if rng.random() < 0.5 else array.reshape(-1)
    else:
        array = array[..., : int(rng.integers(0, array.shape[-1] + 1))] if array.ndim else np.array(-1)
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def damage_npy(sound: bytes, rng: np.random.Generator) -> bytes:
    return odd_array(sound, rng) if rng.random() < 0.3 else damage_bytes(sound, rng)


def damage_torch(sound: bytes, rng: np.random.Generator) -> bytes:
    """A value of the content replaced, or bytes damaged."""
    import torch

    if rng.random() < 0.5:
        return damage_archive(sound, rng)
    content = torch.load(io.BytesIO(sound), weights_only=True)
    places = list(walk(content))
    holder, key = places[rng.integers(len(places))]
    odd = (None, -1, 10**30, float("nan"), "x", [], {}, b"x", torch.zeros(3), torch.zeros(0), 1 + 2j, True, [None])
    holder[key] = odd[rng.integers(len(odd))]
    written = io.BytesIO()
    torch.save(content, written)
    return written.getvalue()


def damage_toml(sound: bytes, rng: np.random.Generator) -> bytes:
    """A line replaced by another value, or bytes damaged."""
    if rng.random() < 0.4:
        return damage_bytes(sound, rng)
    lines = sound.decode().splitlines()
    odd = (
        "[1, 2]",
        "{a = 1}",
        "1e999",
        "nan",
        "-1",
        '""',
        "2020-01-01",
        "true",
        "9" * 400,
        '"\\u001b[2J"',
        "[[[]]]",
        "0x1",
    )
    index = int(rng.integers(len(lines)))
    lines[index] = f"{lines[index].partition('=')[0]}= {odd[rng.integers(len(odd))]}"
    return "\n".join(lines).encode()


# --- sound files, and what reads them


def _make_onnx(path: Path) -> None:
    from models import build, save

    save(build(), path)


def _read_onnx(path: Path) -> object:
    from trp_export.load import load
    from trp_export.network import normal_form
    from trp_export.options import LoadOptions

    return normal_form(load(path, LoadOptions()))


def _make_weights(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    state = {"conv.weight": torch.ones(2, 3, 1, 1), "conv.bias": torch.zeros(2), "count": torch.tensor(3)}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=path.stem != "legacy")


def _read_weights(path: Path) -> object:
    from trp_export.load.torch_file import read_torch_file

    return read_torch_file(path)


def _make_checkpoint(path: Path) -> None:
    import torch

    from trp_export.load.checkpoint import FORMAT

    torch.save(
        {
            "format": FORMAT,
            "version": 1,
            "arch": "resnet20",
            "state_dict": {"a.weight": torch.ones(2, 3)},
            "kind": "dense",
            "input_shape": [1, 3, 32, 32],
            "mean": [0.5],
            "std": [0.5],
            "classes": ["a", "b"],
        },
        path,
    )


def _read_checkpoint(path: Path) -> object:
    from trp_export.load.checkpoint import parse_checkpoint

    content = _read_weights(path)
    return parse_checkpoint(content, path, None) if isinstance(content, dict) else None


def _make_arrays(path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    if path.suffix == ".npy":
        np.save(path, images)
    else:
        np.savez(path, images=images, labels=np.arange(3))


def _read_images(path: Path) -> object:
    from trp_export.inputs.images import load_images

    images = load_images(path)
    return images.batch(0, len(images))


def _make_picture(path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path)


def _read_picture(path: Path) -> object:
    from trp_export.inputs.pictures import picture_size, read_picture

    picture_size(path)
    return np.asarray(read_picture(path))


def _make_moments(path: Path) -> None:
    from trp_export.calibration.moments import MomentSums, save_moments

    sums = MomentSums(np.zeros((1, 3)))
    sums.add(np.random.default_rng(0).standard_normal((1, 4, 5, 3)).astype(np.float32))
    save_moments(path, {"conv": sums.moments()})


def _read_moments(path: Path) -> object:
    from trp_export.calibration.moments import calibration_remarks, load_moments, merge_moments

    moments = load_moments(path)
    merge_moments([moments, moments])
    return calibration_remarks(moments)


def _make_plan(path: Path) -> None:
    from test_fuzz import PLAN

    path.write_text(json.dumps(PLAN))


def _read_plan(path: Path) -> object:
    from trp_export.planning.saved_plan import read_plan

    return read_plan(path)


def _make_table(path: Path) -> None:
    from trp_export.latency.table import Conditions, save_costs

    conditions = Conditions("local", "cpu", "x86_64", 2, (0,), 1, "CPUExecutionProvider", "1.30", "ms")
    save_costs(path, conditions, {"conv 3 16": [0.5, 0.6], "fc": [1.0]})


def _read_table(path: Path) -> object:
    from trp_export.latency.table import load_costs

    return load_costs(path)


def _make_samples(path: Path) -> None:
    from reports import make_comparison

    from trp_export.bench.saved import save

    save(make_comparison(1.5), path)


def _read_samples(path: Path) -> object:
    from trp_export.bench.saved import load, to_json

    return to_json(load(path))


def _make_manifest(path: Path) -> None:
    from bundles import manifest

    path.write_bytes(manifest().to_bytes())


def _read_manifest(path: Path) -> object:
    from trp_export.ship.manifest import parse_manifest

    return parse_manifest(path.read_bytes())


def _make_config(path: Path) -> None:
    path.write_text(
        'arch = "resnet20"\ndata = "npz:data"\nepochs = 3\nlr = 0.1\nenergy = 0.9\nonly = ["a*"]\nseed = 1\n'
    )


def _read_config(path: Path) -> object:
    from training.cli import _options
    from training.cli import _read_config as read

    return _options({"output": Path("run"), **read(path)})


def _make_reply(path: Path) -> None:
    path.write_bytes(json.dumps({"samples": [5, 6], "peak_bytes": 7}).encode())


def _read_reply(path: Path) -> object:
    from trp_export.bench.devices.replies import read_reply, read_turn

    return read_turn(read_reply(path.read_bytes(), "the board"), 2, "the board")


def _make_boxes(path: Path) -> None:
    path.write_text(json.dumps({"a.png": [[0, 1, 2, 3, 4]], "b.png": [[1, 0, 0, 5, 5], [0, 1, 1, 2, 2]]}))


def _read_boxes(path: Path) -> object:
    from trp_export.metrics.detections import read_boxes

    return read_boxes(path, ["a.png", "b.png"])


def _make_coco(path: Path) -> None:
    images = [{"id": number, "file_name": name} for number, name in enumerate(("a.png", "b.png"))]
    box = {"image_id": 0, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 0}
    path.write_text(json.dumps({"images": images, "annotations": [box], "categories": [{"id": 3}, {"id": 7}]}))


def _make_labels(path: Path) -> None:
    path.write_text('image,label\na.png,cat\n"b.png","a dog"\n')


def _read_labels(path: Path) -> object:
    from trp_export.metrics.label_files import by_image, read_rows, texts_of

    return by_image(path, read_rows(path), ["a.png", "b.png"]), texts_of(path, ["a.png"])


def _make_alphabet(path: Path) -> None:
    path.write_text("a\nb\n\u00e9\n")


def _read_alphabet(path: Path) -> object:
    from trp_export.metrics.sequences import read_alphabet

    return read_alphabet(path)


def _make_last(path: Path) -> None:
    """The state of a run that has not begun."""
    import torch

    from models_zoo import find_architecture
    from training.last_state import LastState
    from training.options import TrainOptions
    from training.run_folder import stored_options
    from training.start_options import StartOptions

    options = TrainOptions(data="npz:data", output=Path("run"), start=StartOptions(arch="resnet20"))
    weights = find_architecture("resnet20").build(None).state_dict()
    stored, digests = stored_options(options), {"--data": "0" * 64}
    state = LastState(stored, digests, "dense", None, 0, 0, 0.0, weights, {}, method=None, average=None, history=[])
    torch.save(state.to_content(), path)


def _read_last(path: Path) -> object:
    from training.last_state import read_last_state

    return read_last_state(path.parent)


KINDS = {
    "onnx": Kind("sound.onnx", _make_onnx, _read_onnx, damage_onnx),
    "pt": Kind("sound.pt", _make_weights, _read_weights, damage_torch),
    "legacy": Kind("legacy.pt", _make_weights, _read_weights),
    "safetensors": Kind("sound.safetensors", _make_weights, _read_weights),
    "checkpoint": Kind("sound.pt", _make_checkpoint, _read_checkpoint, damage_torch),
    "npz": Kind("sound.npz", _make_arrays, _read_images, damage_archive),
    "npy": Kind("sound.npy", _make_arrays, _read_images, damage_npy),
    "moments": Kind("sound.npz", _make_moments, _read_moments, damage_archive),
    **{
        ending: Kind(f"sound.{ending}", _make_picture, _read_picture)
        for ending in ("png", "jpg", "gif", "bmp", "tiff", "webp")
    },
    "plan": Kind("sound.json", _make_plan, _read_plan, damage_text),
    "latency table": Kind("sound.json", _make_table, _read_table, damage_text),
    "samples": Kind("sound.json", _make_samples, _read_samples, damage_text),
    "manifest": Kind("sound.json", _make_manifest, _read_manifest, damage_text),
    "config": Kind("sound.toml", _make_config, _read_config, damage_toml),
    "reply": Kind("sound.json", _make_reply, _read_reply, damage_text),
    "boxes": Kind("sound.json", _make_boxes, _read_boxes, damage_text),
    "COCO boxes": Kind("sound.json", _make_coco, _read_boxes, damage_text),
    "labels": Kind("sound.csv", _make_labels, _read_labels),
    "alphabet": Kind("sound.txt", _make_alphabet, _read_alphabet),
    "last.pt": Kind("last.pt", _make_last, _read_last, damage_torch),
}

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    main()
