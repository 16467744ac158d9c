"""Train the compressed network in torch to give the answers of the original, on augmented images.

The loss is the divergence of the answers and the relative squared distance of feature maps that both networks have, the
guides. Images are flipped, shifted and mixed, and in long runs pasted into one another; both networks see the same
changed image. Samples of several inputs stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trp_export.calibration.answers import find_answers, kinds_of, values_of
from trp_export.calibration.divergence import Kind, Yardstick, agreement, for_images, mean_shares, yardsticks
from trp_export.calibration.held_out import images_with_room, with_room
from trp_export.errors import OptionError, UnsupportedError
from trp_export.inputs.description import describe_inputs
from trp_export.inputs.samples import Batch
from trp_export.inputs.spec import CHANNEL_AXES, InputSpec
from trp_export.metrics.recognise import are_scores
from trp_export.recover.muon import Muon
from trp_export.recover.torch_graph import TorchGraph, answer_in, as_tensor, needed, require_sound, workers
from trp_export.runtime.partial import Tap, fixed_batch

Array = NDArray[Any]
# For each input by name, in the order of the graph, its values for all samples.
Samples = dict[str, Tensor]

# Images of a step: of large images fewer, so that a step is short.
_MOST_IMAGES, _LEAST_IMAGES = 64, 8
_ENTRIES = 64 * 3 * 64 * 64
# Parts of images of open size have this extent, and in their middle answers may differ by this share: a network that
# looks no further learns as much from parts.
PATCH, _ALIKE = 64, 0.02
# Parts of a step, which are shared out to the cores.
_PARTS = 4
# The learning rates of Muon to choose from, highest first.
LEARNING_RATES = (3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
HELD_OUT = 1 / 8
# The weight of the guides, beside that of the answers, and their number: sums and joins, and convs where these are few.
_GUIDANCE = 4.0
_FEWEST_GUIDES, _MOST_GUIDES = 4, 16
_GUIDES = ("Add", "Concat", "Conv")
# Feature maps are compared on so many images. They are the same where their squared distance is below this share of
# their variance, which is taken for no less than a share of their mean square.
_PROBE, _SAME, _LEAST_SPREAD = 16, 1e-8, 1e-3
# The learning rate of Adam for biases, as a share of that of Muon for kernels.
_BIAS_SHARE = 0.2
# Orthogonal updates of larger matrices, such as those that give a thousand classes, take longer than their gradients.
_LARGE = 512
_WARM_UP = 0.05
_TIMED_STEPS, _TIMED_SECONDS = 10, 5
_SOUND = 1e-3
# Images that a run sees so many times are pasted into one another. In short runs that slows learning.
_OFTEN = 30
# Up to this share of the divergence that is to be made up for, rounding to bfloat16 does not matter.
_ROUNDING = 0.1


class Score(NamedTuple):
    """Divergence on held-out images, agreement where the first answer holds classes, what each image adds (n,)."""

    divergence: float
    agreement: float | None
    of_images: Array


class Distiller:
    """The two networks, the images to train on and those held out, and the optimisers of the compressed network.

    Raises UnsupportedError for models that cannot be run in torch.
    """

    def __init__(
        self,
        original: ir.Model,
        compressed: ir.Model,
        batches: Sequence[Batch],
        held_out: Sequence[Batch],
        seed: int,
    ) -> None:
        answers = find_answers(original)
        self._shown, self._kinds = answers, kinds_of(answers)
        values = [answer.value for answer in answers]
        guides = _maps_of_both(original, compressed, values)
        self._teacher, self._student = (TorchGraph(model, [*values, *guides]) for model in (original, compressed))
        self._teacher.requires_grad_(False)
        self._chunk = fixed_batch(compressed)
        self._pastes = False
        self._random = torch.Generator().manual_seed(seed)
        samples = _join(batches, self._student.inputs)
        entries = sum(values[:1].numel() for values in samples.values())
        self._batch_size = min(_MOST_IMAGES, max(_LEAST_IMAGES, _ENTRIES // entries))
        self._at_once = min(self._batch_size, max(1, _ENTRIES // entries))
        specs = describe_inputs(original).specs
        self._channel_axis = CHANNEL_AXES.get(specs[0].layout, 1)
        is_open = len(specs) == 1 and _has_open_size(specs[0], self._channel_axis)
        self._patch = PATCH if is_open and self._answers_parts_alike(samples) else None
        order = torch.randperm(_count(samples), generator=self._random)
        share = 0 if held_out else max(1, round(len(order) * HELD_OUT))
        self._samples = _rows(samples, order[share:])
        reserve = _join(with_room(original, held_out), self._student.inputs) if held_out else None
        self._held_out = _rows(samples, order[:share]) if reserve is None else reserve
        self._wanted = self._answers(self._teacher, self._held_out)
        self._sticks = yardsticks(self._wanted, self._kinds)
        self._tells_classes = self._first_holds_classes()
        # A step sees a few images only, which say nothing about the spread of an answer.
        some = _rows(self._samples, slice(images_with_room(original, batches)))
        self._units = yardsticks(self._answers(self._teacher, some), self._kinds)
        self._spreads = self._keep_guides(guides)
        self._require_sound(compressed)
        self._start = self.weights
        begun = time.monotonic()
        self.start_score = self.score()
        self.seconds_per_score = time.monotonic() - begun
        self._half = self._half_precision_will_do()
        self._random_state = self._random.get_state()
        self.restart(LEARNING_RATES[0])
        # The operators are too small to run on several cores: each core takes a part of the batch instead.
        self._pool = workers(torch.get_num_threads())

    @property
    def held_out_images(self) -> int:
        """How many images the score is of."""
        return _count(self._held_out)

    @property
    def weights(self) -> dict[str, Tensor]:
        """A copy of the trained weights, by the names of initializers."""
        return {n: w.detach().clone() for n, w in zip(self._student.names, self._student.weights, strict=True)}

    def restart(self, rate: float) -> None:
        """Begin again: the start's weights, the first images, and `rate` as the learning rate of Muon."""
        self._random.set_state(self._random_state)
        self.go_on(rate, self._start)

    def go_on(self, rate: float, weights: Mapping[str, Tensor]) -> None:
        """Take up training at these weights by name, or those of the start, with other images."""
        weights = {**self._start, **weights}
        with torch.no_grad():
            for name, own in zip(self._student.names, self._student.weights, strict=True):
                own.copy_(weights[name])
        self._optimizers = self._new_optimizers(rate)

    def prepare_for(self, steps: int) -> None:
        """Set how images are changed in a run of so many steps.

        Images that are seen often are pasted, too, so that they are not learned by heart.
        """
        self._pastes = self._patch is None and steps * self._batch_size >= _OFTEN * _count(self._samples)

    def seconds_per_step(self) -> float:
        """Measured on a few steps, after which it begins again."""
        self.step(0.0)
        begun, taken, steps = time.monotonic(), 0.0, 0
        while steps < _TIMED_STEPS and taken < _TIMED_SECONDS:
            self.step(0.0)
            taken, steps = time.monotonic() - begun, steps + 1
        self.restart(LEARNING_RATES[0])
        return taken / steps

    def step(self, done: float) -> None:
        """One step of training; `done` is the share of all steps that are done."""
        size = _LEAST_IMAGES if self._patch is not None else self._batch_size
        chosen = torch.randint(_count(self._samples), (size,), generator=self._random)
        batch = _rows(self._samples, chosen)
        if len(batch) == 1:
            ((name, images),) = batch.items()
            channels = self._channel_axis
            batch = {name: augment(images, self._random, pastes=self._pastes, patch=self._patch, channels=channels)}
        parts = list(self._pool.map(self._gradients, _split(batch, -(-size // _PARTS))))
        for weight, gradients in zip(self._student.weights, zip(*parts, strict=True), strict=True):
            used = [gradient for gradient in gradients if gradient is not None]
            weight.grad = torch.stack(used).mean(dim=0) if used else None
        for optimizer, rate in self._optimizers:
            optimizer.param_groups[0]["lr"] = rate * _schedule(done)
            optimizer.step()

    def _gradients(self, batch: Samples) -> Sequence[Tensor | None]:
        """The gradients of the loss on a part of the batch, in the order of the weights; None for unused weights."""
        with half_precision() if self._half else nullcontext():
            with torch.no_grad():
                wanted = self._run(self._teacher, batch)
            got = self._run(self._student, batch)
        answers = len(self._shown)
        loss: Any = self._divergence(got[:answers], wanted[:answers])
        if self._spreads:
            maps = zip(got[answers:], wanted[answers:], self._spreads, strict=True)
            apart = [_distance(own, guide) / spread for own, guide, spread in maps]
            loss += _GUIDANCE * torch.stack(apart).mean()
        return torch.autograd.grad(loss, list(self._student.weights), allow_unused=True)

    def _keep_guides(self, guides: Mapping[str, str]) -> list[float]:
        """Leave out guides that the networks share or make of unlike shapes; the spread of each that is left."""
        answers = len(self._shown)
        with torch.no_grad():
            runs = [
                list(map(_compared, self._run(self._student, part)[answers:], self._run(self._teacher, part)[answers:]))
                for part in _split(_rows(self._samples, slice(_PROBE)), self._at_once)
            ]
        spreads = {
            name: spread
            for name, parts in zip(guides, zip(*runs, strict=True), strict=True)
            if (spread := _spread_of_changed(parts)) is not None
        }
        sums = [name for name in spreads if guides[name] != "Conv"]
        kept = _few(sums if len(sums) >= _FEWEST_GUIDES else list(spreads))
        for network in (self._teacher, self._student):
            network.narrow_to([*network.outputs[:answers], *kept])
        return [spreads[name] for name in kept]

    def _divergence(self, got: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """`divergence` of the answers, with gradients."""
        own, reference = (
            [answer_in(value.float(), answer) for value, answer in zip(values, self._shown, strict=True)]
            for values in (got, wanted)
        )
        originals = {one.name: value.numpy() for one, value in zip(self._shown, reference, strict=True)}
        sticks = for_images(self._units, originals).values()
        shares = [_share(a, b, stick) for a, b, stick in zip(own, reference, sticks, strict=True)]
        return torch.stack(shares).mean()

    def score(self) -> Score:
        """How far the answers are on the held-out images."""
        got = self._answers(self._student, self._held_out)
        of_images = mean_shares(self._sticks, self._wanted, got)
        return Score(float(of_images.mean()), agreement(self._wanted, got) if self._tells_classes else None, of_images)

    def _first_holds_classes(self) -> bool:
        """Whether the first answer holds scores of classes, as a descriptor does not that looks like them."""
        name, stick = next(iter(self._sticks.items()))
        said = self._kinds.get(name) is Kind.CLASSES
        return said or (stick.kind is Kind.CLASSES and are_scores(self._wanted[name], self.held_out_images))

    def _half_precision_will_do(self) -> bool:
        """Whether answers in bfloat16 differ little, beside how far the two networks are apart."""
        probe = _rows(self._held_out, slice(self._chunk or self._batch_size))
        exact = self._answers(self._student, probe)
        with half_precision():
            rounded = self._answers(self._student, probe)
        apart = mean_shares(for_images(self._sticks, exact), exact, rounded)
        return float(apart.mean()) <= _ROUNDING * self.start_score.divergence

    def _new_optimizers(self, rate: float) -> list[tuple[torch.optim.Optimizer, float]]:
        """Muon for kernels and matrices, Adam for biases and for what is too large, each with its learning rate."""
        biases = [weight for weight in self._student.weights if weight.ndim <= 1]
        matrices = [weight for weight in self._student.weights if weight.ndim > 1]
        large = [weight for weight in matrices if min(weight.flatten(1).shape) > _LARGE]
        kernels = [weight for weight in matrices if min(weight.flatten(1).shape) <= _LARGE]
        made: list[tuple[torch.optim.Optimizer, float]] = []
        if kernels:
            made.append((Muon(kernels, rate), rate))
        if biases:
            made.append((torch.optim.Adam(biases, rate * _BIAS_SHARE), rate * _BIAS_SHARE))
        for weight in large:  # Each entry moves as far as Muon would move it.
            own = rate / max(weight.flatten(1).shape) ** 0.5
            made.append((torch.optim.Adam([weight], own), own))
        return made

    def _answers(self, network: TorchGraph, samples: Samples) -> dict[str, Array]:
        with torch.no_grad():
            batches = [  # Guides come last.
                [answer_in(value, answer) for value, answer in zip(values, self._shown, strict=False)]
                for values in (self._run(network, part) for part in _split(samples, self._at_once))
            ]
        joined = zip(self._shown, zip(*batches, strict=True), strict=True)
        return {answer.name: torch.cat(parts).float().numpy() for answer, parts in joined}

    def _run(self, network: TorchGraph, samples: Samples) -> list[Tensor]:
        """The outputs for all samples. For a model of a fixed batch size the last batch is filled up."""
        if self._chunk is None:
            return [_samples_first(value, _count(samples)) for value in network(*samples.values())]
        parts = [
            [_samples_first(value, _count(part)) for value in network(*part.values())]
            for part in _split(self._filled(samples), self._chunk)
        ]
        return [_joined(made, _count(samples) / (len(parts) * self._chunk)) for made in zip(*parts, strict=True)]

    def _filled(self, samples: Samples) -> Samples:
        """The samples again and again until they fill whole batches of a model of a fixed batch size."""
        count, size = _count(samples), self._chunk or 1
        return _rows(samples, torch.arange(-(-count // size) * size) % count)

    def _answers_parts_alike(self, samples: Samples) -> bool:
        """Whether the original answers part of an image as it answers the whole: then parts can teach."""
        ((name, images),) = samples.items()
        if images.ndim != 4:
            return False
        images = images[:1].movedim(self._channel_axis, 1)
        if min(images.shape[2:]) < 2 * PATCH:
            return False
        start = PATCH // 2
        part = images[:, :, start : start + PATCH, start : start + PATCH]
        try:
            wholes, parts = (
                self._answers(self._teacher, {name: values.movedim(1, self._channel_axis)}) for values in (images, part)
            )
        except UnsupportedError:  # It takes no images so small.
            return False
        outputs = ((torch.from_numpy(parts[name]), torch.from_numpy(whole)) for name, whole in wholes.items())
        return all(_is_part(part, whole, images.shape[2:], start) for part, whole in outputs)

    def _require_sound(self, compressed: ir.Model) -> None:
        """Raises UnsupportedError where torch does not compute what onnxruntime computes."""
        probe = self._filled(_rows(self._held_out, slice(self._chunk or self._batch_size)))
        tap = Tap(compressed, self._student.inputs, values_of(self._shown))
        made = tap({name: values.numpy() for name, values in probe.items()})
        values = {name: _samples_first(torch.from_numpy(value), _count(probe)) for name, value in made.items()}
        wanted = {answer.name: answer_in(values[answer.value], answer).numpy() for answer in self._shown}
        require_sound(self._answers(self._student, probe), wanted, _SOUND)


def _join(batches: Sequence[Batch], names: Sequence[str]) -> Samples:
    """All samples as torch computes with them.

    Raises UnsupportedError for inputs without an axis of samples, OptionError for images of unlike sizes.
    """
    shared = sorted(batches[0].shared)
    if shared:
        raise UnsupportedError(f"input {shared[0]} has no axis of samples, which --tune needs: leave it out.")
    if any(len({batch.arrays[name].shape[1:] for batch in batches}) > 1 for name in names):
        raise OptionError("--tune needs images of one size: add --resize and --crop, or --shape.")
    arrays = {name: np.concatenate([batch.arrays[name] for batch in batches]) for name in names}
    return {n: as_tensor(a.astype(np.float32) if len(names) == 1 else a, n) for n, a in arrays.items()}


def _count(samples: Samples) -> int:
    return len(next(iter(samples.values())))


def _samples_first(value: Tensor, count: int) -> Tensor:
    """The answers for so many samples with these on the first axis, where recurrent layers have their steps."""
    steps_first = value.ndim > 2 and len(value) != count == value.shape[1]
    return value.swapaxes(0, 1) if steps_first else value


def _joined(parts: Sequence[Tensor], share: float) -> Tensor:
    """The values of all chunks, of which this share belongs to samples; the others fill the last chunk up.

    A value may have several rows for each sample, as of texts, or none, as sizes.
    """
    if not parts[0].ndim:
        return parts[0]
    joined = torch.cat(list(parts))
    return joined[: round(len(joined) * share)]


def _rows(samples: Samples, places: Tensor | slice) -> Samples:
    return {name: values[places] for name, values in samples.items()}


def _split(samples: Samples, size: int) -> list[Samples]:
    return [_rows(samples, slice(start, start + size)) for start in range(0, _count(samples), size)]


def _has_open_size(spec: InputSpec, channel_axis: int) -> bool:
    """True for an input whose height and width are not fixed."""
    sizes = enumerate(spec.declared or ())
    return spec.declared is not None and all(size is None for axis, size in sizes if axis not in (0, channel_axis))


def _is_part(part: Tensor, whole: Tensor, extents: Sequence[int], start: int) -> bool:
    """Whether the middle of the answer to a part, which begins at `start`, is that of the answer to the whole image."""
    if part.ndim != 4 or whole.ndim != 4:
        return False
    for axis, extent in zip((2, 3), extents, strict=True):
        own, steps = part.shape[axis], (whole.shape[axis] - part.shape[axis]) * start
        edge, first = own // 4, steps // (extent - PATCH)
        if steps % (extent - PATCH) or own < 4 or first + own > whole.shape[axis]:
            return False
        part, whole = (values.narrow(axis, at, own - 2 * edge) for values, at in ((part, edge), (whole, first + edge)))
    return bool(torch.linalg.norm(part - whole) <= _ALIKE * torch.linalg.norm(whole - whole.mean()))


def augment(
    batch: Tensor, random: torch.Generator, *, pastes: bool = False, patch: int | None = None, channels: int = 1
) -> Tensor:
    """Images flipped, shifted by up to an eighth, mixed and, if `pastes`, pasted into one another.

    They are (n, C, H, W), or (n, H, W, C) where `channels`, the axis of the channels, is 3. With `patch`, a random part
    of each image, as high and as wide. Rows of features are only mixed.
    """
    if batch.ndim != 4:
        return _mix(batch, random)
    mixed = _mix(_flip_and_shift(batch.movedim(channels, 1), random, patch), random)
    return (_paste(mixed, random) if pastes else mixed).movedim(1, channels)


def _mix(batch: Tensor, random: torch.Generator) -> Tensor:
    """Half of the samples averaged with another one, by a random share (Zhang et al., "mixup", 2018)."""
    count = len(batch)
    share = torch.rand(count, *[1] * (batch.ndim - 1), generator=random)
    share[torch.rand(count, generator=random) < 0.5] = 1.0
    return share * batch + (1 - share) * batch[torch.randperm(count, generator=random)]


def _paste(batch: Tensor, random: torch.Generator) -> Tensor:
    """Half of the images with a rectangle of another one, a random share of the area (Yun et al., "CutMix", 2019)."""
    count, _, height, width = batch.shape
    side = torch.rand(count, 1, generator=random).sqrt()
    side[torch.rand(count, generator=random) < 0.5] = 0.0
    rows, columns = (_between(length, side, random) for length in (height, width))
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, batch[torch.randperm(count, generator=random)], batch)


def _between(length: int, side: Tensor, random: torch.Generator) -> Tensor:
    """For each image (n, length), which places lie in a stretch that is `side` (n, 1) times as long, at random."""
    start = torch.rand(side.shape, generator=random) * (1 - side)
    places = (torch.arange(length) + 0.5) / length
    return (places >= start) & (places < start + side)


def _flip_and_shift(batch: Tensor, random: torch.Generator, patch: int | None) -> Tensor:
    count = len(batch)
    if patch is None:
        (height, width), (down, right) = batch.shape[2:], (batch.shape[2] // 8, batch.shape[3] // 8)
        batch = functional.pad(batch, (right, right, down, down), mode="reflect")
    else:
        height = width = patch
    top, left = (
        torch.randint(whole - part + 1, (count, 1), generator=random)
        for whole, part in zip(batch.shape[2:], (height, width), strict=True)
    )
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(torch.rand(count, 1, generator=random) < 0.5, columns, columns.flip(1))
    rows, columns = top + torch.arange(height), left + columns
    picked = batch.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _maps_of_both(original: ir.Model, compressed: ir.Model, answers: Sequence[str]) -> dict[str, str]:
    """The sums, joins and results of convs that both networks have, and the operator of each; answers are no guides."""
    made = {node.outputs[0].name: node.op_type for node in needed(compressed, answers)}
    return {
        name: node.op_type
        for node in needed(original, answers)
        if node.op_type in _GUIDES
        and (name := node.outputs[0].name or "") not in answers
        and made.get(name) == node.op_type
    }


def _few(names: Sequence[str]) -> list[str]:
    """At most so many names as there may be guides, evenly spread, the last one among them."""
    count = min(len(names), _MOST_GUIDES)
    return [names[(place + 1) * len(names) // count - 1] for place in range(count)]


def _share(own: Tensor, wanted: Tensor, stick: Yardstick) -> Tensor:
    """The divergence of one answer, the mean over images."""
    gap = own - wanted
    if stick.kind is Kind.PROBABILITIES:
        apart = (own.sigmoid() - wanted.sigmoid()) * gap
    else:
        apart = (gap - gap.mean(dim=1, keepdim=True) if stick.centred else gap).square()
    return (torch.from_numpy(np.asarray(stick.weights, dtype=np.float32)) * apart).sum() / len(own)


def _distance(own: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared distance of two feature maps."""
    return (own.float() - wanted.float()).square().mean()


def _compared(own: Tensor, wanted: Tensor) -> tuple[float, Tensor] | None:
    """The distance of two feature maps (n, C, ...), and each channel's mean and mean square. None for other values."""
    if own.shape != wanted.shape or own.ndim <= 2 or not own.is_floating_point():
        return None
    variance, mean = torch.var_mean(wanted.movedim(1, 0).flatten(1), dim=1, correction=0)
    return float(_distance(own, wanted)), torch.stack([mean, variance + mean.square()]).double()


def _spread_of_changed(parts: Sequence[tuple[float, Tensor] | None]) -> float | None:
    """The variance of a map over samples and positions, the mean over channels; None where the networks agree on it.

    A map that hardly varies counts as one that varies by a share of its values: less is rounding.
    """
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    mean, square = torch.stack([moments for _, moments in known]).mean(dim=0)
    spread = max(float((square - mean.square()).mean()), _LEAST_SPREAD * float(square.mean()))
    distance = sum(distance for distance, _ in known) / len(known)
    return spread if distance > _SAME * spread > 0 else None


def half_precision() -> AbstractContextManager[Any]:
    """bfloat16 where the processor has instructions for it (half the time of float32); elsewhere it is slower."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=native, cache_enabled=False)


def _schedule(done: float) -> float:
    """Linear warm-up, then half a cosine to zero."""
    return min(done / _WARM_UP, 0.5 * (1 + float(np.cos(np.pi * done))))
