"""Train several small networks side by side on one GPU.

A small network leaves most of a GPU idle, and its hundreds of short kernels take longer to launch than to run. So each
network's whole step, from drawing the batch to the update, is captured as a CUDA graph and replayed on a stream of its
own. On a CPU the same steps run one after the other.

The recipe is that of `trp-train --amp --schedule cosine --nesterov --ema`, with a warm-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from train_cifar_resnet import learning_rate

MARGIN = 4
WARM_UPS = 3
MOST_EPOCHS = 1_000


class Views:
    """Images on the device, of which every crop and flip has a number: its view.

    Images are padded by 4 pixels. Crops start where the sum of the two offsets is even, which gives 41 places, each
    as it is and mirrored. A teacher can then answer every view once, before its students train.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, mean: Tensor, std: Tensor, device: torch.device) -> None:
        normalised = (pixels.float() / 255 - mean) / std
        self.padded = nn.functional.pad(normalised, (0, 0, MARGIN, MARGIN, MARGIN, MARGIN)).to(device)
        self.labels = labels.to(device)
        places = [
            (top, left, mirrored)
            for top in range(2 * MARGIN + 1)
            for left in range(2 * MARGIN + 1)
            for mirrored in (0, 1)
            if (top + left) % 2 == 0
        ]
        self.count = len(places)
        self.plain = places.index((MARGIN, MARGIN, 0))
        self._top, self._left, self._mirrored = torch.tensor(places, device=device).T.contiguous()
        self._across = torch.arange(pixels.shape[2], device=device)
        self._down = torch.arange(pixels.shape[1], device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, images: Tensor, views: Tensor) -> Tensor:
        """The pixels (b, 3, h, w) of these views of these images, in channels-last memory."""
        mirrored, left, top = (values[views][:, None] for values in (self._mirrored, self._left, self._top))
        columns = left + torch.where(mirrored == 1, self._across.flip(0), self._across)
        rows = top + self._down
        return self.padded[images[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


# Of the network, the pixels (b, 3, h, w), the labels, and which views of which images they are.
Loss = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Stochastic gradient descent with Nesterov momentum; `average` is the share that a step keeps of the average."""

    epochs: int = 40
    batch: int = 256
    peak: float = 0.2
    weight_decay: float = 5e-4
    momentum: float = 0.9
    average: float = 0.998


@dataclass(slots=True)
class Trainee:
    """A network, its loss, and the seed of its order and views. `module` holds the averaged weights after training.

    `method` adds a method of `training`, such as C-SGD, to the optimizer. `first_steps` steps are taken on their own
    before the others: those in which a method decides something, which a captured step cannot do.
    """

    name: str
    module: nn.Module
    loss: Loss
    seed: int
    method: Callable[[torch.optim.Optimizer], object] | None = None
    first_steps: int = 0
    losses: list[float] = field(default_factory=list)
    attached: Any = None  # what `method` returned


def train(
    trainees: Sequence[Trainee], views: Views, recipe: Recipe, report: Callable[[str], None], until: float | None
) -> int:
    """Train all of them for the same number of epochs: the recipe's, or as many as fit until then (perf_counter).

    Returns the number of epochs.
    """
    steps = len(views) // recipe.batch
    rates = torch.zeros(steps * MOST_EPOCHS, device=views.labels.device)
    runs = [_Run(trainee, views, recipe, rates) for trainee in trainees]
    epochs, threads = recipe.epochs, _faster_threads(runs, report)
    if until is not None:
        each = _seconds_per_step(runs, threads) * steps
        epochs = max(1, min(MOST_EPOCHS, int((until - time.perf_counter()) / each)))
        report(f"{each:.2f} s an epoch: {epochs} epochs")
    total = steps * epochs
    rates[:total] = torch.tensor([learning_rate(step / total, recipe.peak) for step in range(total)])
    started = time.perf_counter()
    for epoch in range(epochs):
        for run in runs:
            run.begin_epoch()
        _take_steps(runs, steps, threads)
        for run in runs:
            run.trainee.losses.append(run.end_epoch() / steps)
        if epoch < 2 or epoch % 10 == 9 or epoch == epochs - 1:
            losses = ", ".join(f"{trainee.name} {trainee.losses[-1]:.3f}" for trainee in trainees)
            report(f"epoch {epoch + 1} of {epochs}, {time.perf_counter() - started:.0f} s: {losses}")
    for run in runs:
        run.end()
    return epochs


def _take_steps(runs: Sequence[_Run], steps: int, threads: int) -> None:
    """Take steps of all, from one thread or from one for each network: launching a graph takes time as well."""
    if threads == 1:
        for _ in range(steps):
            for run in runs:
                run.step()
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda run: run.steps(steps), runs))


def _faster_threads(runs: Sequence[_Run], report: Callable[[str], None]) -> int:
    """The number of threads with which some steps take less time."""
    if not runs[0].is_on_gpu:
        return 1
    seconds = {threads: _seconds_per_step(runs, threads) for threads in (1, len(runs))}
    report(", ".join(f"{1e3 * value:.1f} ms a step with {threads} threads" for threads, value in seconds.items()))
    return min(seconds, key=seconds.__getitem__)


def _seconds_per_step(runs: Sequence[_Run], threads: int, steps: int = 40) -> float:
    """How long a step of all of them takes, from some steps that are undone."""
    for run in runs:
        run.begin_epoch()
    started = time.perf_counter()
    _take_steps(runs, steps, threads)
    for run in runs:
        run.end_epoch()
    seconds = (time.perf_counter() - started) / steps
    for run in runs:
        run.restart()
    return seconds


class _Run:
    """The state of one network's training on the device, and its captured step."""

    def __init__(self, trainee: Trainee, views: Views, recipe: Recipe, rates: Tensor) -> None:
        self.trainee, self._views, self._recipe, self._rates = trainee, views, recipe, rates
        device = views.labels.device
        self._module = trainee.module.to(device).to(memory_format=torch.channels_last).train()
        self._parameters = [tensor for tensor in self._module.parameters() if tensor.requires_grad]
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._tensors = [
            *self._parameters,
            *(buffer for buffer in self._module.buffers() if buffer.is_floating_point()),
        ]
        self._average = [tensor.detach().clone() for tensor in self._tensors]
        self._rate = torch.tensor(0.0, device=device)  # A tensor, so that a captured step follows the schedule.
        self._optimizer = torch.optim.SGD(
            self._parameters, self._rate, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True, fused=True
        )
        if trainee.method is not None:
            trainee.attached = trainee.method(self._optimizer)
        self._generator = torch.Generator(device).manual_seed(trainee.seed)
        self._steps = len(views) // recipe.batch
        shape = (self._steps, recipe.batch)
        self._images = torch.zeros(shape, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(shape, dtype=torch.int64, device=device)
        self._number = torch.zeros(1, dtype=torch.int64, device=device)  # of the step, over all epochs
        self._total = torch.zeros((), device=device)
        self.is_on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream() if self.is_on_gpu else None  # type: ignore[no-untyped-call]
        self._first_steps()
        self._start = [tensor.detach().clone() for tensor in self._tensors]
        self._graph = self._captured(self._stream) if self._stream is not None else None
        self.restart()

    def begin_epoch(self) -> None:
        """Draw the order and the views of an epoch."""
        device, size = self._images.device, self._images.numel()
        order = torch.randperm(len(self._views), generator=self._generator, device=device)[:size]
        self._images.copy_(order.reshape(self._images.shape))
        self._drawn.copy_(torch.randint(self._views.count, self._drawn.shape, generator=self._generator, device=device))
        self._total.zero_()
        self._synchronise()

    def step(self) -> None:
        if self._graph is None:
            self._take_step()
        else:
            with torch.cuda.stream(self._stream):
                self._graph.replay()

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def end_epoch(self) -> float:
        """The sum of the losses of the epoch."""
        self._synchronise()
        return float(self._total)

    def end(self) -> None:
        """Put the average in the place of the weights."""
        self._copy(self._average)

    def restart(self) -> None:
        """Undo all steps but the first ones."""
        self._copy(self._start)
        torch._foreach_copy_(self._average, self._start)
        for state in self._optimizer.state.values():
            state["momentum_buffer"].zero_()
        self._number.zero_()
        self._synchronise()

    def _first_steps(self) -> None:
        if self.trainee.first_steps:
            self.begin_epoch()
        for _ in range(self.trainee.first_steps):
            self._take_step()

    def _captured(self, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._take_step()
        self._synchronise()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._take_step()
        return graph

    def _take_step(self) -> None:
        recipe = self._recipe
        row = self._number % self._steps
        images, drawn = self._images.index_select(0, row)[0], self._drawn.index_select(0, row)[0]
        pixels, labels = self._views.pixels(images, drawn), self._views.labels[images]
        with torch.autocast(pixels.device.type, torch.bfloat16, cache_enabled=False):
            loss = self.trainee.loss(self._module, pixels, labels, images, drawn)
        gradients = torch.autograd.grad(loss, self._parameters)
        with torch.no_grad():
            torch._foreach_copy_(self._gradients, gradients)
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                parameter.grad = gradient
            self._rate.copy_(self._rates.index_select(0, self._number)[0])
            self._optimizer.step()
            torch._foreach_lerp_(self._average, self._tensors, 1 - recipe.average)
            self._total += loss.detach()
            self._number += 1

    @torch.no_grad()
    def _copy(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self._tensors, values)
        self._synchronise()

    def _synchronise(self) -> None:
        if self.is_on_gpu:
            torch.cuda.synchronize()


@torch.no_grad()
def answers(teachers: Sequence[nn.Module], views: Views, chunk: int = 2_500) -> Tensor:
    """The mean logits of the teachers for every view of every image, float16 (images, views, classes)."""
    device = views.labels.device
    rows = []
    for images in torch.split(torch.arange(len(views), device=device), chunk):
        columns = []
        for view in range(views.count):
            pixels = views.pixels(images, torch.full_like(images, view))
            with torch.autocast(device.type, torch.bfloat16):
                columns.append(sum(teacher.eval()(pixels).float() for teacher in teachers) / len(teachers))
        rows.append(torch.stack(columns, 1).half())
    return torch.cat(rows)


@torch.no_grad()
def scores(module: nn.Module, views: Views) -> tuple[float, float]:
    """Top-1 of the images as they are, in percent, and their mean cross-entropy."""
    module.eval()
    hits = loss = 0.0
    for images in torch.split(torch.arange(len(views), device=views.labels.device), 500):
        logits, labels = module(views.pixels(images, torch.full_like(images, views.plain))), views.labels[images]
        hits += float((logits.argmax(1) == labels).sum())
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return 100 * hits / len(views), loss / len(views)
