"""Distil the compressed network from the original on images without labels. All factors and biases are trained.

The weights that do best on held-out images are kept, so the result is never worse there than the start.
Source: Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", 2022.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.errors import OptionError
from trp_export.inputs.samples import Batch
from trp_export.system.extras import require
from trp_export.system.progress import Share
from trp_export.system.signals import held_back

if TYPE_CHECKING:
    from trp_export.recover.distil import Distiller, Score

Array = NDArray[Any]

_LEAST_IMAGES = 16
_CHECKS = 12
# The share of all steps that a learning rate is tried for.
_TRIAL = 0.05
_LEAST_TRIAL = 5
# The share of all steps that all trials may take.
_TRIALS = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """New values of initializers by name, and divergence and agreement on held-out images before and after.

    Agreement is that of classes, None for other networks.

    The same number of `steps`, images, seed and threads gives the same weights on the same machine.
    """

    values: Mapping[str, Array]
    steps: int
    divergence_before: float
    divergence_after: float
    agreement_before: float | None
    agreement_after: float | None


def tune(
    original: ir.Model,
    compressed: ir.Model,
    batches: Sequence[Batch],
    *,
    held_out: Sequence[Batch] = (),
    minutes: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    threads: int = 0,
    progress: Share = lambda share: None,
) -> Tuned:
    """Train `compressed` to answer as `original` does on `batches`; neither model is changed.

    The weights that do best on the samples `held_out` are kept; without these, one sample in eight is held out.

    Give `steps`, or `minutes`: then the number of steps follows from timing a few. Raises UnsupportedError for models
    that cannot be run in torch, OptionError for too few images.
    """
    count = sum(len(batch) for batch in batches)
    if count < _LEAST_IMAGES:
        raise OptionError(f"tuning needs at least {_LEAST_IMAGES} images, not {count}.")
    require("tuning", "torch")
    with held_back():
        import torch

        from trp_export.recover.distil import LEARNING_RATES, Distiller

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        started = time.monotonic()
        run = Distiller(original, compressed, batches, held_out, seed)
        if steps is None:
            seconds = run.seconds_per_step()
            scores = (_CHECKS + len(LEARNING_RATES)) * run.seconds_per_score
            steps = max(1, int(((minutes or 0.0) * 60 - (time.monotonic() - started) - scores) / seconds))
        return _train(run, steps, progress)
    finally:
        torch.set_num_threads(before)


def _train(run: Distiller, steps: int, progress: Share) -> Tuned:
    """Trials, then two legs: the second goes on from the best weights so far, at a lower learning rate."""
    before = best = run.start_score
    kept: Mapping[str, Any] = {}
    run.prepare_for(steps)
    rates, spent = _choose_rates(run, steps, before.divergence, progress)
    every = max(1, (steps - spent) // _CHECKS)
    for legs, rate in zip((2, 1), rates, strict=True):
        leg = (steps - spent) // legs
        run.go_on(rate, kept)
        for step in range(leg):
            run.step((step + 0.5) / leg)
            progress((spent + step + 1) / steps)
            if (step + 1) % every == 0 or step + 1 == leg:
                score = run.score()
                if score.divergence < best.divergence and _is_gain(before, score):
                    best, kept = score, run.weights
        spent += leg
    values = {name: weight.numpy() for name, weight in kept.items()}
    return Tuned(values, steps, before.divergence, best.divergence, before.agreement, best.agreement)


def _is_gain(before: Score, now: Score) -> bool:
    """Whether images come nearer by more than the standard error of that, and agreement does not suffer."""
    gains = before.of_images - now.of_images
    error = float(gains.std(ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return bool(gains.mean() > error) and _agrees_as_well(now.agreement, before.agreement, len(gains))


def _agrees_as_well(now: float | None, before: float | None, images: int) -> bool:
    """Users see agreement, but it is coarse: it may fall by its standard error, and divergence decides."""
    if now is None or before is None:
        return True
    return now >= before - math.sqrt(before * (1 - before) / images)


def _choose_rates(run: Distiller, steps: int, start: float, progress: Share) -> tuple[tuple[float, float], int]:
    """The learning rates of the two legs, and the steps that it took to find them.

    Rates fall from trial to trial until one does worse than the rate before it. Few steps make low rates look good, so
    the first leg takes the rate above the best one, and the second leg the best. Trials take at most half of the steps;
    if none has lowered the divergence by then, the next rates are taken untried.
    """
    from trp_export.recover.distil import LEARNING_RATES as RATES

    trial, spent = max(_LEAST_TRIAL, round(_TRIAL * steps)), 0
    best, chosen, tried = start, None, 0
    while tried < len(RATES) and spent + trial <= _TRIALS * steps:
        run.restart(RATES[tried])
        for step in range(trial):
            run.step((step + 0.5) / trial)
            progress((spent + step + 1) / steps)
        spent += trial
        score = run.score().divergence
        if score < best:
            best, chosen = score, tried
        elif chosen is not None:
            break
        tried += 1
    first = min(tried, len(RATES) - 1) if chosen is None else max(0, chosen - 1)
    return (RATES[first], RATES[min(first + 1, len(RATES) - 1)]), spent
