"""Preprocessing: values against the formulas written out, and texts and JSON that lead back to the same value."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trp_export.errors import LoadError, OptionError
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.pictures import bring_to_size
from trp_export.inputs.preprocessing import (
    Preprocessing,
    Resize,
    parse_crop,
    parse_resize,
    parse_scale,
    read_numbers,
    show_crop,
    show_scale,
    write_numbers,
)
from trp_export.inputs.spec import InputSpec

SIDES = st.integers(1, 2000)
RESIZES = st.one_of(
    SIDES,
    st.builds(Resize, st.sampled_from(["stretch", "cover"]), SIDES, SIDES),
    st.builds(Resize, st.just("letterbox"), SIDES, SIDES, st.integers(0, 255), st.sampled_from(["centre", "corner"])),
    SIDES.map(lambda side: Resize("multiple", side, side)),
)
POSITIVE = st.floats(1e-3, 255)


@st.composite
def preprocessings(draw: st.DrawFn) -> Preprocessing:
    scale = draw(st.none() | st.floats(1e-4, 10))
    mean = st.floats(-2, 2) if scale is None else st.floats(-255, 255)
    return Preprocessing(
        mean=draw(st.none() | st.lists(mean, min_size=1, max_size=3).map(tuple)),
        std=draw(st.none() | st.lists(POSITIVE, min_size=1, max_size=3).map(tuple)),
        resize=draw(st.none() | RESIZES),
        crop=draw(st.none() | st.tuples(SIDES, SIDES)),
        scale=scale,
        colour=draw(st.sampled_from([None, "rgb", "bgr", "grey"])),
    )


@given(RESIZES)
def test_resize_text_leads_back_to_the_value(resize: int | Resize) -> None:
    assert parse_resize(str(resize)) == resize


@given(SIDES, SIDES)
def test_crop_text_leads_back_to_the_value(height: int, width: int) -> None:
    assert parse_crop(show_crop((height, width))) == (height, width)


def test_scale_text_may_be_a_fraction() -> None:
    assert parse_scale("1/255") == 1 / 255
    assert show_scale(1 / 255) == "1/255"
    assert parse_scale(show_scale(0.0078125)) == 0.0078125
    assert read_numbers(write_numbers((0.485, 123.675))) == (0.485, 123.675)


@given(preprocessings())
def test_json_leads_back_to_the_value(steps: Preprocessing) -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(steps.to_json()))) == steps


@pytest.mark.parametrize(
    "wrong",
    [
        *(3, None, [], {"blur": 3}, {"mean": "0.5"}, {"mean": [[0.5]]}, {"mean": [float("nan")]}, {"mean": []}),
        *({"std": [0]}, {"resize": 1.5}, {"resize": True}, {"resize": "sideways"}, {"crop": [1]}, {"crop": 224}),
        *({"scale": "x"}, {"scale": 0}, {"colour": "red"}, {"mean": [0.1] * 100}, {"crop": [0, 4]}),
    ],
)
def test_damaged_json_is_refused(wrong: Any) -> None:
    with pytest.raises(LoadError, match="preprocessing"):
        Preprocessing.from_json(wrong)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "0x4", "-3", "3x", "letterbox:3", "letterbox:3x3:300", "letterbox:3x3:1:middle", "cover:3x3:4"),
        *("multiple:", "multiple:3x3", "stretch:3:3", "\u0663", "1e3", "99999x3", "letterbox:3x3:1:corner:1", "3\n"),
    ],
)
def test_unknown_resize_is_refused(text: str) -> None:
    with pytest.raises((ValueError, OptionError)):
        Preprocessing(resize=parse_resize(text))


@pytest.mark.parametrize("text", ["", "0", "1/0", "nan", "inf", "-1", "a/b", "1/2/3"])
def test_unknown_scale_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not"):
        parse_scale(text)


def test_mean_of_pixels_without_a_scale_is_refused() -> None:
    with pytest.raises(OptionError, match="belongs to pixels of 0"):
        Preprocessing(mean=(123.7, 116.3, 103.5))
    Preprocessing(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4), scale=1)


def feed(pixels: np.ndarray, steps: Preprocessing, spec: InputSpec | None = None) -> np.ndarray:
    """The inputs that uint8 images (N, H, W, C) become."""
    channels = spec.channels if spec is not None and spec.channels else pixels.shape[3]
    return ImageSet("made", pixels, None, steps, channels, None, (), (), spec).inputs


@given(
    preprocessings().map(lambda steps: Preprocessing(steps.mean, steps.std, scale=steps.scale, colour=steps.colour)),
    st.integers(0, 10**6),
)
def test_pixels_are_scaled_and_normalised_as_the_formula_says(steps: Preprocessing, seed: int) -> None:
    if any(values is not None and len(values) == 2 for values in (steps.mean, steps.std)):
        return
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    ordered = pixels.astype(np.float64)
    if steps.colour == "bgr":
        ordered = ordered[..., ::-1]
    if steps.colour == "grey":
        grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])
        ordered = np.repeat(grey[..., None], 3, axis=3).astype(np.float64)
    scale = 1 / 255 if steps.scale is None else steps.scale
    wanted = (ordered * scale - np.array(steps.mean or 0)) / np.array(steps.std or 1)
    np.testing.assert_allclose(
        feed(pixels, steps), wanted.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-4 * abs(wanted).max()
    )


def test_both_conventions_of_mean_and_std_agree() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    small = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    large = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), scale=1)
    np.testing.assert_allclose(feed(pixels, small), feed(pixels, large), atol=1e-5)


def test_layouts_hold_the_same_values() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 4, 3), dtype=np.uint8)
    first = feed(pixels, Preprocessing())
    for layout, order in (("NHWC", (0, 2, 3, 1)), ("CHW", None), ("HWC", None)):
        spec = InputSpec("x", layout=layout, channels=3, declared=(None,) * len(layout), shape=(None,) * len(layout))
        values = feed(pixels, Preprocessing(), spec)
        wanted = first.transpose(order) if order else first[0] if layout == "CHW" else first[0].transpose(1, 2, 0)
        np.testing.assert_array_equal(values, wanted)


def test_integer_inputs_get_pixels_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    spec = InputSpec("x", "uint8", layout="NHWC", channels=3)
    values = feed(pixels, Preprocessing(), spec)
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, pixels)
    signed = feed(pixels, Preprocessing(mean=(128.0,), scale=1), InputSpec("x", "int8", layout="NHWC", channels=3))
    np.testing.assert_array_equal(signed, (pixels.astype(int) - 128).astype(np.int8))


@pytest.mark.parametrize(
    ("dtype", "steps", "message"),
    [
        ("uint8", Preprocessing(scale=1 / 255), "makes values of 0 to 1"),
        ("int8", Preprocessing(), "whole numbers of -128 to 127"),
        ("uint8", Preprocessing(mean=(0.5,)), "takes pixels as they are"),
    ],
)
def test_preprocessing_that_integers_cannot_hold_is_refused(dtype: str, steps: Preprocessing, message: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    pixels[0, 0, 0], pixels[0, 0, 1] = 0, 255
    with pytest.raises(OptionError, match=message):
        feed(pixels, steps, InputSpec("x", dtype, layout="NCHW", channels=3))


def sized(width: int, height: int, steps: Preprocessing) -> Image.Image:
    return bring_to_size(Image.new("RGB", (width, height), (255, 255, 255)), steps, "image")


@given(width=st.integers(1, 60), height=st.integers(1, 60), to=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_letterbox_keeps_the_proportions_and_pads_the_rest(width: int, height: int, to: tuple[int, int]) -> None:
    for place in ("centre", "corner"):
        box = sized(width, height, Preprocessing(resize=Resize("letterbox", *to, 7, place)))
        assert box.size == to
        inside = np.argwhere(np.asarray(box)[:, :, 0] == 255)
        (top, left), (bottom, right) = inside.min(axis=0), inside.max(axis=0)
        filled = int(right - left + 1), int(bottom - top + 1)
        scale = min(to[0] / width, to[1] / height)
        assert all(abs(side - was * scale) <= 1 for side, was in zip(filled, (width, height), strict=True))
        assert set(np.unique(np.asarray(box))) <= {7, 255}
        margins = (left, to[0] - 1 - right), (top, to[1] - 1 - bottom)
        assert (left, top) == (0, 0) if place == "corner" else all(abs(a - b) <= 1 for a, b in margins)


@given(width=st.integers(1, 60), height=st.integers(1, 60), to=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_other_resizes_give_the_size_they_name(width: int, height: int, to: tuple[int, int]) -> None:
    assert sized(width, height, Preprocessing(resize=Resize("stretch", *to))).size == to
    assert sized(width, height, Preprocessing(resize=Resize("cover", *to))).size == to
    multiple = sized(width, height, Preprocessing(resize=Resize("multiple", 8, 8))).size
    assert all(
        side % 8 == 0 and abs(side - was) <= max(4, 8 - was)
        for side, was in zip(multiple, (width, height), strict=True)
    )
    assert min(sized(width, height, Preprocessing(resize=to[0])).size) == to[0]


def test_complete_spells_out_every_choice() -> None:
    full = Preprocessing(mean=(0.5,)).complete(3, (8, 6))
    assert full == Preprocessing((0.5,) * 3, (1.0,) * 3, Resize("cover", 6, 8), None, 1 / 255, "rgb")
    assert full.complete(3, (8, 6)) == full
    assert Preprocessing().complete(1, None).colour == "grey"
    assert Preprocessing().complete(3, None, integer=True).scale == 1
    assert Preprocessing().complete(3, None, takes_pixels=True).scale == 1
    assert Preprocessing(mean=(0.5,)).complete(3, None, takes_pixels=True).scale == 1 / 255
    with pytest.raises(OptionError, match="does not fit an input of 1 channels"):
        Preprocessing(colour="bgr").complete(1, None)
    with pytest.raises(OptionError, match="2 numbers for 3 channels"):
        Preprocessing(std=(1, 2)).complete(3, None)
