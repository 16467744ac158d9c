"""Synthesise calibration images from the batch norm statistics of a network, for users without images.

Each BatchNormalization holds the mean and variance per channel of its training data. Pixels are optimised until a batch
of images gives these statistics. The start is drawn (`trp_export.inputs.drawn`).
Sources: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", 2020; Yu & Bouganis,
"SVD-NAS", 2023, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from trp_export.calibration.memory import batches_at_once
from trp_export.errors import UnsupportedError
from trp_export.graph.shapes import infer_value_shapes
from trp_export.graph.statistics import Statistics
from trp_export.inputs.drawn import USUAL_SCALES, PixelScale, draw_shapes
from trp_export.inputs.images import InputShape
from trp_export.recover.distil import half_precision
from trp_export.recover.torch_graph import TorchGraph, workers
from trp_export.runtime.partial import fixed_batch
from trp_export.system.progress import Share

Float32 = NDArray[np.float32]
# Makes the images (N, C, H, W) that optimisation starts from.
Start = Callable[[tuple[int, ...], np.random.Generator], Float32]

STEPS = 20
LEARNING_RATE = 0.1
# The statistics of fewer images do not resemble those of a data set; more images take more memory.
_LEAST_BATCH, _MOST_BATCH = 16, 128
_BATCH_ELEMENTS = 128 * 3 * 64 * 64
# Multiply-adds to spend where the user gives no number of images: about three minutes on one core. A value that the
# network makes on the way takes as long as many of them: 250 in an activation behind a depthwise conv.
_MACS = 5e12
_MACS_OF_A_VALUE = 250
_LEAST_IMAGES, _MOST_IMAGES = 64, 1024
# Added to variances, as a share of their mean over the channels of a layer.
_FLOOR = 1e-3


@dataclass(frozen=True, slots=True)
class Recipe:
    """How images are made: the number of steps, and what makes the first images, of zero mean and unit variance."""

    steps: int = STEPS
    start: Start = draw_shapes


def affordable(macs: int, values: int = 0) -> int:
    """The number of images to synthesise by default, for a network that does this many multiply-adds and makes so many
    values."""
    work = macs + _MACS_OF_A_VALUE * values
    return int(np.clip(_MACS / (2 * STEPS * max(work, 1)), _LEAST_IMAGES, _MOST_IMAGES))


def synthesise(
    model: ir.Model,
    statistics: Mapping[str, Statistics],
    input_shape: InputShape,
    count: int,
    *,
    seed: int = 0,
    recipe: Recipe = Recipe(),
    scales: Sequence[PixelScale] = USUAL_SCALES,
    progress: Share = lambda share: None,
) -> Float32:
    """Inputs (count, C, H, W) for which the values in `model` have these means and variances.

    `statistics` are by value name, as `norm_outputs` gives them for the model before batch norm is folded;
    `input_shape` is (N, C, H, W) with any N. Of the `scales` the one is taken that fits the statistics best. The same
    seed gives the same images on the same machine.
    Raises UnsupportedError without statistics, for inputs that are not images, and for models that cannot be run in
    torch.
    """
    if not statistics:
        raise UnsupportedError(
            "this model has no batch norm statistics to synthesise images from: batch norm was folded, absent or "
            "untrained.\nGive images with --calib PATH, or a checkpoint in which batch norm is not folded."
        )
    if len(model.graph.inputs) != 1 or len(input_shape) != 4 or not all(input_shape[1:]):
        raise UnsupportedError("images can be synthesised only for a model with one input of shape (N, C, H, W).")
    shape = tuple(int(extent or 0) for extent in input_shape[1:])
    size = fixed_batch(model) or int(np.clip(_BATCH_ELEMENTS // math.prod(shape), _LEAST_BATCH, _MOST_BATCH))
    goal = _Goal(model, statistics)
    scale = _nearest_scale(goal, recipe.start, scales, (size, *shape), seed)
    batches, stopped = -(-count // size), Event()
    done = [0.0] * batches

    def make(index: int) -> Float32:
        def stepped(share: float) -> None:
            done[index] = share
            progress(sum(done) / batches)
            if stopped.is_set():
                raise InterruptedError

        return _match(goal, recipe, scale, (size, *shape), _generator(seed, index + 1), stepped)

    # As in distillation, each core works on its own batch, where memory holds as many: the operators are too small for
    # several cores.
    threads = torch.get_num_threads()
    shapes = infer_value_shapes(model, {model.graph.inputs[0].name or "": (1, *shape)})
    at_once = batches_at_once(model, shapes, size, threads)
    with workers(at_once, threads // at_once) as pool:
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
            [_divergence(value, *wanted) for value, wanted in zip(values, self._wanted, strict=True)]
        ).mean()


def _divergence(value: Tensor, mean: Tensor, variance: Tensor, least: Tensor) -> Tensor:
    """Kullback-Leibler divergence of normal distributions, of the moments of values (n, c, *) from those wanted (c,).

    `least` is added to all variances, so that channels that hardly vary count for little.
    """
    moments: tuple[Tensor, Tensor] = _ChannelMoments.apply(value)
    own, wanted = moments[1] + least, variance + least
    return 0.5 * ((own + (moments[0] - mean).square()) / wanted - 1 - torch.log(own / wanted)).mean()


class _ChannelMoments(torch.autograd.Function):
    """Mean and variance of values (n, c, *) by channel, in float32.

    torch's own variance takes as long as all convs of a small network, and so do its gradient and that of the mean.
    """

    @staticmethod
    def forward(context: Any, value: Tensor) -> tuple[Tensor, Tensor]:
        axes = [axis for axis in range(value.ndim) if axis != 1]
        mean = value.float().mean(dim=axes)
        apart = value.float() - _by_channel(mean, value)
        context.save_for_backward(value, mean)
        return mean, apart.square_().mean(dim=axes)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        value, mean = context.saved_tensors
        of_mean, of_variance = (gradient * (value.shape[1] / value.numel()) for gradient in gradients)
        result: Tensor = (value.float() - _by_channel(mean, value)).mul_(_by_channel(2 * of_variance, value))
        return result.add_(_by_channel(of_mean, value)).to(value.dtype)


def _by_channel(numbers: Tensor, value: Tensor) -> Tensor:
    """(c,) -> (1, c, 1, ...), as many axes as the value has."""
    return numbers.view(1, -1, *(1,) * (value.ndim - 2))


def _moments(own: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (c,), and the constant that is added to variances."""
    assert own.variance is not None
    return _tensor(own.mean), _tensor(own.variance), _tensor(_FLOOR * own.variance.mean() + 1e-12)


def _tensor(values: NDArray[np.float64] | np.float64) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _nearest_scale(
    goal: _Goal, start: Start, scales: Sequence[PixelScale], shape: tuple[int, ...], seed: int
) -> PixelScale:
    """The scale for which the start has the smallest loss."""
    if len(scales) == 1:
        return scales[0]
    images = start(shape, _generator(seed, 0))
    with torch.no_grad():
        return min(scales, key=lambda scale: float(goal(torch.from_numpy(scale.apply(images)))))


def _match(
    goal: _Goal,
    recipe: Recipe,
    scale: PixelScale,
    shape: tuple[int, ...],
    random: np.random.Generator,
    progress: Callable[[float], None],
) -> Float32:
    mean, spread = (torch.tensor(values)[:, None, None] for values in (scale.mean, scale.spread))
    pixels = torch.from_numpy(recipe.start(shape, random)).requires_grad_()
    optimizer = torch.optim.Adam([pixels], LEARNING_RATE, betas=(0.9, 0.99))
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _falling(step / recipe.steps)
        (pixels.grad,) = torch.autograd.grad(goal(mean + spread * pixels), [pixels])
        optimizer.step()
        progress((step + 1) / recipe.steps)
    return (mean + spread * pixels.detach()).numpy()


def _falling(done: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * done))


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng((seed, index))
