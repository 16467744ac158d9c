"""Distil the compressed network from the original on images without labels: all factors and biases are trained.

The loss is the relative squared distance of the outputs plus, as a guide, that of the outputs of the layers both
networks share. Images are flipped, shifted and mixed: the original answers for whatever comes out. Some images are held
out; the weights that did best on them are kept, and they are never worse than the start.
Source: Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", 2022.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.divergence import agreement, divergence
from trp_export.calibration.taps import Tap, fixed_batch
from trp_export.errors import OptionError, UnsupportedError
from trp_export.graph.weights import set_value

if TYPE_CHECKING:
    from torch import Tensor

    from trp_export.recover.torch_graph import TorchGraph

Array = NDArray[Any]
Progress = Callable[[float], None]

BATCH_SIZE = 64
LEARNING_RATE = 1e-3
HELD_OUT = 1 / 8
_LEAST_IMAGES = 16
_GUIDE = 1.0
_WARM_UP = 0.05
_CHECKS = 12
# Checks without a better one after which nothing more is to be expected.
_PATIENCE = 4
_TIMED_STEPS = 5
_SOUND = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """New values of initializers by name, and what they did: divergence and agreement on held-out images.

    `steps` replays the run: with the same images, seed and threads it gives the same weights.
    """

    values: Mapping[str, Array]
    steps: int
    divergence_before: float
    divergence_after: float
    agreement_before: float
    agreement_after: float


def tune(
    original: ir.Model,
    compressed: ir.Model,
    images: Array,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = lambda share: None,
) -> Tuned:
    """Train `compressed` to answer as `original` does on `images` (N, C, H, W); neither model is changed.

    Give minutes, from which the number of steps follows by timing a few, or steps. Raises UnsupportedError for
    models that torch cannot stand in for, OptionError for too few images.
    """
    if len(images) < _LEAST_IMAGES:
        raise OptionError(f"tuning needs at least {_LEAST_IMAGES} images, not {len(images)}.")
    if fixed_batch(compressed) is not None:
        raise UnsupportedError("tuning needs a model that takes any number of images at a time; leave --tune out.")
    import torch

    if threads:
        torch.set_num_threads(threads)
    run = _Run(original, compressed, np.asarray(images, dtype=np.float32), seed)
    started = time.monotonic()
    if steps is None:
        steps = run.steps_in((minutes or 0.0) * 60 - (time.monotonic() - started))
    return run.train(steps, progress)


def apply_values(model: ir.Model, values: Mapping[str, Array]) -> None:
    """Set initializers by name, in place, those that the model has."""
    for name, array in values.items():
        if name in model.graph.initializers:
            set_value(model.graph.initializers[name], array)


class _Run:
    """One training: the two networks, the images split in two, and the best weights so far."""

    def __init__(self, original: ir.Model, compressed: ir.Model, images: Array, seed: int) -> None:
        import torch

        from trp_export.recover.torch_graph import TorchGraph

        outputs = [value.name or "" for value in original.graph.outputs]
        guides = _shared_layers(original, compressed)
        self._teacher = Tap(original, [original.graph.inputs[0].name or ""], [*outputs, *guides])
        self._student: TorchGraph = TorchGraph(compressed, self._teacher.outputs)
        self._outputs = outputs
        self._order = np.random.default_rng(seed)
        self._torch_seed = seed
        shuffled = images[self._order.permutation(len(images))]
        held_out = max(1, round(len(images) * HELD_OUT))
        self._held_out, self._images = shuffled[:held_out], shuffled[held_out:]
        self._wanted = self._teach(self._held_out)
        self._start = [weight.detach().clone() for weight in self._student.weights]
        with torch.no_grad():
            self._check_stand_in(compressed)

    def steps_in(self, seconds: float) -> int:
        """How many steps fit, by timing a few; the weights are then as they were."""
        import torch

        order, state = self._order, torch.get_rng_state()
        self._order = np.random.default_rng(0)
        optimizer = self._optimizer()
        self._step(optimizer)
        begun = time.monotonic()
        for _ in range(_TIMED_STEPS):
            self._step(optimizer)
        each = (time.monotonic() - begun) / _TIMED_STEPS
        self._order = order
        torch.set_rng_state(state)
        self._restore(self._start)
        return max(1, int(seconds / each))

    def train(self, steps: int, progress: Progress) -> Tuned:
        optimizer = self._optimizer()
        before = best = self._score()
        weights, unlucky = self._start, 0
        every = max(1, steps // _CHECKS)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * _schedule((step + 0.5) / steps)
            self._step(optimizer)
            progress((step + 1) / steps)
            if (step + 1) % every == 0 or step + 1 == steps:
                score = self._score()
                unlucky += 1
                # Agreement is what users see, but coarse: it must not fall, and divergence decides.
                if score[0] < best[0] and score[1] >= before[1]:
                    best, unlucky = score, 0
                    weights = [weight.detach().clone() for weight in self._student.weights]
                if unlucky > _PATIENCE:
                    break
        values = {} if weights is self._start else dict(zip(self._student.names, weights, strict=True))
        arrays = {name: tensor.numpy() for name, tensor in values.items()}
        return Tuned(arrays, steps, before[0], best[0], before[1], best[1])

    def _optimizer(self) -> Any:
        import torch

        return torch.optim.Adam(self._student.parameters(), lr=LEARNING_RATE)

    def _restore(self, weights: list[Tensor]) -> None:
        import torch

        with torch.no_grad():
            for own, saved in zip(self._student.weights, weights, strict=True):
                own.copy_(saved)

    def _teach(self, inputs: Array) -> dict[str, Array]:
        parts = [
            self._teacher({self._teacher.inputs[0]: inputs[start : start + BATCH_SIZE]})
            for start in range(0, len(inputs), BATCH_SIZE)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._teacher.outputs}

    def _learn(self, inputs: Array) -> dict[str, Array]:
        import torch

        with torch.no_grad():
            parts = [
                self._student(torch.from_numpy(inputs[start : start + BATCH_SIZE]))
                for start in range(0, len(inputs), BATCH_SIZE)
            ]
        return {
            name: torch.cat(part).numpy()
            for name, part in zip(self._teacher.outputs, zip(*parts, strict=True), strict=True)
        }

    def _score(self) -> tuple[float, float]:
        """Divergence and agreement on the held-out images."""
        got = self._learn(self._held_out)
        wanted = {name: self._wanted[name] for name in self._outputs}
        return divergence(wanted, got), agreement(wanted, got)

    def _step(self, optimizer: Any) -> None:
        import torch

        batch = augment(self._images[self._order.integers(0, len(self._images), BATCH_SIZE)], self._order)
        wanted = self._teach(batch)
        got = self._student(torch.from_numpy(batch))
        terms = [
            _distance(own, torch.from_numpy(wanted[name])) for own, name in zip(got, self._teacher.outputs, strict=True)
        ]
        count = len(self._outputs)
        loss: Any = sum(terms[:count])
        if terms[count:]:
            loss = loss + _GUIDE * sum(terms[count:]) / len(terms[count:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def _check_stand_in(self, compressed: ir.Model) -> None:
        """Raises UnsupportedError where torch does not compute what onnxruntime does."""
        tap = Tap(compressed, [compressed.graph.inputs[0].name or ""], self._outputs)
        probe = self._held_out[:BATCH_SIZE]
        reference, own = tap({tap.inputs[0]: probe}), self._learn(probe)
        for name, wanted in reference.items():
            gap = np.linalg.norm(own[name] - wanted) / max(float(np.linalg.norm(wanted)), 1e-30)
            if not gap < _SOUND:
                raise UnsupportedError(
                    f"torch gives {name} {gap:.2g} apart from onnxruntime on this model; leave --tune out."
                )


def augment(batch: Array, rng: np.random.Generator) -> Array:
    """Flip, shift by up to an eighth, and mix with one another: (n, C, H, W), or rows of features mixed only."""
    if batch.ndim == 4:
        batch = batch.copy()
        flipped = rng.random(len(batch)) < 0.5
        batch[flipped] = batch[flipped][..., ::-1]
        reach = batch.shape[2] // 8, batch.shape[3] // 8
        padded = np.pad(batch, ((0, 0), (0, 0), (reach[0],) * 2, (reach[1],) * 2), mode="reflect")
        for index in range(len(batch)):
            top, left = rng.integers(0, 2 * reach[0] + 1), rng.integers(0, 2 * reach[1] + 1)
            batch[index] = padded[index, :, top : top + batch.shape[2], left : left + batch.shape[3]]
    share = rng.random((len(batch), *[1] * (batch.ndim - 1))).astype(np.float32)
    # Half of the batch stays unmixed.
    share[rng.random(len(batch)) < 0.5] = 1.0
    return np.ascontiguousarray(share * batch + (1 - share) * batch[rng.permutation(len(batch))])


def _shared_layers(original: ir.Model, compressed: ir.Model) -> list[str]:
    """Outputs of the original's layers that the compressed model has under the same name."""
    present = {out.name for node in compressed.graph for out in node.outputs}
    outputs = {value.name for value in original.graph.outputs}
    return [
        node.outputs[0].name or ""
        for node in original.graph
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.outputs[0].name in present - outputs
    ]


def _distance(own: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance over the spread of what is wanted about its mean over the batch."""
    spread = (wanted - wanted.mean(dim=0, keepdim=True)).square().mean()
    return (own - wanted).square().mean() / (spread + 1e-12)


def _schedule(done: float) -> float:
    """Linear warm-up, then half a cosine to zero."""
    return min(done / _WARM_UP, 0.5 * (1 + float(np.cos(np.pi * done))))
