"""Feeds the command inputs of every kind at random, in this process: a program for test_fuzz_inputs.py to watch.

    python tests/support/fuzz_inputs.py FIRST COUNT FOLDER

Shapes, .npz and .npy files, folders, preprocessing and generators that fail, end early or change half-way meet
networks of one image, of whole numbers in (N, H, W, C), of several inputs, and of a spectrogram. Ends with 1 and says
what happened at the first run that does anything but succeed or fail with a line and a documented exit code.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from fuzz import DOCUMENTED, run
from onnx import numpy_helper, parser
from PIL import Image

MODELS = {
    "image": "(float[n, 3, h, w1] x) => (float[n, 5] y) { a = Conv <pads = [1, 1, 1, 1]> (x, w)  b = Relu (a)  "
    "c = Conv (b, v)  d = GlobalAveragePool (c)  y = Flatten (d) }",
    "fixed": "(float[2, 3, 16, 12] x) => (float[2, 5, 14, 10] y) { a = Conv <pads = [1, 1, 1, 1]> (x, w)  "
    "y = Conv (a, v) }",
    "bytes": "(uint8[n, 16, 12, 3] x) => (float[n, 5, h, w1] y) { p = Cast <to = 1> (x)  "
    "t = Transpose <perm = [0, 3, 1, 2]> (p)  a = Conv (t, w)  y = Conv (a, v) }",
    "two": "(float[n, 3, h, w1] x, float[n, 4] z, int64 k) => (float[n, 5, h1, w2] y) { a = Conv (x, w)  "
    "m = MatMul (z, u)  s = Unsqueeze (m, last)  b = Add (a, s)  c = Conv (b, v)  f = Cast <to = 1> (k)  "
    "y = Mul (c, f) }",
    "spectrum": "(float[n, 16, t] x) => (float[n, 8, t1] y) { y = Conv <pads = [1, 1]> (x, r) }",
}
SIZES = {"w": (8, 3, 3, 3), "v": (5, 8, 3, 3), "u": (4, 8), "r": (8, 16, 3)}
INPUTS = {"two": ("x", "z", "k")}
SHAPES = {
    "image": ("1,3,16,16", "x=2,3,9,7"),
    "fixed": ("2,3,16,12", "x=1,3,20,9"),
    "bytes": ("1,16,12,3", "x=3,16,12,3"),
    "two": ("x=2,3,9,7", "z=2,4"),
    "spectrum": ("x=1,16,40", "2,16,9"),
    "any": ("x=1,3,0,4", "k=1", "q=1", "x=", "1,3"),
}
SCALES = {"--scale": ("1", "1/255", "0", "2e-3"), "--mean": ("0.5", "0.4,0.5,0.6", "127", "1,2"), "--std": ("0.2", "0")}
PLACES = {
    "--resize": ("16", "8x20", "letterbox:16x12", "cover:9x9", "multiple:4", "0", "letterbox:16x12:114:corner"),
    "--crop": ("8", "12x16", "40"),
    "--colour": ("rgb", "bgr", "grey"),
    "--layout": ("nchw", "nhwc"),
}
# Too large, in another precision, too far from the original.
SHORT = (10, 11, 12)
WAYS = (
    "end",
    "end",
    "end",
    "raise ValueError('no more')",
    "raise SystemExit(2)",
    "other",
    "yield 3",
    "yield {}",
    "return",
    "nan",
)


def main() -> None:
    first, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    for name, body in MODELS.items():
        onnx.save(network(body), folder / f"{name}.onnx")
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        arguments = asked(rng, folder)
        complaint = run(arguments, (*DOCUMENTED, *SHORT))
        if complaint:
            sys.exit(f"{number}: {' '.join(arguments)}: {complaint}")


def network(body: str) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> net {body}')
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in SIZES.items() if f" {name})" in body
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    if "last" in body:
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "last"))
    return model


def asked(rng: np.random.Generator, folder: Path) -> list[str]:
    """A model, and options that fit it or do not."""
    model = str(rng.choice(list(MODELS)))
    arguments = [str(folder / f"{model}.onnx"), *pick(rng, ["--energy", "0.9"], ["--macs", "1.3"], ["--rank", "2"])]
    arguments += pick(rng, ["--dry-run"], ["--no-bench", "-o", str(folder / "out.onnx")])
    for _ in range(rng.choice([0, 1, 2], p=[0.7, 0.25, 0.05])):
        arguments += ["--shape", str(rng.choice(SHAPES[model if rng.random() < 0.8 else "any"]))]
    for option, values in (SCALES | PLACES).items():
        if rng.random() < 0.08:
            arguments += [option, str(rng.choice(values))]
    if rng.random() < 0.15:
        arguments += ["--input", str(arrays(rng, folder / "input.npz", model))]
    for option in ("--calib", "--eval"):
        if rng.random() < (0.7 if option == "--calib" else 0.1):
            arguments += [option, data(rng, folder, model)]
    if "--calib" in arguments:
        arguments += pick(rng, [], [], ["--calib-count", "3"], ["--precision", "int8"], ["--precision", "fp16"])
    return [*arguments, "--quiet"]


def pick(rng: np.random.Generator, *choices: list[str]) -> list[str]:
    return choices[rng.integers(len(choices))]


def data(rng: np.random.Generator, folder: Path, model: str) -> str:
    """Where calibration or evaluation data lie: of every kind there is, sound or not."""
    kind = rng.integers(6)
    if kind == 0:
        return str(pictures(rng, folder / "pictures"))
    if kind == 1:
        return str(arrays(rng, folder / "data.npz", model))
    if kind == 2:
        place = folder / "data.npy"
        np.save(place, array(rng, model, "x"))
        return str(place)
    if kind == 3:
        place = folder / "arrays"
        place.mkdir(exist_ok=True)
        for file in place.iterdir():
            file.unlink()
        rows = list(array(rng, model, "x"))
        for index, row in enumerate([*rows, *(array(rng, model, "x") for _ in range(rng.random() < 0.2))]):
            np.save(place / f"{index}.npy", row)
        return str(place)
    return "nowhere" if kind == 4 and rng.random() < 0.2 else f"{generator(rng, folder, model)}:make"


def sound_shape(model: str, name: str, count: int) -> tuple[int, ...]:
    one = {"z": (4,), "k": ()}.get(name)
    if one is not None:
        return (count, *one) if name == "z" else ()
    return count, *{"bytes": (16, 12, 3), "spectrum": (16, 20), "fixed": (3, 16, 12)}.get(model, (3, 12, 14))


def array(rng: np.random.Generator, model: str, name: str) -> np.ndarray:
    shape = list(sound_shape(model, name, int(rng.choice([0, 1, 2, 20], p=[0.05, 0.15, 0.2, 0.6]))))
    if shape and rng.random() < 0.1:
        shape[rng.integers(len(shape))] = int(rng.integers(0, 24))
    if rng.random() < 0.05:
        shape = shape[1:]
    values = np.asarray(rng.standard_normal(shape) * rng.choice([0, 1, 100]))
    if values.size and rng.random() < 0.05:
        values.flat[rng.integers(values.size)] = np.nan
    usual = {"k": "i8"}.get(name, "u1" if model == "bytes" else "f4")
    kind = usual if rng.random() < 0.7 else str(rng.choice(["f4", "f8", "f2", "u1", "i8", "?", "U3"]))
    with np.errstate(all="ignore"):
        return (values % 256 if kind == "u1" else values).astype(kind)


def arrays(rng: np.random.Generator, place: Path, model: str) -> Path:
    names = [name for name in INPUTS.get(model, ("x",)) if rng.random() < 0.95]
    names += [name for name in ("images", "labels", "strange") if rng.random() < 0.05]
    np.savez(place, **{name: array(rng, model, name) for name in names})
    return place


def pictures(rng: np.random.Generator, place: Path) -> Path:
    """Images that may differ in size and mode; now and then a damaged one, or none."""
    place.mkdir(exist_ok=True)
    for file in place.iterdir():
        file.unlink()
    mode, alike = str(rng.choice(["RGB", "L", "RGBA", "P"])), rng.random() < 0.5
    for index in range(rng.choice([0, 1, 3, 20], p=[0.1, 0.2, 0.3, 0.4])):
        size = (12, 16) if alike else tuple(int(side) for side in rng.integers(1, 30, 2))
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(place / f"{index}.png")
    if rng.random() < 0.2:
        (place / "0.png").write_bytes(b"\x89PNG nonsense")
    return place


def generator(rng: np.random.Generator, folder: Path, model: str) -> Path:
    """A Python file whose function yields sound batches, and then does something else half-way."""
    names = INPUTS.get(model, ("x",))
    batch = int(rng.choice([2, 2, 5] if model == "fixed" else [1, 2, 5]))
    kinds = {"k": "i8"} | ({"x": "u1"} if model == "bytes" else {})
    batches = {
        size: ", ".join(
            f"'{name}': np.asarray(rng.random({sound_shape(model, name, size)}) * 5).astype('{kinds.get(name, 'f4')}')"
            for name in names
        )
        for size in (batch, batch + 1)
    }
    lines = [f"yield {{{batches[batch]}}}" for _ in range(rng.choice([0, 1, 4, 12]))]
    way = str(rng.choice(WAYS))
    then = {
        "end": "pass",
        "other": f"yield {{{batches[batch + 1]}}}",
        "nan": f"yield {{name: array * np.nan for name, array in {{{batches[batch]}}}.items()}}",
    }.get(way, way)
    place = folder / f"made_{rng.integers(10**9)}.py"
    body = "".join(f"    {line}\n" for line in [*lines, then])
    place.write_text(f"import numpy as np\n\ndef make():\n    rng = np.random.default_rng(0)\n{body}")
    return place


if __name__ == "__main__":
    main()
