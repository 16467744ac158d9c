"""Tricks of many kinds: weights in archives, configurations, labels, options, names, files exchanged during a run."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from attempt import Attempt, Call, Ended
from kit import EXPORT, TRAIN, Kit, network
from onnx import TensorProto, helper, numpy_helper

Make = Callable[[Path], object]
# Options of the other commands that take a number, and what else each command needs, in pairs.
OTHERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "trp-bench": (
        ("--threads", "--cores", "--batch", "--budget", "--processes", "--timeout"),
        ("--budget", "0.1", "--processes", "1"),
    ),
    "trp-train": (
        (
            *("--epochs", "--batch", "--lr", "--momentum", "--weight-decay", "--ema", "--label-smoothing"),
            *("--accumulate", "--period", "--exact-every", "--factors", "--seed", "--validation", "--states"),
            *("--workers", "--macs", "--energy", "--nuclear", "--temperature"),
        ),
        (*TRAIN, "-o", "new"),
    ),
    "trp-search": (
        ("--macs", "--epochs", "--count", "--seed", "--lr", "--batch"),
        ("--data", "good.npz", "--macs", "1.5", "--epochs", "1", "-o", "s.json"),
    ),
}
FRACTIONS = {
    *("--budget", "--timeout", "--lr", "--momentum", "--weight-decay", "--ema", "--label-smoothing", "--macs"),
    *("--energy", "--nuclear", "--temperature"),
}
STATE = ("--arch", "resnet20", "--shape", "1,5,32,32", "--rank", "2", "--calib", "none", "--dry-run", "--quiet")
SECRET = "alicebobson" * 40


def attempts(kit: Kit) -> Iterator[Attempt]:
    """The whole family."""
    groups = (_weights(kit), _configurations(kit), _stored_names(kit), _labels(kit), _options(kit), _graphs(kit))
    for group in (*groups, _channels(kit), _names(kit), _races(kit)):
        for name, prepare in group:
            yield Attempt("tricks", name, prepare)


# --- weights


def _weights(kit: Kit) -> Iterator[tuple[str, Callable[[Path], Call]]]:
    archives: dict[str, Make] = {
        "whose members are packed zeros": partial(_packed, kit),
        "with a member outside": partial(_with_member, kit, "../../evil.pkl"),
        "with an absolute member": partial(_with_member, kit, "/tmp/evil.pkl"),
        "with two pickles": partial(_with_member, kit, "archive/data.pkl"),
        "with 100,000 members": lambda path: _zip(path, {f"archive/data/{i}": b"" for i in range(100_000)}),
        "that claims to be TorchScript": partial(_with_member, kit, "archive/code/__torch__.py"),
    }
    archives |= {f"with {name}": partial(_saved, kit, edit) for name, edit in _tensors().items()}
    for name, make in archives.items():
        yield f"state.pt {name}", partial(_read, "state.pt", make, ("trp-export", ["state.pt", *STATE]))
    for name, content in _safetensors().items():
        read = ("trp-export", ["s.safetensors", *STATE])
        yield f"safetensors with {name}", partial(_read, "s.safetensors", partial(_write, content), read)


def _read(name: str, make: Make, command: tuple[str, list[str]], folder: Path) -> Call:
    make(folder / name)
    return Call(command[0], command[1], codes=(0, 2, 3, 4))


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _packed(kit: Kit, path: Path) -> None:
    """The same weights, but each member is a gigabyte of zeros that is packed to a megabyte."""
    with zipfile.ZipFile(kit["state.pt"]) as sound, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sound.namelist()[:8]:
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(sound.read(name))
                if "/data/" in name:
                    for _ in range(200):
                        file.write(bytes(10**6))


def _tensors() -> dict[str, Callable[[dict[str, Any]], object]]:
    """Weights that claim far more numbers than the file holds, or are no ordinary numbers."""
    large = torch.zeros(1).expand(2**20, 2**20, 1, 1)
    return {
        "one number for 2^40": lambda state: state.update({"conv1.weight": large}),
        "an unknown weight of 2^40": lambda state: state.update({"more.weight": large}),
        "one number for each weight": lambda state: state.update({
            name: tensor.reshape(-1)[:1].expand(tensor.shape) if tensor.dim() else tensor
            for name, tensor in state.items()
        }),
        "a bias of 2^40": lambda state: state.update({"fc.bias": torch.zeros(1).expand(2**40)}),
        "weights of bfloat16": lambda state: state.update({"conv1.weight": state["conv1.weight"].bfloat16()}),
        "weights of float8": lambda state: state.update({"conv1.weight": state["conv1.weight"].to(torch.float8_e5m2)}),
        "weights of no axes": lambda state: state.update({"conv1.weight": torch.tensor(1.0)}),
        "negative strides of nothing": lambda state: state.update({"conv1.weight": torch.empty(0, 3, 3, 3)}),
        "60 levels of lists": lambda state: state.update({"x": _nested(60)}),
        "itself": lambda state: state.update({"x": state}),
    }  # fmt: skip


def _nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def _saved(kit: Kit, edit: Callable[[dict[str, Any]], object], path: Path) -> None:
    state = dict(torch.load(kit["state.pt"], weights_only=True))
    edit(state)
    torch.save(state, path)


def _with_member(kit: Kit, name: str, path: Path) -> None:
    import warnings

    path.write_bytes(kit["state.pt"].read_bytes())
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(name.replace("archive", root), b"\x80\x02cos\nsystem\nX\x05\x00\x00\x00touchq\x00\x85R.")


def _safetensors() -> dict[str, bytes]:
    def file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
        text = json.dumps(header).encode() if not isinstance(header, bytes) else header
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}

    return {
        "a header of 2^63 bytes": file({}, length=2**63),
        "a header of 100 MB": file({"__metadata__": {"x": "y" * 10**8}}),
        "overlapping tensors": file({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
        "offsets beyond its end": file({"a": tensor([2], 0, 8)}, bytes(4)),
        "offsets backwards": file({"a": tensor([2], 8, 0)}, bytes(8)),
        "a shape of 2^64": file({"a": tensor([2**32, 2**32], 0, 0)}),
        "negative sizes": file({"a": tensor([-2], 0, 8)}, bytes(8)),
        "an unknown type": file({"a": tensor([2], 0, 8, "X\x1b[2J")}, bytes(8)),
        "a name twice": file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":1}', bytes(4)),
        "deep lists": file(b"[" * 10**5),
        "200,000 tensors": file({f"t{i}": tensor([0], 0, 0) for i in range(200_000)}),
        "names that are no text": file(b'{"\xff\xfe": 1}'),
    }


# --- configurations of trp-train


def _configurations(kit: Kit) -> Iterator[tuple[str, Callable[[Path], Call]]]:
    texts: dict[str, bytes] = {
        "an architecture to import": b'arch = "os:system"\n',
        "an architecture in this folder": b'arch = "evil_net:make"\n',
        "data by a command": b'data = "webdataset:pipe:touch PWNED"\nepoch-images = 64\n',
        "a teacher to import": b'teacher = "data/train.npz"\nteacher-arch = "evil_net:make"\n',
        "an option twice": b"epochs = 1\nepochs = 2\n",
        "a table for a number": b"[epochs]\na = 1\n",
        "dotted names": b"epochs.a.b.c = 1\n",
        "deep lists": b"only = " + b"[" * 50_000,
        "deep tables": b"a" + b".a" * 5_000 + b" = 1\n",
        "a number of 100,000 digits": b"epochs = " + b"9" * 10**5,
        "infinity": b"lr = inf\n",
        "no number": b"lr = nan\n",
        "a date": b"epochs = 2020-01-01\n",
        "a byte order mark": b"\xef\xbb\xbfepochs = 1\n",
        "UTF-16": "epochs = 1".encode("utf-16"),
        "a null": b"epochs = 1\0\n",
        "an escape": b'arch = "\\u001b]0;X\\u0007"\n',
        "a text of 50 MB": b'arch = "' + b"x" * 5 * 10**7 + b'"\n',
        "many patterns": b'only = ["' + b'", "'.join([b"*a" * 200 + b"b"] * 1000) + b'"]\n',
        "a batch of 0": b"batch = 0\n",
        "a batch of 10^15": b"batch = 1000000000000000\n",
        "a device to import": b'device = "os:system"\n',
        "TensorBoard": b"tensorboard = 1\n",
        "another configuration": b'config = "c.toml"\n',
        "resume": b"resume = true\n",
    }
    for name, text in texts.items():
        yield f"a configuration with {name}", partial(_configured, kit, text)
    yield "a configuration that repeats what last.pt imports", partial(_repeated, kit)


def _configured(kit: Kit, text: bytes, folder: Path) -> Call:
    kit.copy(folder, "data")
    (folder / "c.toml").write_bytes(text)
    _write_evil(folder)
    lines = text.decode(errors="replace")
    given = [part for pair in zip(TRAIN[::2], TRAIN[1::2], strict=True) if pair[0][2:] not in lines for part in pair]
    return Call(
        "trp-train", ["--config", "c.toml", *given, "-o", "run"], codes=(0, 2, 3), check=_not_run, writes=("run/*",)
    )


def _repeated(kit: Kit, folder: Path) -> Call:
    """Two files from somebody else name the same code; the command line does not."""
    kit.copy(folder, "run", "data")
    _write_evil(folder)
    (folder / "c.toml").write_text('arch = "evil_net:make"\n')
    content = torch.load(kit["run/last.pt"], weights_only=True)
    content["options"]["arch"] = "evil_net:make"
    torch.save(content, folder / "run" / "last.pt")
    arguments = ["--resume", "--config", "c.toml", "-o", "run"]
    return Call("trp-train", arguments, codes=(2, 3), writes=("run/*",), check=_not_run)


def _write_evil(folder: Path) -> None:
    (folder / "evil_net.py").write_text("open('PWNED', 'w').write('x')\ndef make(*a, **options): ...\n")


def _not_run(ended: Ended) -> str | None:
    return "code was run" if (ended.folder / "PWNED").exists() else None


# --- names of functions in documents


def _stored_names(kit: Kit) -> Iterator[tuple[str, Callable[[Path], Call]]]:
    for key in torch.load(kit["run/last.pt"], weights_only=True)["options"]:
        for value in ("evil_net:make", "evil_net.py:make", ["evil_net:make"], "$(touch PWNED)"):
            yield f"last.pt with {key} = {value!r}", partial(_stored, kit, key, value)
    for key in ("metric", "calib", "arch", "command", "rule", "import"):
        yield f"a plan with {key} = evil_net:make", partial(_planned, kit, key)
        yield f"a manifest with {key} = evil_net:make", partial(_manifest, kit, key)
        yield f"a checkpoint with {key} = evil_net:make", partial(_checkpoint, kit, key)


def _stored(kit: Kit, key: str, value: Any, folder: Path) -> Call:
    kit.copy(folder, "run", "data")
    _write_evil(folder)
    content = torch.load(kit["run/last.pt"], weights_only=True)
    content["options"][key] = value
    torch.save(content, folder / "run" / "last.pt")
    return Call("trp-train", ["--resume", "-o", "run"], codes=(0, 2, 3), writes=("run/*",), check=_not_run)


def _planned(kit: Kit, key: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    _write_evil(folder)
    plan = json.loads(kit["plan.json"].read_text()) | {key: "evil_net:make"}
    (folder / "p.json").write_text(json.dumps(plan))
    return Call("trp-export", ["base.onnx", "--plan", "p.json", "--dry-run"], codes=(0, 3), check=_not_run)


def _manifest(kit: Kit, key: str, folder: Path) -> Call:
    kit.copy(folder, "bundle")
    _write_evil(folder)
    manifest = json.loads(kit["bundle/manifest.json"].read_text()) | {key: "evil_net:make"}
    (folder / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    return Call("trp-bundle", ["verify", "bundle"], codes=(3,), check=_not_run)


def _checkpoint(kit: Kit, key: str, folder: Path) -> Call:
    _write_evil(folder)
    content = torch.load(kit["checkpoint.pt"], weights_only=True) | {key: "evil_net:make"}
    torch.save(content, folder / "c.pt")
    return Call("trp-export", ["c.pt", "--rank", "2", "--calib", "none", "--dry-run"], codes=(0, 2, 3), check=_not_run)


# --- labels


def _labels(kit: Kit) -> Iterator[tuple[str, Callable[[Path], Call]]]:
    files: dict[str, bytes] = {
        "labels.csv": b"0.png,1\n",
        "quotes.csv": b'"0.png,1\n' * 1000,
        "control.csv": b"".join(f"{i}.png,\x1b[2J\x1b]0;X\x07\n".encode() for i in range(8)),
        "long.csv": b"0.png," + b"1" * 10**7,
        "digits.csv": b"".join(f"{i}.png,{'9' * 5000}\n".encode() for i in range(8)),
        "negative.csv": b"".join(f"{i}.png,-1\n".encode() for i in range(8)),
        "nul.csv": b"0.png\0,1\n",
        "latin.csv": b"0.png,\xe9\n",
        "empty.csv": b"",
        "lines.csv": b"\n" * 10**6,
        "paths.csv": b"".join(f"../../{i}.png,1\n".encode() for i in range(8)),
        "boxes.json": b'{"0.png": [[0, 1, 2, 3, 4]]}',
        "deep.json": b"[" * 10**6,
        "huge.json": b'{"0.png": [[1e400, 0, 0, 1, 1]]}',
        "digits.json": b'{"0.png": [[' + b"9" * 10**5 + b", 0, 0, 1, 1]]}",
        "coco.json": b'{"images": 1, "annotations": [], "categories": {}}',
        "coco2.json": b'{"images": [{"id": 1, "file_name": "\\u001b[2J"}], "annotations": [{"image_id": 9}]}',
        "pickle.npz": b"\x80\x02cos\nsystem\n",
        "labels.npy": b"\x93NUMPY\x01\x00\xff\xff",
    }
    for name, content in files.items():
        yield f"labels {name}", partial(_labelled, kit, name, content)
    for metric in (
        "evil_net:make",
        "evil_net.py:make",
        "map:x",
        "sequences:/dev/zero",
        "sequences:absent",
        "os:system",
    ):
        codes = (0, 2, 3) if metric.startswith(("evil", "os")) else (2, 3)
        yield f"--metric {metric}", partial(_metric, kit, metric, codes)


def _labelled(kit: Kit, name: str, content: bytes, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "images")
    (folder / name).write_bytes(content)
    arguments = ["base.onnx", *EXPORT, "-o", "o.onnx", "--eval", "images", "--labels", name]
    return Call("trp-export", arguments, codes=(0, 2, 3))


def _metric(kit: Kit, metric: str, codes: tuple[int, ...], folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "images")
    arguments = ["base.onnx", *EXPORT, "-o", "o.onnx", "--eval", "images", "--metric", metric]
    return Call("trp-export", arguments, codes=codes)


# --- options


def _options(kit: Kit) -> Iterator[tuple[str, Callable[[Path], Call]]]:
    numbers = ("nan", "inf", "-inf", "-1", "0", "1e-320", "1e400", "9" * 5000, "0x10", "\u0661", "1_0", "", " ", "-0.0")
    for option in ("--rank", "--energy", "--macs", "--speedup", "--calib-count", "--seed", "--budget"):
        for number in numbers:
            extra = ("--calib", "good.npz") if option in ("--calib-count", "--seed") else ()
            yield f"{option} {number[:20]!r}", partial(_with_option, kit, option, number, extra)
    for shape in ("1,3,99999,99999", "1,3,-12,12", "1,3,0,0", ",".join(["1"] * 1000), "1,3," + "9" * 5000, "a", ","):
        yield f"--shape {shape[:20]}", partial(_with_option, kit, "--shape", shape, ("--rank", "2"))
    for pattern in ("*a" * 500 + "b", "[" * 5000, "[!a-z]" * 500, "\udcff", "?" * 10**5):
        yield f"--only {pattern[:20]!r}", partial(_with_option, kit, "--only", pattern, ("--rank", "2"))

    for (program, (options, _)), number in product(
        OTHERS.items(), ("nan", "inf", "-1", "0", "1e400", "9" * 5000, "1e9")
    ):
        for option in options:
            # A whole number of this size, where one is wanted.
            value = "1000000000" if number == "1e9" and option not in FRACTIONS else number
            yield f"{program} {option} {value[:20]}", partial(_other_option, kit, program, option, value)


def _other_option(kit: Kit, program: str, option: str, value: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz", "data")
    given = OTHERS[program][1]
    kept = [part for pair in zip(given[::2], given[1::2], strict=True) if pair[0] != option for part in pair]
    first = ["base.onnx"] if program != "trp-train" else []
    last = ["--dry-run"] if program == "trp-train" else []
    writes = ("s.json", "s.search", "s.search/*")
    return Call(program, [*first, *kept, *last, f"{option}={value}"], codes=(0, 2, 3, 4), writes=writes)


def _with_option(kit: Kit, option: str, value: str, extra: tuple[str, ...], folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz")
    rule = () if option in ("--rank", "--energy", "--macs", "--speedup") or "--rank" in extra else ("--rank", "2")
    arguments = ["base.onnx", *rule, *extra, "--dry-run", "--quiet", f"{option}={value}"]
    return Call("trp-export", arguments, codes=(0, 2, 3, 4, 6))


# --- graphs


def _graphs(kit: Kit) -> Iterator[tuple[str, Callable[[Path], Call]]]:
    edits: dict[str, Callable[[onnx.ModelProto], object]] = {
        "two functions that call one another": _mutual,
        "a Loop of 10^18 turns": partial(_loop, 10**18),
        "a Loop of -1 turns": partial(_loop, -1),
        "an attribute of 50 MB": lambda m: _attribute(m, "auto_pad", "x" * 5 * 10**7),
        "10^6 integers as pads": lambda m: _attribute(m, "pads", [1] * 10**6),
        "a text of control characters as auto_pad": lambda m: _attribute(m, "auto_pad", "\x1b[2J\x1b]0;X\x07"),
        "an operator of control characters": lambda m: setattr(m.graph.node[1], "op_type", "\x1b]0;X\x07"),
        "100,000 pieces of metadata": lambda m: [m.metadata_props.add(key=f"k{i}", value="v") for i in range(10**5)],
        "100,000 shapes of values": lambda m: [
            m.graph.value_info.append(helper.make_tensor_value_info(f"v{i}", 1, [1])) for i in range(10**5)
        ],
        "a weight twice": lambda m: m.graph.initializer.append(m.graph.initializer[0]),
        "a weight that is an input and an output": _both_ends,
        "Resize by 10^9": partial(_second, "Resize", ["", "", "s"], {"s": np.array([1, 1, 1e9, 1e9], np.float32)}),
        "Pad by 10^12": partial(_second, "Pad", ["p"], {"p": np.array([0, 0, 10**12, 0, 0, 0, 0, 0])}),
        "Pad by -5": partial(_second, "Pad", ["p"], {"p": np.array([0, 0, -500, 0, 0, 0, 0, 0])}),
        "Tile by 10^6": partial(_second, "Tile", ["r"], {"r": np.array([1, 1, 10**6, 10**6])}),
        "Expand to 10^12": partial(_second, "Expand", ["r"], {"r": np.array([1, 16, 10**12, 12])}),
        "Reshape to -2": partial(_second, "Reshape", ["r"], {"r": np.array([-2, 16])}),
        "Reshape to 2^62": partial(_second, "Reshape", ["r"], {"r": np.array([2**62, 2**62])}),
        "Gather out of range": partial(_second, "Gather", ["i"], {"i": np.array([10**12])}),
        "Upsample": partial(_second, "Upsample", ["s"], {"s": np.ones(4, np.float32)}),
        "an optimizer's operator": lambda m: setattr(m.graph.node[1], "domain", "ai.onnx.preview.training"),
        "an outer value that is absent": _subgraph,
        "an output of 10^9 names": lambda m: m.graph.node[1].output.extend(["x"] * 10**5),
        "an opset twice": lambda m: m.opset_import.append(helper.make_opsetid("", 6)),
        "IR version 0": lambda m: setattr(m, "ir_version", 0),
        "negative IR version": lambda m: setattr(m, "ir_version", -5),
        "texts as weights": _texts,
        "20,000 nodes of one name": _one_name,
        "25 Ifs in one another": partial(_nested_ifs, 25),
        "raw and typed data": lambda m: m.graph.initializer[0].float_data.extend([1.0] * 432),
        "data that are too short": lambda m: setattr(m.graph.initializer[0], "raw_data", b"xxxx"),
        "a type of 999": lambda m: setattr(m.graph.initializer[0], "data_type", 999),
        "a type of bfloat16": lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.BFLOAT16),
        "a type of 4 bits": lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.INT4),
        "a Constant of 2^62": _constant,
        "a sparse weight of 2^62": _sparse,
        "a quantised scale of zero": _quantised,
        **{f"a note of {name}": partial(_note, text) for name, text in _notes().items()},
        "a Loop whose layer never runs": _idle_loop,
        **{f"{op} to a size that it computes": partial(_computed, op) for op in ("Tile", "Expand", "ConstantOfShape")},
        "a function with the name of an operator": _overriding,
        "scales of another length": partial(_scaled, np.ones(5, np.float32), 0),
        "scales that are NaN": partial(_scaled, np.full(16, np.nan, np.float32), 0),
        "scales along axis 99": partial(_scaled, np.ones(16, np.float32), 99),
        **{
            f"an input that is {kind}": partial(_typed_input, kind)
            for kind in ("a sequence", "optional", "sparse", "a map")
        },
        "100,000 notes on quantisation": lambda m: [
            m.graph.quantization_annotation.add(tensor_name=f"q{i}") for i in range(10**5)
        ],
        "weights of a body in another folder": _body_outside,
        "symbols as sizes": lambda m: _sizes(m, ["\x1b[2J", "a*b", "3", ""]),
        "one symbol for all sizes": lambda m: _sizes(m, ["N", "N", "N", "N"]),
    }
    for name, edit in edits.items():
        for rule in (("--rank", "2"), ("--energy", "0.9", "--calib", "good.npz")):
            how = "calibrated" if "--calib" in rule else "plain"
            yield f"{name}, {how}", partial(_graph, kit, edit, rule)


def _graph(kit: Kit, edit: Callable[[onnx.ModelProto], object], rule: tuple[str, ...], folder: Path) -> Call:
    kit.copy(folder, "good.npz")
    model = network()
    edit(model)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return Call("trp-export", ["m.onnx", *rule, "--no-bench", "--quiet", "-o", "o.onnx"], codes=(0, 2, 3, 4, 5))


def _notes() -> dict[str, str]:
    """What may stand where an earlier export noted its decisions."""
    return {
        "deep lists": json.dumps({"conv1": 1}).replace("1}", "[" * 900 + "]" * 900 + "}"),
        "half a character": '{"conv1": "\\ud800", "conv2": "x"}',
        "control characters": json.dumps({"conv1": "\x1b[2J\x1b]0;X\x07", "fc": "\u202exnno"}),
        "a text of 10 MB": json.dumps({"conv1": "x" * 10**7}),
        "5,000 digits": '{"conv1": ' + "9" * 5000 + "}",
        "a list": "[1, 2]",
        "200,000 layers": json.dumps({f"layer{i}": "cut" for i in range(200_000)}),
    }


def _note(text: str, model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="trp_export.layers", value=text)


def _mutual(model: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for name, other in (("F", "G"), ("G", "F")):
        node = helper.make_node(other, ["x"], ["y"], domain="own")
        model.functions.append(helper.make_function("own", name, ["x"], ["y"], [node], opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "F", "own"


def _loop(count: int, model: onnx.ModelProto) -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["v"], ["w"])],
        "body",
        [info("i", 7, []), info("go", 9, []), info("v", 1, None)],
        [info("on", 9, []), info("w", 1, None)],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(count), "count"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(False), "go_on"))
    model.graph.node[1].CopyFrom(helper.make_node("Loop", ["count", "go_on", "a"], ["b"], body=body))


def _idle_loop(model: onnx.ModelProto) -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Conv", ["v", "inner"], ["w"], pads=[1] * 4)],
        "body",
        [info("i", 7, []), info("go", 9, []), info("v", 1, None)],
        [info("on", 9, []), info("w", 1, None)],
    )
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 16, 3, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "inner"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "turns"))
    model.graph.node[1].CopyFrom(helper.make_node("Loop", ["turns", "", "a"], ["b"], body=body))


def _computed(op: str, model: onnx.ModelProto) -> None:
    """A size that follows from the values of an image: nobody knows it before the network runs."""
    values = {"k": np.array([1, 10**4, 10**4, 10**4]), "one": np.array([1.0], np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    sized = [
        helper.make_node("ReduceMax", ["image"], ["top"], keepdims=0),
        helper.make_node("Mul", ["top", "one"], ["scaled"]),
        helper.make_node("Abs", ["scaled"], ["positive"]),
        helper.make_node("Ceil", ["positive"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["count"], to=TensorProto.INT64),
        helper.make_node("Mul", ["count", "k"], ["sizes"]),
    ]
    made = {
        "Tile": helper.make_node("Tile", ["image", "sizes"], ["big"]),
        "Expand": helper.make_node("Expand", ["one", "sizes"], ["big"]),
        "ConstantOfShape": helper.make_node("ConstantOfShape", ["sizes"], ["big"]),
    }[op]
    nodes = [*sized, made, helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0)]
    for index, node in enumerate(nodes):
        model.graph.node.insert(index, node)
    model.graph.node.append(helper.make_node("Add", ["logits", "sum"], ["y"]))
    model.graph.output[0].name = "y"


def _overriding(model: onnx.ModelProto) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    model.functions.append(helper.make_function("", "Relu", ["x"], ["y"], [node], [helper.make_opsetid("", 17)]))


def _scaled(scale: np.ndarray, axis: int, model: onnx.ModelProto) -> None:
    weight = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(weight.shape, np.int8), "q"))
    model.graph.initializer.append(numpy_helper.from_array(scale, "scale"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "scale"], ["conv1.weight"], axis=axis))


def _typed_input(kind: str, model: onnx.ModelProto) -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [1, 3, 12, 12])
    types = {
        "a sequence": helper.make_sequence_type_proto(tensor),
        "optional": helper.make_optional_type_proto(tensor),
        "sparse": helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [1, 3, 12, 12]),
        "a map": helper.make_map_type_proto(TensorProto.INT64, tensor),
    }
    model.graph.input.append(helper.make_value_info("odd", types[kind]))


def _body_outside(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="inner", data_type=TensorProto.FLOAT, dims=(16, 16, 3, 3))
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    node = helper.make_node("Conv", ["a", "inner"], ["z"], pads=[1] * 4)
    body = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name="z")], [tensor])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    model.graph.node[1].CopyFrom(helper.make_node("If", ["flag"], ["b"], then_branch=body, else_branch=body))


def _attribute(model: onnx.ModelProto, name: str, value: Any) -> None:
    node = model.graph.node[0]
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _one_name(model: onnx.ModelProto) -> None:
    for index in range(20_000):
        _add_relu(model, index, "same")


def _add_relu(model: onnx.ModelProto, index: int, name: str) -> None:
    model.graph.node.append(helper.make_node("Relu", ["a"], [f"relu{index}"], name=name))


def _nested_ifs(depth: int, model: onnx.ModelProto) -> None:
    body = helper.make_graph([helper.make_node("Relu", ["a"], ["z"])], "g", [], [onnx.ValueInfoProto(name="z")])
    for level in range(depth):
        node = helper.make_node("If", ["flag"], [f"z{level}"], then_branch=body, else_branch=_leaf(level))
        body = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name=f"z{level}")])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    model.graph.node[1].CopyFrom(helper.make_node("If", ["flag"], ["b"], then_branch=body, else_branch=_leaf(depth)))


def _leaf(level: int) -> onnx.GraphProto:
    name = f"leaf{level}"
    return helper.make_graph([helper.make_node("Relu", ["a"], [name])], "g", [], [onnx.ValueInfoProto(name=name)])


def _constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[2**31, 2**31], raw_data=b"xxxx")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=tensor))
    model.graph.node.append(helper.make_node("Add", ["a", "k"], ["unused"]))


def _both_ends(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("conv1.weight", TensorProto.FLOAT, [16, 3, 3, 3]))
    model.graph.output.append(model.graph.input[1])


def _second(op: str, inputs: list[str], values: dict[str, Any], model: onnx.ModelProto) -> None:
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    model.graph.node[1].CopyFrom(helper.make_node(op, ["a", *inputs], ["b"]))


def _subgraph(model: onnx.ModelProto) -> None:
    body = helper.make_graph([helper.make_node("Relu", ["nowhere"], ["z"])], "g", [], [onnx.ValueInfoProto(name="z")])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    model.graph.node[1].CopyFrom(helper.make_node("If", ["flag"], ["b"], then_branch=body, else_branch=body))


def _texts(model: onnx.ModelProto) -> None:
    texts = np.array(["\x1b[2J"] * 432, dtype=object).reshape(16, 3, 3, 3)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(texts, "conv1.weight"))


def _sparse(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0]
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "conv1.weight"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([2**61]), "indices"))
    sparse.dims.extend([2**31, 2**31])


def _quantised(model: onnx.ModelProto) -> None:
    weight = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(weight.shape, np.int8), "q"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["conv1.weight"]))


def _sizes(model: onnx.ModelProto, sizes: list[str]) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, sizes))


# --- plans with channels


def _channels(kit: Kit) -> Iterator[tuple[str, Callable[[Path], Call]]]:
    groups: dict[str, Any] = {
        "a channel below 0": {"dropped": [-1]},
        "a channel beyond": {"dropped": [99]},
        "all channels gone": {"dropped": list(range(16))},
        "a channel a million times": {"dropped": [0] * 10**6},
        "a million channels": {"channels": 10**6 + 1, "dropped": list(range(10**6))},
        "10^18 channels": {"channels": 10**18, "dropped": [10**17]},
        "a cluster of one": {"merged": [[0]]},
        "a channel merged into itself": {"merged": [[0, 0]]},
        "clusters in a circle": {"merged": [[0, 1], [1, 0]]},
        "channels that are not equal": {"merged": [[0, 1]]},
        "deep clusters": {"merged": [[[0, 1]]]},
        "channels of another layer": {"name": "fc", "channels": 10, "dropped": [0]},
        "channels of no layer": {"name": "\x1b]0;X\x07", "dropped": [0]},
        "fitted channels": {"dropped": [0, 1], "fitted": True},
        "texts": {"dropped": ["0"]},
        "fractions": {"dropped": [0.5]},
        "a reason of 90 kB": {"dropped": [0], "reason": "\x1b[2J" * 20_000},
    }
    for name, group in groups.items():
        plan = {"version": 3, "channels": [{"name": "conv1", "channels": 16} | group]}
        yield f"a plan with {name}", partial(_plan_with, kit, plan)
    twice = [{"name": "conv1", "channels": 16, "dropped": [0]}] * 2
    yield "a plan that names channels twice", partial(_plan_with, kit, {"version": 3, "channels": twice})
    many = [{"name": f"c{index}", "channels": 2, "dropped": [0]} for index in range(200_000)]
    yield "a plan with 200,000 groups", partial(_plan_with, kit, {"version": 3, "channels": many})
    for name, rewrites in {
        "unknown": ["x" * 90_000],
        "control characters": ["\x1b[2J"],
        "numbers": [1],
        "too many": [str(index) for index in range(100_000)],
    }.items():
        yield f"a plan with rewrites, {name}", partial(_plan_with, kit, {"version": 4, "rewrites": rewrites})


def _plan_with(kit: Kit, fields: dict[str, Any], folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz")
    (folder / "p.json").write_text(json.dumps(json.loads(kit["plan.json"].read_text()) | fields))
    arguments = ["base.onnx", "--plan", "p.json", "--calib", "good.npz", "--no-bench", "-o", "o.onnx"]
    return Call("trp-export", arguments, codes=(0, 2, 3, 4, 5), writes=("o.*",))


# --- names of files


def _names(kit: Kit) -> Iterator[tuple[str, Callable[[Path], Call]]]:
    names = (
        "",
        "-",
        ".",
        "..",
        "/",
        "base.onnx/",
        "base.onnx/x",
        "~/base.onnx",
        "file:///etc/passwd",
        "http://127.0.0.1:1/x",
    )
    for name in (*names, "x" * 5000, "x/" * 3000, "\udcff\udcfe.onnx", "CON", "a:b.onnx", "*.onnx", "base.onnx\n"):
        yield f"a model called {name[:20]!r}", partial(_called, kit, "trp-export", name)
        yield f"trp-bench of {name[:20]!r}", partial(_called, kit, "trp-bench", name)
        yield f"--calib {name[:20]!r}", partial(_other, kit, "--calib", name)
        yield f"--plan {name[:20]!r}", partial(_other, kit, "--plan", name)


def _called(kit: Kit, program: str, name: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    rule = (
        ("--rank", "2", "--calib", "none", "--dry-run")
        if program == "trp-export"
        else ("--budget", "0.1", "--processes", "1")
    )
    # A slash at the end is no part of a name.
    codes = (0,) if name == "base.onnx/" else (2, 3)
    return Call(program, [*rule, "--", name], codes=codes)


def _other(kit: Kit, option: str, name: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    rule = () if option == "--plan" else ("--rank", "2")
    return Call("trp-export", ["base.onnx", *rule, "--dry-run", f"{option}={name}"], codes=(2, 3))


# --- files that change while they are read


FLIP = """
import os, sys, time
place, targets, end = sys.argv[1], sys.argv[2:], time.monotonic() + 15
while time.monotonic() < end and os.path.isdir(os.path.dirname(place)) and not os.path.exists(place + ".stop"):
    for target in targets:
        try:
            os.symlink(target, place + ".new"); os.replace(place + ".new", place)
        except OSError:
            time.sleep(0.001)
"""

_FLIPPING: list[subprocess.Popen[bytes]] = []


def _races(kit: Kit) -> Iterator[tuple[str, Callable[[Path], Call]]]:
    for turn in range(6):
        yield f"external data that become a link out, turn {turn}", partial(_exchanged_data, kit)
        yield f"an output that becomes a link, turn {turn}", partial(_exchanged_output, kit)
    for target in ("m.onnx", "good.npz"):
        yield f"{target} that becomes a pipe", partial(_exchanged_input, kit, target)


def _flip(place: Path, *targets: str) -> subprocess.Popen[bytes]:
    """Exchange a file until the attempt ends; that of an attempt before, whose outcome nobody checked, is stopped."""
    for process in _FLIPPING:
        process.kill()
        process.wait()
    _FLIPPING[:] = [subprocess.Popen([sys.executable, "-c", FLIP, str(place), *targets])]
    return _FLIPPING[0]


def _ends(flipping: subprocess.Popen[bytes], check: Callable[[Ended], str | None], ended: Ended) -> str | None:
    flipping.kill()
    flipping.wait()
    return check(ended)


def _exchanged_data(kit: Kit, folder: Path) -> Call:
    model = network()
    for tensor in model.graph.initializer:
        if tensor.name == "conv2.weight":
            (folder / "sound").write_bytes(tensor.raw_data)
            secret = (SECRET * 100).encode()[: len(tensor.raw_data)]
            (folder.parent / "secret").write_bytes(secret)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="key.bin")
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    (folder / "key.bin").symlink_to("sound")
    flipping = _flip(folder / "key.bin", "sound", str(folder.parent / "secret"))
    return Call(
        "trp-export",
        ["m.onnx", "--rank", "2", "--only", "conv1", "--no-bench", "--quiet", "-o", "o.onnx"],
        codes=(0, 3, 4, 5),
        writes=("key.bin*", "o.*"),
        check=partial(_ends, flipping, _no_secret),
    )


def _no_secret(ended: Ended) -> str | None:
    made = ended.folder / "o.onnx"
    return "a file outside was read" if made.exists() and SECRET.encode()[:100] in made.read_bytes() else None


def _exchanged_output(kit: Kit, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    (folder / "victim").write_text("victim")
    flipping = _flip(folder / "o.onnx", "victim", "absent")
    arguments = ["base.onnx", *EXPORT, "-o", "o.onnx"]
    check = partial(_ends, flipping, lambda ended: None)
    return Call("trp-export", arguments, codes=(0, 2, 7), writes=("o.*", "absent"), check=check)


def _exchanged_input(kit: Kit, target: str, folder: Path) -> Call:
    kit.copy(folder, "good.npz")
    onnx.save(network(), folder / "m.onnx")
    (folder / target).rename(folder / "sound")
    os.mkfifo(folder / "pipe")
    (folder / target).symlink_to("sound")
    flipping = _flip(folder / target, "sound", "pipe")
    arguments = ["m.onnx", "--rank", "2", "--calib", "good.npz", "--dry-run", "--quiet"]
    check = partial(_ends, flipping, lambda ended: None)
    return Call("trp-export", arguments, codes=(0, 3), writes=(f"{target}*",), check=check)
