"""The page prepares images as trp_export.inputs.images does: the same bits.

Pillow scales across first, then down; from 13 on it turns that around where the height shrinks much more than the
width, which moves some pixels by one level. With one factor for both that happens to tiny or very narrow images alone.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.preprocessing import Colour, Preprocessing, Resize
from trp_export.ship.manifest import ManifestPreprocessing

MODULE = Path(__file__).parents[2] / "tools" / "web_demo" / "preprocess.mjs"

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="needs Node: apt-get install nodejs")

# Reads a case a line, answers with the input's bytes.
SCRIPT = """
import { createInterface } from "node:readline";
const { prepare } = await import(process.argv[1]);
for await (const line of createInterface({ input: process.stdin })) {
  const { width, height, data, preprocessing } = JSON.parse(line);
  const { input } = prepare({ width, height, data: Buffer.from(data, "base64") }, preprocessing);
  console.log(Buffer.from(input.buffer).toString("base64"));
}
"""
Prepare = Callable[[np.ndarray, dict[str, Any]], np.ndarray]


@pytest.fixture(scope="module")
def prepare() -> Iterator[Prepare]:
    """The page's function, running in Node. Takes RGB pixels (H, W, 3)."""
    command = ["node", "--input-type=module", "-e", SCRIPT, str(MODULE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdin is not None
        assert node.stdout is not None
        stdin, stdout = node.stdin, node.stdout

        def call(pixels: np.ndarray, preprocessing: dict[str, Any]) -> np.ndarray:
            height, width, _ = pixels.shape
            rgba = np.dstack([pixels, np.full((height, width), 255, np.uint8)])
            data = base64.b64encode(rgba.tobytes()).decode()
            case = {"width": width, "height": height, "data": data, "preprocessing": preprocessing}
            stdin.write(json.dumps(case) + "\n")
            stdin.flush()
            return np.frombuffer(base64.b64decode(stdout.readline()), np.float32)

        yield call
        stdin.close()


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    resize=st.one_of(st.none(), st.integers(1, 90), st.just("cover")),
    crop=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    colour=st.sampled_from(["rgb", "bgr", "grey"]),
    seed=st.integers(0, 1000),
)
@example(height=32, width=32, resize="cover", crop=(32, 32), colour="rgb", seed=0)
@example(height=1, width=90, resize="cover", crop=(60, 1), colour="grey", seed=0)
@settings(max_examples=80)
def test_prepare_gives_the_same_bits(
    prepare: Prepare,
    height: int,
    width: int,
    resize: int | str | None,
    crop: tuple[int, int],
    colour: Colour,
    seed: int,
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with mock.patch("trp_export.inputs.pictures._stretched", _across_then_down):
        found, expected = _both(prepare, pixels, resize, _fitting(height, width, resize, crop), colour)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (375, 500), (32, 32), (1080, 1920), (64, 64)])
@pytest.mark.parametrize(("resize", "crop"), [("cover", (32, 32)), (256, (224, 224)), ("cover", (224, 224))])
def test_prepare_gives_the_same_bits_for_photos(
    prepare: Prepare, size: tuple[int, int], resize: int | str, crop: tuple[int, int]
) -> None:
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found, expected = _both(prepare, pixels, resize, crop, "rgb")
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("scale", [1.0, 1 / 255, 1 / 256, 1 / 127.5, 0.017, 0.00392, 3.0])
def test_any_scale_gives_the_same_bits(prepare: Prepare, scale: float) -> None:
    pixels = np.arange(768, dtype=np.uint8).reshape(16, 16, 3)
    found, expected = _both(prepare, pixels, None, None, "rgb", scale)
    assert found.tobytes() == expected.tobytes()


def _both(
    prepare: Prepare,
    pixels: np.ndarray,
    resize: int | str | None,
    crop: tuple[int, int] | None,
    colour: Colour,
    scale: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The page's input and the exporter's."""
    grey = colour == "grey"
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if not grey else ((0.1307,), (0.3081,))
    chosen = Preprocessing(mean, std, None if resize in (None, "cover") else int(resize or 0), crop, scale, colour)
    if resize == "cover":
        assert crop is not None
        chosen = replace(chosen, crop=None, resize=Resize("cover", width=crop[1], height=crop[0]))
    steps = chosen.complete(len(mean), None)
    found = prepare(pixels, asdict(ManifestPreprocessing.of(steps, "NCHW")))
    images = ImageSet("images", pixels[None], None, chosen, len(mean), None, ())
    return found, images.batch(0, 1)[0]


def _across_then_down(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale one axis after the other."""
    bilinear = Image.Resampling.BILINEAR
    return image.resize((width, image.height), bilinear).resize((width, height), bilinear)


def _fitting(height: int, width: int, resize: int | str | None, crop: tuple[int, int]) -> tuple[int, int] | None:
    """The crop where it fits into the scaled image, else none."""
    if resize == "cover":
        return crop
    scale = 1.0 if resize is None else int(resize) / min(height, width)
    return crop if crop[0] <= int(height * scale) and crop[1] <= int(width * scale) else None
