"""One optimizer step on a batch: forward, loss, backward, update."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.data.seeds import mixed_seed
from training.finite import diverged, require_finite
from training.loss import scores_of, training_loss
from training.options import TrainOptions
from training.phase import Phase
from training.replicas import world
from trp_export.errors import TrpError, is_out_of_memory


class TrainingStep:
    """Takes optimizer steps in a phase. Errors name the step and `last`, the file to continue from."""

    def __init__(
        self, options: TrainOptions, phase: Phase, teacher: nn.Module | None, device: torch.device, last: Path
    ) -> None:
        distillation = options.distillation
        self._temperature, self._share = (distillation.temperature, distillation.share) if distillation else (1.0, 0.0)
        self._phase, self._teacher, self._last = phase, teacher, last
        self._device, self._amp, self._parts = device, options.speed.amp, options.optimisation.accumulate
        self._smoothing, self._seed = options.optimisation.label_smoothing, options.seed

    def __call__(self, x: Tensor, y: Tensor, number: int) -> float:
        """Take step `number` of the run, and return its loss. Raises TrpError where it diverges or memory runs out.

        What the network draws at random follows from the seed, the step and the process, so that a resumed run draws
        the same.
        """
        torch.manual_seed(mixed_seed(self._seed, number, world()[0]))
        phase = self._phase
        phase.optimizer.zero_grad()
        try:
            loss: float | None = self._accumulate(x, y, number)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            loss = None
        if loss is None:  # Outside the handler: the error's traceback holds the activations.
            raise self._too_large(x, y)
        try:
            phase.optimizer.step()
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # Raised by a projection.
            raise diverged("weights are too large to project", number, self._last) from error
        if phase.average is not None:
            phase.average.update()
        return loss

    def _accumulate(self, x: Tensor, y: Tensor, number: int) -> float:
        """Add up the gradient of the batch in parts, and return its loss."""
        parts = list(zip(x.chunk(self._parts), y.chunk(self._parts), strict=True))
        total = 0.0
        for index, (inputs, labels) in enumerate(parts):
            with self._unsynchronised() if index < len(parts) - 1 else nullcontext():
                loss = self._loss(self._phase.model, inputs, labels)
                if len(parts) > 1:
                    loss = loss * (len(labels) / len(y))
                require_finite(loss, self._phase.network.module, inputs, number, self._last)
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with self._autocast():
            logits, teacher_logits = scores_of(model(x), self._phase.network.arch), None
            if self._teacher is not None:
                with torch.no_grad():
                    teacher_logits = self._teacher(x)
        return training_loss(
            logits,
            y,
            teacher_logits,
            temperature=self._temperature,
            share=self._share,
            smoothing=self._smoothing,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._amp else nullcontext()

    def _unsynchronised(self) -> AbstractContextManager[Any]:
        """Keep DistributedDataParallel from averaging gradients that are not complete."""
        no_sync = getattr(self._phase.model, "no_sync", nullcontext)
        return no_sync()

    def _too_large(self, x: Tensor, y: Tensor) -> TrpError:
        """The error of a step that memory does not suffice for, with the number of parts that fits."""
        count = len(x) // self._parts
        where = "continue with --resume and" if self._last.exists() else "start again with"
        parts = 2 * self._parts
        while parts <= len(x):
            if self._fits(x[: -(-len(x) // parts)], y[: -(-len(x) // parts)]):
                return TrpError(
                    f"out of memory with {count} images at a time; {-(-len(x) // parts)} fit: {where} --accumulate "
                    f"{parts}, which keeps the batch."
                )
            parts *= 2
        return TrpError(f"out of memory with {count} images at a time, and one does not fit either.")

    def _fits(self, x: Tensor, y: Tensor) -> bool:
        """Whether so many images go through the network and back."""
        self._phase.optimizer.zero_grad()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        with suppress(RuntimeError, MemoryError):
            self._loss(self._phase.network.module, x, y).backward()  # type: ignore[no-untyped-call]
            return True
        return False
