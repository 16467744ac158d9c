"""Synthesise calibration images from the batch norm statistics of a network, for users without images.

Each BatchNormalization holds the mean and variance per channel of its training data. Pixels are optimised until a batch
of images gives these statistics. The start is a pattern of overlapping shapes with edges and a spectrum as in photos.
Sources: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", 2020; Yu & Bouganis,
"SVD-NAS", 2023, section 4; Lee, Mumford & Huang, "Occlusion models for natural images", 2001 (the start).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from trp_export.errors import UnsupportedError
from trp_export.graph.statistics import Statistics
from trp_export.inputs.images import ImageSet, InputShape
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.recover.distil import half_precision
from trp_export.recover.torch_graph import TorchGraph
from trp_export.runtime.partial import fixed_batch
from trp_export.system.progress import Share

Float32 = NDArray[np.float32]
# Makes the images (N, C, H, W) that optimisation starts from.
Start = Callable[[tuple[int, ...], torch.Generator], Tensor]

STEPS = 20
LEARNING_RATE = 0.1
# The statistics of fewer images do not resemble those of a data set; more images take more memory.
_LEAST_BATCH, _MOST_BATCH = 16, 128
_BATCH_ELEMENTS = 128 * 3 * 64 * 64
# Multiply-adds to spend where the user gives no number of images: about three minutes on one core.
_MACS = 5e12
_LEAST_IMAGES, _MOST_IMAGES = 64, 1024
# The start: the number of shapes in an image, and their sizes as shares of the image.
_SHAPES, _SMALLEST, _LARGEST = 60, 0.06, 0.5
# Mean and spread of pixels under the usual conventions: normalised, 0 to 1, 0 to 255, and 0 to 255 less the mean. The
# start has more edges than photos, so it matches best at about two thirds of the right spread: conventions that lie
# closer together than that cannot be distinguished.
_SCALES = ((0.0, 1.0), (0.45, 0.25), (115.0, 60.0), (0.0, 60.0))
# Added to variances, as a share of their mean over the channels of a layer.
_FLOOR = 1e-3


def affordable(macs: int) -> int:
    """The number of images to synthesise by default, for a network of this many multiply-adds."""
    return int(np.clip(_MACS / (2 * STEPS * max(macs, 1)), _LEAST_IMAGES, _MOST_IMAGES))


def synthetic_images(
    model: ir.Model,
    statistics: Mapping[str, Statistics],
    input_shape: InputShape,
    count: int,
    *,
    seed: int = 0,
    progress: Share = lambda share: None,
) -> ImageSet:
    """The images of `synthesise` as an image set with a note."""
    images = synthesise(model, statistics, input_shape, count, seed=seed, progress=progress)
    note = synthetic_note(count, seed)
    return ImageSet("synthetic images", images, None, Preprocessing(), images.shape[1], None, (note,))


def synthetic_note(count: int, seed: int) -> str:
    """What the user should know about synthetic images."""
    return (
        f"{count:,} images were synthesised from batch norm statistics, seed {seed}. Real images, even without labels, "
        "keep more accuracy"
    )


def synthesise(
    model: ir.Model,
    statistics: Mapping[str, Statistics],
    input_shape: InputShape,
    count: int,
    *,
    seed: int = 0,
    steps: int = STEPS,
    start: Start | None = None,
    progress: Share = lambda share: None,
) -> Float32:
    """Inputs (count, C, H, W) for which the values in `model` have these means and variances.

    `statistics` are by value name, as `norm_outputs` gives them for the model before batch norm is folded;
    `input_shape` is (N, C, H, W) with any N. `start` makes the first images, by default overlapping shapes. The same
    seed gives the same images on the same machine. Raises UnsupportedError without statistics, for inputs that are not
    images, and for models that cannot be run in torch.
    """
    if not statistics:
        raise UnsupportedError(
            "this model has no batch norm statistics to synthesise images from: batch norm was folded, absent or "
            "untrained.\nGive images with --calib PATH, or a checkpoint in which batch norm is not folded."
        )
    if len(model.graph.inputs) != 1 or len(input_shape) != 4 or not all(input_shape[1:]):
        raise UnsupportedError("images can be synthesised only for a model with one input of shape (N, C, H, W).")
    shape = tuple(int(extent or 0) for extent in input_shape[1:])
    start = start or overlapping_shapes
    size = fixed_batch(model) or int(np.clip(_BATCH_ELEMENTS // math.prod(shape), _LEAST_BATCH, _MOST_BATCH))
    goal = _Goal(model, statistics)
    scale = _nearest_scale(goal, start, (size, *shape), seed)
    batches, stopped = -(-count // size), Event()
    done = [0.0] * batches

    def make(index: int) -> Float32:
        def stepped(share: float) -> None:
            done[index] = share
            progress(sum(done) / batches)
            if stopped.is_set():
                raise InterruptedError

        return _match(goal, start, scale, (size, *shape), steps, _generator(seed, index + 1), stepped)

    # As in distillation, each core works on its own batch: the operators are too small for several cores.
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            return np.concatenate(list(pool.map(make, range(batches))))[:count]
        except BaseException:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Goal:
    """The loss: the divergence of two normal distributions per channel, averaged over channels and then layers.

    Raises UnsupportedError for models that cannot be run in torch.
    """

    def __init__(self, model: ir.Model, statistics: Mapping[str, Statistics]) -> None:
        self._graph = TorchGraph(model, list(statistics))
        self._graph.requires_grad_(False)
        self._wanted = [_moments(own) for own in statistics.values()]

    def __call__(self, images: Tensor) -> Tensor:
        with half_precision():
            values = self._graph(images)
        return torch.stack(
            [_divergence(value.float(), *wanted) for value, wanted in zip(values, self._wanted, strict=True)]
        ).mean()


def _divergence(value: Tensor, mean: Tensor, variance: Tensor, least: Tensor) -> Tensor:
    """Kullback-Leibler divergence of normal distributions, of the moments of values (n, c, *) from those wanted (c,).

    `least` is added to all variances, so that channels that hardly vary count for little.
    """
    axes = [axis for axis in range(value.ndim) if axis != 1]
    own, wanted = value.var(dim=axes, correction=0) + least, variance + least
    apart = (value.mean(dim=axes) - mean).square()
    return 0.5 * ((own + apart) / wanted - 1 - torch.log(own / wanted)).mean()


def _moments(own: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (c,), and the constant that is added to variances."""
    assert own.variance is not None
    return _tensor(own.mean), _tensor(own.variance), _tensor(_FLOOR * own.variance.mean() + 1e-12)


def _tensor(values: NDArray[np.float64] | np.float64) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _nearest_scale(goal: _Goal, start: Start, shape: tuple[int, ...], seed: int) -> tuple[float, float]:
    """Mean and spread of pixels under the convention for which the start has the smallest loss."""
    images = start(shape, _generator(seed, 0))
    with torch.no_grad():
        return min(_SCALES, key=lambda scale: float(goal(scale[0] + scale[1] * images)))


def _match(
    goal: _Goal,
    start: Start,
    scale: tuple[float, float],
    shape: tuple[int, ...],
    steps: int,
    random: torch.Generator,
    progress: Callable[[float], None],
) -> Float32:
    mean, spread = scale
    pixels = start(shape, random).requires_grad_()
    optimizer = torch.optim.Adam([pixels], LEARNING_RATE, betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _falling(step / steps)
        (pixels.grad,) = torch.autograd.grad(goal(mean + spread * pixels), [pixels])
        optimizer.step()
        progress((step + 1) / steps)
    return (mean + spread * pixels.detach()).numpy()


def overlapping_shapes(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Overlapping ellipses and rectangles of all sizes, with colours of zero mean and unit variance.

    Sizes are distributed so that the image looks the same at any distance (area to the power of -3/2).
    """
    count, channels, height, width = shape
    down, right = torch.arange(height)[:, None], torch.arange(width)[None, :]
    extent = math.sqrt(height * width)
    images = _colours(count, channels, random).expand(shape).clone()
    for _ in range(_SHAPES):
        share, top, left, angle, kind = torch.rand(5, count, 1, 1, generator=random)
        small, large = (_SMALLEST * extent) ** -2, (_LARGEST * extent) ** -2
        radius = (small + share * (large - small)) ** -0.5
        stretch = torch.exp(0.5 * torch.randn(count, 1, 1, generator=random))
        y, x, cos, sin = down - top * height, right - left * width, *_direction(angle)
        along, across = (y * cos + x * sin).abs() * stretch, (x * cos - y * sin).abs() / stretch
        ellipse, box = torch.hypot(along, across) < radius, torch.maximum(along, across) < 0.9 * radius
        covered = torch.where(kind < 0.5, ellipse, box)
        images = torch.where(covered[:, None], _colours(count, channels, random), images)
    return images


def _direction(angle: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cos(math.pi * angle), torch.sin(math.pi * angle)


def _colours(count: int, channels: int, random: torch.Generator) -> Tensor:
    """Mostly light and dark with a little colour, as in photos: (count, channels, 1, 1)."""
    light, tint = (torch.randn(count, size, 1, 1, generator=random) for size in (1, channels))
    return 0.94 * light + 0.34 * tint


def _falling(done: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * done))


def _generator(seed: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 2**20 + index)
