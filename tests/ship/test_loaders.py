"""The loaders of a bundle run in place, give the same outputs as Python, and refuse changed files."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from bundles import make_bundle, manifest
from models import build, noise, relative_l2, run
from PIL import Image

import trp_export
from trp_export.bench.devices.base import cached
from trp_export.inputs.images import load_images
from trp_export.inputs.pictures import FORMATS
from trp_export.inputs.preprocessing import Preprocessing, Resize
from trp_export.inputs.spec import InputSpec
from trp_export.ship.manifest import ManifestPreprocessing, Tensor

from .conftest import IMAGES, Made

LOADERS = Path(trp_export.__file__).parent / "ship" / "loaders"
COUNT = 12
RUNTIME = cached("web") / "ort.wasm.bundle.min.mjs"
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="needs Node: apt-get install nodejs")
needs_web = pytest.mark.skipif(
    not RUNTIME.is_file() or not shutil.which("node"), reason="needs Node and python tools/setup_web.py"
)

PYTHON = """
import sys, json, numpy as np
sys.path.insert(0, sys.argv[1])
from load import load, prepare
session, manifest = load(sys.argv[1], digest=sys.argv[2])
pixels = np.load(sys.argv[3])
inputs = np.stack([prepare(image, manifest) for image in pixels])
print(json.dumps(session.run(None, {manifest["inputs"][0]["name"]: inputs})[0].tolist()))
"""

JAVASCRIPT = """
import { readFile } from "node:fs/promises";
const [folder, digest, runtime, images] = process.argv.slice(2);
const ort = await import(runtime);
ort.env.wasm.numThreads = 1;
const compiled = runtime.replace("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm");
ort.env.wasm.wasmBinary = (await readFile(compiled)).buffer;
const { load, prepare } = await import(folder + "/load.mjs");
const read = async (name) => new Uint8Array(await readFile(folder + "/" + name));
const { session, manifest } = await load(ort, folder, digest, { read });
const answers = [];
for (const data of JSON.parse(await readFile(images, "utf-8"))) {
  const input = prepare(ort, { data, width: 32, height: 32 }, manifest);
  const outputs = await session.run({ [manifest.inputs[0].name]: input });
  answers.push(Array.from(outputs[manifest.outputs[0].name].data));
}
console.log(JSON.stringify(answers));
process.exit(0);
"""


@pytest.fixture
def copy(resnet20: Made, tmp_path: Path) -> Path:
    shutil.copytree(resnet20.folder, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def pixels() -> np.ndarray:
    return np.load(IMAGES)["images"][:COUNT]


@pytest.fixture
def wanted(resnet20: Made) -> np.ndarray:
    """What the model answers, through the project's own preparation of images."""
    steps = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    inputs = load_images(IMAGES, steps, input_shape=(None, 3, 32, 32)).inputs[:COUNT]
    session = onnxruntime.InferenceSession(resnet20.folder / "model.onnx")
    return np.asarray(session.run(None, {"input": inputs})[0])


def in_python(folder: Path, digest: str, images: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "-c", PYTHON, str(folder), digest, str(images)]  # -B: nothing extra in a bundle
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def in_node(folder: Path, digest: str, images: Path) -> subprocess.CompletedProcess[str]:
    script = images.with_name("try.mjs")
    script.write_text(JAVASCRIPT)
    command = ["node", str(script), str(folder), digest, str(RUNTIME), str(images)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_load_py_gives_equal_outputs(resnet20: Made, pixels: np.ndarray, wanted: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", pixels)
    done = in_python(resnet20.folder, resnet20.digest, tmp_path / "pixels.npy")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), wanted, atol=1e-4)


def test_load_py_as_a_program_scales_images(resnet20: Made, pixels: np.ndarray, tmp_path: Path) -> None:
    """Each pixel four times over: scaled down again, the image is what it was."""
    Image.fromarray(pixels[0].repeat(4, axis=0).repeat(4, axis=1)).save(tmp_path / "large.png")
    command = [sys.executable, "load.py", ".", resnet20.digest, str(tmp_path / "large.png")]
    done = subprocess.run(command, cwd=resnet20.folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((resnet20.folder / "manifest.json").read_text())
    assert done.stdout.splitlines()[-1] in manifest["classes"]


def test_load_py_gives_onnxruntime_the_weights_that_it_checked(tmp_path: Path) -> None:
    """External weights (models above 2 GB): the file may change after the check, and the session does not read it."""
    model = build()
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    (expected,) = run(tmp_path / "model.onnx", noise(model))
    contents = {name: (tmp_path / name).read_bytes() for name in ("model.onnx", "model.onnx.data")}
    digest = make_bundle(tmp_path / "bundle", contents)
    program = (
        "import sys, numpy, pathlib; sys.path.insert(0, sys.argv[1]); import load\n"
        "checked = load._checked\n"
        "def check_then_spoil(folder, manifest, name):\n"
        "    content = checked(folder, manifest, name)\n"
        "    (folder / name).write_bytes(bytes(len(content)))\n"
        "    return content\n"
        "load._checked = check_then_spoil\n"
        "session, _ = load.load(sys.argv[2], sys.argv[3])\n"
        "numpy.save(sys.argv[5], session.run(None, dict(numpy.load(sys.argv[4])))[0])\n"
    )
    np.savez(tmp_path / "inputs.npz", **noise(model))
    paths = (LOADERS, tmp_path / "bundle", digest, tmp_path / "inputs.npz", tmp_path / "outputs.npy")
    command = [sys.executable, "-B", "-c", program, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert relative_l2(expected, np.load(tmp_path / "outputs.npy")) < 1e-6


STEPS = (
    Preprocessing((0.5,), (0.25,)),
    Preprocessing(resize=24, crop=(16, 20)),
    Preprocessing(crop=(16, 16), colour="bgr", scale=1.0, mean=(104.0, 117.0, 123.0)),
    Preprocessing(resize=Resize("stretch", 20, 30)),
    Preprocessing(resize=Resize("cover", 20, 30)),
    Preprocessing(resize=Resize("cover", 20, 30), crop=(16, 16)),
    Preprocessing(resize=Resize("letterbox", 40, 32, 114)),
    Preprocessing(resize=Resize("letterbox", 40, 48, 7, "corner"), colour="bgr"),
    Preprocessing(resize=Resize("letterbox", 40, 48, 0, "corner")),
    Preprocessing(resize=Resize("multiple", 16, 16), scale=0.0039),
)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("channels", [3, 1])
def test_load_py_prepares_images_as_the_exporter_does(
    steps: Preprocessing, layout: str, channels: int, tmp_path: Path
) -> None:
    if channels == 1:
        steps = replace(steps, colour=None, mean=(0.5,) if steps.scale is None else None)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    shape = (None, channels, None, None) if layout == "NCHW" else (None, None, None, channels)
    spec = InputSpec("image", "float32", shape, shape, (None,) * 4, layout, channels)  # type: ignore[arg-type]
    images = load_images(tmp_path, steps, spec=spec)
    written = replace(manifest(), preprocessing=ManifestPreprocessing.of(images.steps, layout)).to_bytes()
    with Image.open(tmp_path / "photo.png") as photo:
        prepared = loader().prepare(photo, json.loads(written))
    np.testing.assert_allclose(prepared, images.batch(0, 1)[0], rtol=1e-6, atol=1e-6)


WHOLE = {
    "uint8": Preprocessing((0.0,) * 3, (1 / 255,) * 3, scale=1 / 255),  # 7 comes back as 6.9999995.
    "int8": Preprocessing((128.0,) * 3, (1.0,) * 3, scale=1.0),
}
IN_NODE = """
import { readFileSync } from "node:fs";
const { prepare } = await import(process.argv[1]);
const { image, manifest } = JSON.parse(readFileSync(0));
class Tensor {
  constructor(type, data, dims) { Object.assign(this, { type, data: [...data], dims }); }
}
console.log(JSON.stringify(prepare({ Tensor }, image, manifest)));
"""


def in_whole_numbers(kind: str, folder: Path) -> tuple[Image.Image, np.ndarray, dict[str, Any]]:
    """A photo, what the exporter makes of it for an input of this type, and the manifest."""
    pixels = np.arange(768, dtype=np.uint8).reshape(16, 16, 3)
    Image.fromarray(pixels).save(folder / "photo.png")
    spec = InputSpec("image", kind, (1, 3, 16, 16), (1, 3, 16, 16), (None,) * 4, "NCHW", 3)
    images = load_images(folder, WHOLE[kind], spec=spec)
    steps, tensor = ManifestPreprocessing.of(images.steps, "NCHW"), Tensor("image", (1, 3, 16, 16), kind)
    written = replace(manifest(), preprocessing=steps, inputs=(tensor,)).to_bytes()
    return Image.fromarray(pixels), images.batch(0, 1), json.loads(written)


@pytest.mark.parametrize("kind", WHOLE)
def test_load_py_makes_whole_numbers_as_the_exporter_does(kind: str, tmp_path: Path) -> None:
    photo, wanted, described = in_whole_numbers(kind, tmp_path)
    prepared = loader().prepare(photo, described)
    assert prepared.dtype == wanted.dtype == kind
    np.testing.assert_array_equal(prepared, wanted[0])


def prepare_in_node(photo: Image.Image, described: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    image = {"data": np.asarray(photo.convert("RGBA")).ravel().tolist(), "width": photo.width, "height": photo.height}
    command = ["node", "--input-type=module", "-e", IN_NODE, str(LOADERS / "load.mjs")]
    given = json.dumps({"image": image, "manifest": described})
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)


@needs_node
@pytest.mark.parametrize("kind", WHOLE)
def test_load_mjs_makes_whole_numbers_as_the_exporter_does(kind: str, tmp_path: Path) -> None:
    photo, wanted, described = in_whole_numbers(kind, tmp_path)
    done = prepare_in_node(photo, described)
    assert done.returncode == 0, done.stderr
    prepared = json.loads(done.stdout)
    assert (prepared["type"], prepared["dims"]) == (kind, [1, 3, 16, 16])
    assert prepared["data"] == wanted.ravel().tolist()


@needs_node
def test_load_mjs_names_a_type_that_it_cannot_make(tmp_path: Path) -> None:
    photo, _, described = in_whole_numbers("uint8", tmp_path)
    described["inputs"][0]["type"] = "int64"
    assert "this model takes int64" in prepare_in_node(photo, described).stderr


def loader() -> ModuleType:
    """load.py as a module."""
    found = importlib.util.spec_from_file_location("load", LOADERS / "load.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@needs_web
def test_load_mjs_gives_equal_outputs(resnet20: Made, pixels: np.ndarray, wanted: np.ndarray, tmp_path: Path) -> None:
    rgba = np.concatenate([pixels, np.full((*pixels.shape[:3], 1), 255, np.uint8)], axis=3)
    (tmp_path / "pixels.json").write_text(json.dumps(rgba.reshape(COUNT, -1).tolist()))
    done = in_node(resnet20.folder, resnet20.digest, tmp_path / "pixels.json")
    assert done.returncode == 0, done.stderr
    assert f"this bundle was measured with onnxruntime {onnxruntime.__version__}; this is " in done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), wanted, atol=1e-3)


@pytest.mark.parametrize("runner", [in_python, pytest.param(in_node, marks=needs_web)])
@pytest.mark.parametrize("kind", ["digest", "manifest", "model", "size"])
def test_loaders_refuse_changed_files(runner: object, copy: Path, resnet20: Made, kind: str, tmp_path: Path) -> None:
    digest = resnet20.digest
    name = "manifest.json" if kind == "manifest" else "model.onnx"
    content = bytearray((copy / name).read_bytes())
    if kind == "digest":
        digest = "0" * 64
    elif kind == "size":
        content += b"\0"
    else:
        content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    np.save(tmp_path / "images", np.zeros((0, 32, 32, 3), np.uint8))
    done = runner(copy, digest, tmp_path / "images.npy")  # type: ignore[operator]
    assert done.returncode != 0
    said = "does not have this digest" if kind in ("digest", "manifest") else "that the manifest describes"
    assert said in done.stderr


@pytest.mark.parametrize(
    ("latency", "installed", "warned"),
    [(None, "1.32.9", False), (None, "1.33.0", True), ("1.30.0", "1.32.0", True), ("1.33.1", "1.33.0", False)],
)
def test_load_py_warns_of_another_onnxruntime(
    latency: str | None, installed: str, warned: bool, recwarn: pytest.WarningsRecorder
) -> None:
    """The version that measured the latency counts, on a device too; without one that of the export."""
    environment = {"environment": {"onnxruntime": latency}} if latency else None
    made = {"evidence": {"latency": environment}, "provenance": {"versions": {"onnxruntime": "1.32.0"}}}
    loader()._warn_of_other_version(made, installed)
    assert [f"measured with onnxruntime {latency or '1.32.0'}; this is" in str(w.message) for w in recwarn] == (
        [True] if warned else []
    )


def test_loader_opens_the_formats_that_calibration_opens() -> None:
    assert loader().IMAGE_FORMATS == FORMATS
