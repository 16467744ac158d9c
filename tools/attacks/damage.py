"""Damage to every kind of file, at random but always the same: bytes, and values of documents."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attempt import Attempt, Call
from kit import EXPORT, Kit

RULE = ("--rank", "2", "--calib", "none", "--dry-run", "--quiet")
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    1e308,
    "",
    "x" * 1000,
    "\x1b]0;X\x07",
    [],
    {},
    [[]],
    {"name": 1},
    "NaN",
    "\ud800",
)
# Kinds of files: how a command reads one, and with which sound files beside it.
READERS: dict[str, tuple[str, list[str], tuple[str, ...]]] = {
    "base.onnx": ("trp-export", ["base.onnx", *RULE], ()),
    "apart.data": ("trp-export", ["apart.onnx", *RULE], ("apart.onnx",)),
    "state.pt": ("trp-export", ["state.pt", "--arch", "resnet20", "--shape", "1,5,32,32", *RULE], ()),
    "legacy.pt": ("trp-export", ["legacy.pt", "--arch", "resnet20", "--shape", "1,5,32,32", *RULE], ()),
    "state.safetensors": ("trp-export", ["state.safetensors", "--arch", "resnet20", "--shape", "1,5,32,32", *RULE], ()),
    "checkpoint.pt": ("trp-export", ["checkpoint.pt", "--shape", "1,5,32,32", *RULE], ()),
    "good.npz": ("trp-export", ["base.onnx", *RULE, "--calib", "good.npz"], ("base.onnx",)),
    "good.npy": ("trp-export", ["base.onnx", *RULE, "--calib", "good.npy"], ("base.onnx",)),
    "labelled.npz": ("trp-export", ["base.onnx", *EXPORT, "-o", "o.onnx", "--eval", "labelled.npz"], ("base.onnx",)),
    "input.npz": ("trp-export", ["base.onnx", *EXPORT, "-o", "o.onnx", "--input", "input.npz"], ("base.onnx",)),
    "moments.npz": (
        "trp-export",
        ["base.onnx", *RULE, "--calib", "good.npz", "--calib-stats", "moments.npz"],
        ("base.onnx", "good.npz"),
    ),
    "plan.json": ("trp-export", ["base.onnx", "--plan", "plan.json", "--dry-run", "--quiet"], ("base.onnx",)),
    "small.json": ("trp-export", ["base.onnx", "--plan", "small.json", "--dry-run", "--quiet"], ("base.onnx",)),
    "table.json": (
        "trp-export",
        ["base.onnx", "--speedup", "1.1", "--dry-run", "--quiet", "--latency-table", "table.json"],
        ("base.onnx",),
    ),
    "samples.json": (
        "trp-bench",
        ["base.onnx", "--budget", "0.2", "--processes", "1", "--against", "samples.json"],
        ("base.onnx",),
    ),
    "bundle/manifest.json": ("trp-bundle", ["verify", "bundle"], ("bundle",)),
    "bundle/model.onnx": ("trp-bundle", ["verify", "bundle"], ("bundle",)),
    "images/3.png": ("trp-export", ["base.onnx", *RULE, "--calib", "images"], ("base.onnx", "images")),
    "run/last.pt": ("trp-train", ["--resume", "-o", "run"], ("run", "data")),
    "data/train.npz": ("trp-train", ["--resume", "-o", "run"], ("run", "data")),
}
# Names of this package's own networks that stand for much memory, or none.
LARGE = ("resnet110x8-seg", "resnet110x8-dignet-t16", "resnet20x99", "resnet20x0.0001", "resnet14-rignet-t99")
WRITES = ("moments.npz", "run/*", "cache/*")


def attempts(kit: Kit) -> Iterator[Attempt]:
    """Each kind of file with each kind of damage."""
    for target, (program, arguments, others) in READERS.items():
        for seed, name in enumerate(BYTES):
            call = Call(program, arguments, codes=(0, 2, 3, 4, 5, 8, 9, 10), writes=WRITES)
            yield Attempt("damaged files", f"{target}: {name}", partial(_bytes, kit, target, others, call, name, seed))
        if target.endswith(".json"):
            yield from _documents(kit, target, Call(program, arguments, codes=(0, 2, 3, 4, 9), writes=WRITES), others)
        if target.endswith(".npz"):
            yield from _arrays(kit, target, Call(program, arguments, codes=(0, 2, 3, 4), writes=WRITES), others)
    yield from _states(kit)


BYTES = ("empty", "one byte", "half", "all but one byte", "zeros", "bits", "header", "repeated", "appended", "noise")


def _bytes(kit: Kit, target: str, others: tuple[str, ...], call: Call, name: str, seed: int, folder: Path) -> Call:
    _bring(kit, folder, target, others)
    data = bytearray((kit[target]).read_bytes())
    rng = np.random.default_rng([seed, len(data)])
    if name == "bits":
        for place in rng.integers(0, len(data), 8):
            data[place] ^= 1 << int(rng.integers(8))
    elif name == "header":
        data[:16] = rng.bytes(16)
    elif name == "repeated":
        data[len(data) // 2 : len(data) // 2] = data[: len(data) // 3]
    changes: dict[str, bytes | bytearray] = {
        "empty": b"",
        "one byte": data[:1],
        "half": data[: len(data) // 2],
        "all but one byte": data[:-1],
        "zeros": bytes(len(data)),
        "appended": bytes(data) + b"\0" * 100 + b"PK\x05\x06",
        "noise": rng.bytes(len(data)),
    }
    (folder / target).write_bytes(changes.get(name, data))
    return call


def _bring(kit: Kit, folder: Path, target: str, others: tuple[str, ...]) -> None:
    kit.copy(folder, *others)
    if not (folder / target).exists():
        kit.copy(folder, target)


def _documents(kit: Kit, target: str, call: Call, others: tuple[str, ...]) -> Iterator[Attempt]:
    """One value of a JSON document replaced, removed or doubled."""
    document = json.loads(kit[target].read_text())
    places = list(_places(document))
    rng = np.random.default_rng(len(places))
    texts = {
        "deep lists": "[" * 100_000 + "]" * 100_000,
        "deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
        "400 digits": json.dumps(document).replace("1", "1" * 400, 1),
        "5,000 digits": "9" * 5000,
        "NaN": json.dumps(document).replace("1", "NaN", 1),
        "a field twice": json.dumps(document)[:-1] + ', "format": "x"' * 2 + "}",
        "500,000 fields": "{" + ",".join(f'"k{i}":1' for i in range(500_000)) + ', "k0": 1}',
        "UTF-16": None,
        "a text of 10 MB": json.dumps(document)[:-1] + f', "z": "{"z" * 10**7}"}}',
        "an escape": json.dumps(document)[:-1] + ', "\\u001b]0;X\\u0007": 1}',
        "a list": "[1, 2]",
        "null": "null",
    }
    for name, text in texts.items():
        content = text.encode() if text is not None else json.dumps(document).encode("utf-16")
        yield Attempt("documents", f"{target}: {name}", partial(_write, kit, target, others, call, content))
    for index in range(24):
        path = places[int(rng.integers(len(places)))]
        odd = ODD[index % len(ODD)]
        content = json.dumps(_replaced(document, path, odd)).encode()
        name = f"{target}: {'.'.join(map(str, path))} = {odd!r}"[:100]
        yield Attempt("documents", name, partial(_write, kit, target, others, call, content))


def _write(kit: Kit, target: str, others: tuple[str, ...], call: Call, content: bytes, folder: Path) -> Call:
    _bring(kit, folder, target, others)
    (folder / target).write_bytes(content)
    return call


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return copy


def _arrays(kit: Kit, target: str, call: Call, others: tuple[str, ...]) -> Iterator[Attempt]:
    """The arrays of an .npz exchanged for odd ones, and archives that unpack to much."""
    with np.load(kit[target], allow_pickle=False) as archive:
        arrays = dict(archive)
    odd: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "NaN": lambda array: np.full(array.shape, np.nan),
        "infinity": lambda array: np.full(array.shape, np.inf),
        "1e300": lambda array: np.full(array.shape, 1e300),
        "negative": lambda array: np.full(array.shape, -7.5),
        "complex": lambda array: array.astype(np.complex128) if array.dtype.kind in "fiu" else array,
        "text": lambda array: np.full(array.shape, "\x1b[2J"),
        "no values": lambda array: array[..., :0] if array.ndim else np.array([]),
        "another rank": lambda array: array[None],
        "booleans": lambda array: np.ones(array.shape, bool),
        "dates": lambda array: np.full(array.shape, np.datetime64("2020-01-01")),
        "a record": lambda array: np.zeros(array.shape, [("a", "f4"), ("b", "i8")]),
        "half": lambda array: array.astype(np.float16) if array.dtype.kind in "fiu" else array,
        "one row": lambda array: array[:1] if array.ndim else array,
    }
    for key in list(arrays)[:4]:
        for name, change in odd.items():
            content = _npz({**arrays, key: change(arrays[key])})
            yield Attempt("arrays", f"{target}: {key} {name}", partial(_write, kit, target, others, call, content))
        content = _npz({name: array for name, array in arrays.items() if name != key})
        yield Attempt("arrays", f"{target}: without {key}", partial(_write, kit, target, others, call, content))
    key = "images" if "images" in arrays else next(iter(arrays))
    for name, content in _archives(key).items():
        yield Attempt("arrays", f"{target}: {name}", partial(_write, kit, target, others, call, content))


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    content = BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def _archives(key: str) -> dict[str, bytes]:
    """Archives whose headers promise more than they hold, or hold more than they seem to."""
    return {
        "a bomb of 8 GB": _bomb(key, 8 * 10**9),
        "a bomb in an array that nobody reads": _bomb("unused", 8 * 10**9),
        "a header of 10^15 bytes": _archive({f"{key}.npy": _header((10**15,)) + b"x"}),
        "a header of negative size": _archive({f"{key}.npy": _header((-5, 3))}),
        "a header with code": _archive({f"{key}.npy": _raw_header("__import__('os').system('touch PWNED')")}),
        "objects": _archive({f"{key}.npy": _objects()}),
        "100,000 members": _archive({f"{index}.npy": b"" for index in range(100_000)}),
        "a member outside": _archive({"../../evil.npy": _header((1,)) + b"xxxx"}),
        "a member twice": _twice(key),
        "no members": _archive({}),
        "a member under a password": _flagged(key, 1),
        "a member packed as nobody knows": _flagged(key, 0, 99),
        "a member packed by LZMA": _archive({f"{key}.npy": _header((10**7,)) + bytes(4 * 10**7)}, zipfile.ZIP_LZMA),
        "a member packed by BZIP2": _archive({f"{key}.npy": _header((10**7,)) + bytes(4 * 10**7)}, zipfile.ZIP_BZIP2),
    }


def _flagged(key: str, flags: int, method: int = 0) -> bytes:
    """One member whose headers, at the front and in the directory at the end, hold these flags and this method."""
    content = bytearray(_archive({f"{key}.npy": _header((1,)) + b"xxxx"}))
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.index(mark) + place
        content[start : start + 4] = bytes([flags, 0, method, 0])
    return bytes(content)


def _archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


def _twice(key: str) -> bytes:
    import warnings

    content = BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w") as archive:
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr(f"{key}.npy", _header((1,)) + b"xxxx")
    return content.getvalue()


def _bomb(key: str, size: int) -> bytes:
    """Zeros that deflate a thousandfold, written piece by piece."""
    content = BytesIO()
    with (
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{key}.npy", "w", force_zip64=True) as file,
    ):
        file.write(_header((size // 4 // 10**6, 10**6)))
        block = bytes(10**6)
        for _ in range(40):  # Its header claims the rest.
            file.write(block)
    return content.getvalue()


def _header(shape: tuple[int, ...]) -> bytes:
    return _raw_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}")


def _raw_header(text: str) -> bytes:
    padded = text + " " * (64 - (len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()


def _objects() -> bytes:
    content = BytesIO()
    np.save(content, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return content.getvalue()


def _states(kit: Kit) -> Iterator[Attempt]:
    """Values of saved states: last.pt of a run, checkpoints, and the options in them."""
    odd: tuple[Any, ...] = (None, -1, 10**30, float("nan"), "\x1b[2J", [], {}, b"x", torch.zeros(3), 1 + 2j)
    train = Call("trp-train", ["--resume", "-o", "run"], codes=(2, 3), writes=("run/*",), check=_not_run)
    export = Call("trp-export", ["checkpoint.pt", *RULE], codes=(0, 2, 3, 4), check=_not_run)
    keys = {
        "run/last.pt": tuple(torch.load(kit["run/last.pt"], weights_only=True)),
        "checkpoint.pt": ("version", "arch", "state_dict", "kind", "input_shape", "mean", "std", "classes"),
    }
    for target, names in keys.items():
        for key in names:
            for value in odd:
                if (target, key, value) == ("run/last.pt", "plan", None):
                    continue  # As it is.
                call = train if target.startswith("run") else export
                yield Attempt(
                    "saved states",
                    f"{target}: {key} = {value!r}"[:100],
                    partial(_state, kit, target, call, (key,), value),
                )
    for arch in (
        "evil_net:make",
        "os:getcwd",
        "os:system",
        "torchvision:vit_h_14",
        "torchvision:../x",
        "x" * 10**6,
        *LARGE,
    ):
        yield Attempt("saved states", f"last.pt with arch {arch[:30]}", partial(_arch, kit, "run/last.pt", train, arch))
        yield Attempt(
            "saved states", f"checkpoint with arch {arch[:30]}", partial(_arch, kit, "checkpoint.pt", export, arch)
        )
    shapes = ([1, 3, 8000, 8000], [1, 3, -1, 32], [float("inf")] * 4, [1] * 1000, [1, 3, 0, 0])
    for shape in shapes:
        yield Attempt(
            "saved states",
            f"checkpoint for {shape[:4]}",
            partial(_state, kit, "checkpoint.pt", export, ("input_shape",), shape),
        )


def _state(kit: Kit, target: str, call: Call, path: tuple[str, ...], value: Any, folder: Path) -> Call:
    kit.copy(folder, *({"run", "data"} if target.startswith("run") else {target}))
    content = torch.load(kit[target], weights_only=True)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if value is None and holder[path[-1]] is None:
        holder[path[-1]] = [None]  # It was None already.
    else:
        holder[path[-1]] = value
    torch.save(content, folder / target)
    return call


def _arch(kit: Kit, target: str, call: Call, arch: str, folder: Path) -> Call:
    code = "open('PWNED', 'w').write('x')\ndef make(**options): ...\n"
    (folder / "evil_net.py").write_text(code)
    return _state(kit, target, call, ("options", "arch") if target.startswith("run") else ("arch",), arch, folder)


def _not_run(ended: Any) -> str | None:
    return "code was run" if (ended.folder / "PWNED").exists() else None
