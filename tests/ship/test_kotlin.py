"""The Kotlin loader compiles, checks what it opens and prepares images as Python does.

onnxruntime's own classes are stood in for by three small ones; org.json is Android's.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from trp_export.inputs.images import load_images
from trp_export.inputs.preprocessing import Preprocessing

from .conftest import IMAGES, Made

HERE = Path(__file__).parent / "kotlin"
JSON = Path("/usr/share/java/json-android.jar")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("kotlinc") and shutil.which("javac") and JSON.is_file()),
        reason="needs kotlinc, javac and org.json: apt-get install kotlin libandroid-json-org-java",
    ),
]


@pytest.fixture(scope="module")
def program(resnet20: Made, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the bundle's own Load.kt."""
    folder = tmp_path_factory.mktemp("kotlin")
    stand_ins = [str(path) for path in (HERE / "ai").rglob("*.java")]
    subprocess.run(["javac", "-d", str(folder), *stand_ins], check=True)
    sources = [str(resnet20.folder / "Load.kt"), str(HERE / "Main.kt")]
    jar = folder / "load.jar"
    compiler = ["kotlinc", "-cp", f"{folder}:{JSON}", *sources, "-include-runtime", "-d", str(jar)]
    done = subprocess.run(compiler, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ["java", "-cp", f"{jar}:{folder}:{JSON}", "MainKt"]


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    image = np.load(IMAGES)["images"][0].astype(np.int64)
    packed = (255 << 24 | image[..., 0] << 16 | image[..., 1] << 8 | image[..., 2]).astype(np.uint32).astype(np.int32)
    (tmp_path / "pixels").write_text(" ".join(map(str, (32, 32, *packed.ravel()))))
    return tmp_path / "pixels"


def run(
    program: list[str], folder: Path, digest: str, pixels: Path, kind: str = "float32"
) -> subprocess.CompletedProcess[str]:
    command = [*program, str(folder), digest, str(pixels), kind]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_it_opens_the_model_and_prepares_images_as_python_does(
    program: list[str], resnet20: Made, pixels: Path
) -> None:
    done = run(program, resnet20.folder, resnet20.digest, pixels)
    assert done.returncode == 0, done.stderr
    size, shape, kind, values = done.stdout.splitlines()
    assert int(size) == (resnet20.folder / "model.onnx").stat().st_size
    assert (shape, kind) == ("1 3 32 32", "FLOAT")
    assert f"measured with onnxruntime {onnxruntime.__version__}; this is 1.2.3" in done.stderr
    steps = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    wanted = load_images(IMAGES, steps, input_shape=(None, 3, 32, 32)).batch(0, 1)
    np.testing.assert_allclose(np.array(values.split(), np.float32), wanted.ravel(), atol=1e-5)


def test_it_makes_bytes_where_the_model_takes_them(program: list[str], resnet20: Made, pixels: Path) -> None:
    """Rounded as by Python, a byte of uint8 as the byte of int8 with the same bits."""
    whole = np.rint(
        [float(value) for value in run(program, resnet20.folder, resnet20.digest, pixels).stdout.split()[6:]]
    )
    for kind in ("uint8", "int8"):
        done = run(program, resnet20.folder, resnet20.digest, pixels, kind)
        assert done.returncode == 0, done.stderr
        _, shape, made, values = done.stdout.splitlines()
        assert (shape, made) == ("1 3 32 32", kind.upper())
        np.testing.assert_array_equal(np.array(values.split(), np.int8), whole.astype(np.int8))
    assert "this model takes int64" in run(program, resnet20.folder, resnet20.digest, pixels, "int64").stderr


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
def test_what_was_changed_is_refused(
    program: list[str], resnet20: Made, pixels: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(resnet20.folder, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    done = run(program, folder, resnet20.digest, pixels)
    assert done.returncode != 0
    assert "IllegalArgumentException" in done.stderr
