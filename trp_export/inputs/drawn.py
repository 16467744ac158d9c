"""Draw images for users without images: overlapping shapes with edges and a spectrum as in photos.

Source: Lee, Mumford & Huang, "Occlusion models for natural images", 2001.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trp_export.inputs.preprocessing import Preprocessing
from trp_export.inputs.spec import InputSpec

Float32 = NDArray[np.float32]

# The number of shapes in an image, and their sizes as shares of the image.
_SHAPES, _SMALLEST, _LARGEST = 60, 0.06, 0.5
# Mean and spread of pixels of 0 to 255. The shapes have more edges than photos, so they resemble them best at about two
# thirds of the right spread: conventions that lie closer together than that cannot be distinguished.
_MEAN, _SPREAD = 115.0, 60.0
# Photos differ in exposure: mean pixels as shares of 255, and contrasts as shares of a spread of 64.
_DARKEST, _BRIGHTEST, _FLATTEST, _HARDEST = 0.1, 0.9, 0.03, 1.5


@dataclass(frozen=True, slots=True)
class PixelScale:
    """The mean and the spread of each channel (channels,), or of all, as a network takes images."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]

    def apply(self, images: Float32) -> Float32:
        """Images (n, c, h, w) of zero mean and unit variance -> images of this mean and spread."""
        mean, spread = (np.asarray(values, dtype=np.float32)[:, None, None] for values in (self.mean, self.spread))
        return mean + spread * images


# The usual conventions: normalised, 0 to 1, 0 to 255, and 0 to 255 less the mean.
USUAL_SCALES = tuple(
    PixelScale((mean,), (spread,)) for mean, spread in ((0.0, 1.0), (0.45, 0.25), (115.0, 60.0), (0.0, 60.0))
)


def pixel_scales(spec: InputSpec, preprocessing: Preprocessing) -> tuple[PixelScale, ...]:
    """The one scale that the input or the preprocessing tells, else all usual ones."""
    if (preprocessing.mean, preprocessing.std, preprocessing.scale) == (None, None, None) and not (
        spec.is_integer or spec.takes_pixels
    ):
        return USUAL_SCALES
    steps = preprocessing.complete(
        spec.channels or 3, spec.size, integer=spec.is_integer, takes_pixels=spec.takes_pixels
    )
    scale, means, stds = steps.scale or 1.0, steps.mean or (0.0,), steps.std or (1.0,)
    mean = tuple((_MEAN * scale - own) / std for own, std in zip(means, stds, strict=True))
    return (PixelScale(mean, tuple(_SPREAD * scale / std for std in stds)),)


def drawn_images(spec: InputSpec, scales: Sequence[PixelScale], count: int, seed: int) -> NDArray[np.generic]:
    """`count` images in the layout and the type of an image input of known size, with the scales in turn.

    The samples lie along the first axis, which an input without a batch lacks otherwise.
    """
    height, width = spec.size or (1, 1)
    random = np.random.default_rng(seed)
    shapes = _expose(draw_shapes((count, spec.channels or 3, height, width), random), random)
    turns = scale_turns(count, len(scales))
    images = np.concatenate([scales[turn].apply(shapes[[index]]) for index, turn in enumerate(turns)])
    if spec.is_integer:
        images = np.rint(images).clip(0, min(255, np.iinfo(spec.numpy_dtype).max))
    if spec.layout in ("NHWC", "HWC"):
        images = images.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images.astype(spec.numpy_dtype))


def scale_turns(count: int, scales: int) -> NDArray[np.intp]:
    """Which scale each image has. Every n-th is held out: with a plain cycle these might all have one scale."""
    places = np.arange(count)
    return np.asarray((places + places // scales) % scales, dtype=np.intp)


def _expose(images: Float32, random: np.random.Generator) -> Float32:
    """Give each image a brightness and a contrast of its own, within what pixels can hold."""
    count = len(images)
    mean = 255 * random.uniform(_DARKEST, _BRIGHTEST, count)
    contrast = 64 * np.exp(random.uniform(math.log(_FLATTEST), math.log(_HARDEST), count))
    for image, light, spread in zip(images, mean, contrast, strict=True):
        image[:] = ((light + spread * image).clip(0, 255) - _MEAN) / _SPREAD
    return images


def draw_shapes(shape: tuple[int, ...], random: np.random.Generator) -> Float32:
    """Overlapping ellipses and rectangles of all sizes, with colours of zero mean and unit variance: (n, c, h, w).

    Sizes are distributed so that the image looks the same at any distance (area to the power of -3/2).
    """
    images = np.empty(shape, dtype=np.float32)
    for image in images:
        image[:] = _colour(len(image), random)
        for _ in range(_SHAPES):
            _draw(image, random)
    return images


def _draw(image: Float32, random: np.random.Generator) -> None:
    """One ellipse or rectangle over what is there; just its surroundings are computed."""
    channels, height, width = image.shape
    extent = math.sqrt(height * width)
    size, top, left, turn, kind = random.random(5)
    small, large = (_SMALLEST * extent) ** -2, (_LARGEST * extent) ** -2
    radius, stretch = (small + size * (large - small)) ** -0.5, math.exp(0.5 * random.standard_normal())
    colour = _colour(channels, random)
    reach = math.sqrt(2) * radius * max(stretch, 1 / stretch)
    rows, columns = (_span(place * size, reach, size) for place, size in ((top, height), (left, width)))
    y, x = np.ogrid[rows, columns]
    y, x = y - top * height, x - left * width
    cos, sin = math.cos(math.pi * turn), math.sin(math.pi * turn)
    along, across = np.abs(y * cos + x * sin) * stretch, np.abs(x * cos - y * sin) / stretch
    covered = np.hypot(along, across) < radius if kind < 0.5 else np.maximum(along, across) < 0.9 * radius
    part = image[:, rows, columns]
    part[:] = np.where(covered, colour, part)


def _span(centre: float, reach: float, size: int) -> slice:
    return slice(max(0, math.floor(centre - reach)), min(size, math.ceil(centre + reach) + 1))


def _colour(channels: int, random: np.random.Generator) -> Float32:
    """Mostly light and dark with a little colour, as in photos: (channels, 1, 1)."""
    light, tint = random.standard_normal(1), random.standard_normal(channels)
    return np.asarray(0.94 * light + 0.34 * tint, dtype=np.float32)[:, None, None]
