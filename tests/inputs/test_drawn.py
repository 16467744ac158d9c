"""Drawn images: their statistics, their scale, and the layouts and types of inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import as_samples

from trp_export.calibration.held_out import split_samples
from trp_export.inputs.drawn import USUAL_SCALES, PixelScale, draw_shapes, drawn_images, pixel_scales
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.preprocessing import SCALE, Preprocessing
from trp_export.inputs.spec import InputSpec

RGB = InputSpec.of_images((None, 3, 20, 24))
PIXELS = InputSpec("image", "uint8", (None, 20, 24, 3), (None, 20, 24, 3), (None,) * 4, "NHWC", 3)


def test_shapes_have_zero_mean_and_unit_variance_over_many_images() -> None:
    images = draw_shapes((400, 3, 16, 16), np.random.default_rng(0))
    assert abs(images.mean()) < 0.1
    assert 0.9 < images.std() < 1.1


def test_shapes_vary_less_between_neighbours_than_over_the_image() -> None:
    images = draw_shapes((50, 3, 32, 32), np.random.default_rng(0))
    assert np.diff(images, axis=3).std() < images.std(axis=(2, 3)).mean()


def test_colours_of_a_pixel_resemble_one_another() -> None:
    images = draw_shapes((50, 3, 16, 16), np.random.default_rng(0))
    assert np.corrcoef(images[:, 0].ravel(), images[:, 1].ravel())[0, 1] > 0.7


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_shapes_of_any_size_are_finite(channels: int, height: int, width: int, seed: int) -> None:
    images = draw_shapes((2, channels, height, width), np.random.default_rng(seed))
    assert images.shape == (2, channels, height, width)
    assert np.isfinite(images).all()


def test_a_seed_repeats_the_images() -> None:
    first, same, other = (drawn_images(RGB, USUAL_SCALES, 4, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).mean() > 0.1


def test_the_scale_follows_the_preprocessing() -> None:
    """The pixels 115 ± 60 through the same steps that real images take."""
    steps = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
    (scale,) = pixel_scales(RGB, steps)
    assert steps.mean is not None
    assert steps.std is not None
    for channel in range(3):
        low, high = ((pixel * SCALE - steps.mean[channel]) / steps.std[channel] for pixel in (55, 175))
        assert scale.mean[channel] == pytest.approx((low + high) / 2)
        assert scale.spread[channel] == pytest.approx((high - low) / 2)


def test_without_preprocessing_every_usual_scale_is_possible() -> None:
    assert pixel_scales(RGB, Preprocessing()) == USUAL_SCALES
    images = drawn_images(RGB, USUAL_SCALES, 8, 0)
    assert images[2].max() > 50
    assert np.abs(images[[0, 1, 4, 7]]).max() < 10


@pytest.mark.parametrize("count", [16, 64, 256])
def test_images_to_fit_to_and_held_out_images_have_every_scale(count: int) -> None:
    scales = [PixelScale((10.0**power,), (0.0,)) for power in range(4)]
    images = drawn_images(RGB, scales, count, 0)
    split = split_samples(as_samples(ImageSet("drawn", images, None, Preprocessing(), 3, None, (), as_is=True)))
    for part in (split.fitting, split.held_out):
        assert part is not None
        values = next(iter(part.batch(0, len(part)).arrays.values()))
        assert set(np.unique(values)) == {1, 10, 100, 1000}


def test_inputs_of_whole_numbers_get_pixels() -> None:
    (scale,) = pixel_scales(PIXELS, Preprocessing())
    assert scale == PixelScale((115.0,) * 3, (60.0,) * 3)
    images = drawn_images(PIXELS, (scale,), 5, 0)
    assert images.shape == (5, 20, 24, 3)
    assert images.dtype == np.uint8
    assert images.min() < 30
    assert images.max() > 200
