"""The training run, from top to bottom: set up, epochs with projections, the cut, epochs on the factors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.batches import Normalisation, TrainingBatches, evaluation_batches
from training.checkpoint import DENSE, FACTORS, TrainedNetwork, as_pairs, new_network, save_network, write
from training.cut import decompose
from training.data import LabelledImages, load_labelled_images, require_every_class, require_fit, split
from training.history import Record, require_tensorboard, write_history
from training.last_state import LastState, read_last_state
from training.layers import find_layers, total_macs
from training.methods import STATISTICS_BATCHES, Method, cut_now, finish, make_method
from training.options import TrainOptions
from training.prepare import class_count, find_device, load_teacher, make_optimizer, on_device, start_network, wrapped
from training.replicas import wait_for_all, world
from training.run_folder import LAST, require_same_files, stored_options
from training.step import diverged, learning_rate, require_finite, require_finite_weights, training_loss
from training.stop import StopRequest
from training.trp import TRP
from trp_export.errors import LoadError, OptionError, StoppedEarly
from trp_export.rules import SavedPlan
from trp_export.system.files import sha256

Progress = Callable[[Record], None]


class TrainingRun:
    """One training run in one process. `history` has a record per epoch; `network.kind` names the phase it is in.

    `resume` continues from last.pt in the output folder, where `allow_changed_data` accepts data that has changed.
    """

    def __init__(
        self, options: TrainOptions, progress: Progress, *, resume: bool = False, allow_changed_data: bool = False
    ) -> None:
        self.options, self._progress = options, progress
        state = read_last_state(options.output) if resume else None
        if options.tensorboard:
            require_tensorboard()
        self.device = find_device(options.speed.device)
        torch.manual_seed(options.seed)
        images = self._load_images()
        self.digests = _digests(options, images)
        if state is not None:
            require_same_files(self.digests, state.digests, str(self.last), allow_changes=allow_changed_data)
        train, self.validation = split(images, options.validation, options.seed)
        self.network = start_network(options, train.classes)
        require_fit(train, self.network.input_shape, class_count(self.network))
        self.batches = self._make_batches(train)
        teacher = load_teacher(options, self.network)
        self._teacher = None if teacher is None else on_device(teacher, self.device)
        dense = new_network(self.network.arch, self.network.classes, self.network.input_shape).module
        self._dense_macs = total_macs(find_layers(dense, self.network.input_shape))
        self.history: list[Record] = []
        self.epoch = self.step = 0
        self._loss_sum = 0.0
        self.method: Method | None = None
        self._enter_phase(self.network)
        if state is not None:
            with _damage_named(self.last, self.network.arch):
                self._restore(state)

    # Epochs

    def train(self) -> None:
        """Train all remaining epochs. Raises StoppedEarly, after saving, where the user asked to stop."""
        optimisation = self.options.optimisation
        with StopRequest() as stop:
            while self.epoch < optimisation.epochs:
                if self.method is not None and self.epoch == optimisation.dense_epochs:
                    self._cut_to_factors()
                started, first_step = time.perf_counter(), self.step
                self._train_epoch(stop)
                images = (len(self.batches) - first_step) * optimisation.batch
                self._end_epoch(images / (time.perf_counter() - started))
            if self.method is not None:
                self._finish_dense()

    def _train_epoch(self, stop: StopRequest) -> None:
        optimisation, steps = self.options.optimisation, len(self.batches)
        self._model.train()
        for x, y in self.batches.epoch(self.epoch, self.step):
            progress = (self.epoch * steps + self.step) / (optimisation.epochs * steps)
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(optimisation.schedule, optimisation.lr, progress)
            self._train_step(x, y)
            self.step += 1
            self._progress({"step": self.step, "steps": steps, "epoch": self.epoch, "loss": self._loss_sum / self.step})
            if stop.pending(self.step) and self.step < steps:
                require_finite_weights(self.network.module, self._steps_done, self.last)
                self.save()
                raise StoppedEarly

    def _train_step(self, x: Tensor, y: Tensor) -> None:
        distillation, step = self.options.distillation, self._steps_done + 1
        with self._autocast():
            logits, teacher_logits = self._model(x), None
            if self._teacher is not None:
                with torch.no_grad():
                    teacher_logits = self._teacher(x)
        temperature, share = (distillation.temperature, distillation.share) if distillation else (1.0, 0.0)
        loss = training_loss(logits, y, teacher_logits, temperature, share)
        require_finite(loss, self.network.module, x, step, self.last)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        try:
            self._optimizer.step()
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # Raised by a projection.
            raise diverged("weights are too large to project", step, self.last) from error
        self._loss_sum += float(loss.detach())

    def _end_epoch(self, images_per_second: float) -> None:
        require_finite_weights(self.network.module, self._steps_done, self.last)
        cut, macs = cut_now(self.method, self.network, self.batches)
        accuracy = self.accuracy(self.network.module)
        record: Record = {
            "epoch": self.epoch + 1,
            "kind": self.network.kind,
            "loss": self._loss_sum / len(self.batches),
            "lr": self._optimizer.param_groups[0]["lr"],
            "images_per_s": round(images_per_second, 1),
            "accuracy": accuracy,
            "cut_accuracy": accuracy if self.method is None else self.accuracy(cut.module),
            "macs_ratio": self._dense_macs / macs,
            "ranks": {
                layer["name"]: layer["rank"] for layer in (cut.plan or {}).get("layers", ()) if layer.get("rank")
            },
        }
        self.history.append(record)
        self.epoch, self.step, self._loss_sum = self.epoch + 1, 0, 0.0
        if self.kept is record:
            self._keep(cut)
        self.save()
        self._progress(record)

    @property
    def _steps_done(self) -> int:
        return self.epoch * len(self.batches) + self.step

    @torch.no_grad()
    def accuracy(self, module: nn.Module) -> float:
        """The share of validation images that `module` classifies correctly."""
        was_training, hits = module.training, 0
        module.eval()
        for x, y in evaluation_batches(self.validation, self._normalisation, self.device):
            hits += int((module(x).argmax(1) == y).sum())
        module.train(was_training)
        return hits / len(self.validation)

    # Cuts

    def _cut_to_factors(self) -> None:
        """Replace dense weights of low rank by factor pairs, which then train on their own."""
        assert isinstance(self.method, TRP), "only a dense network with a rank rule is cut to factors"
        plan = self.method.finish(self.batches.inputs(STATISTICS_BATCHES))
        module = decompose(self.network.module, plan)
        self._enter_phase(replace(self.network, module=module, kind=FACTORS, plan=plan.to_json()))

    def _finish_dense(self) -> None:
        """End a run that has no epochs on factors: the dense weights can be cut without loss afterwards."""
        assert self.method is not None, "only a network with a rule is finished"
        self.network, self.method = finish(self.method, self.network, self.batches), None
        if self.options.keep == "last":
            self._keep(self.network)
        self.save()

    # What is kept

    @property
    def last(self) -> Path:
        """The file from which the run can be resumed."""
        return self.options.output / LAST

    @property
    def kept(self) -> Record:
        """The epoch whose network, once cut, is in model.pt: the best so far (of equals the first), or the last."""
        if self.options.keep == "last":
            return self.history[-1]
        return max(self.history, key=lambda record: record["cut_accuracy"])

    def _keep(self, network: TrainedNetwork) -> None:
        if world()[0] == 0:
            save_network(network, self.options.output / "model.pt", self.history)

    def save(self) -> None:
        """Write all that a resumed run needs, and the history.

        The other processes wait: torchrun would end the first, which is writing, as soon as another one ends.
        """
        if world()[0] == 0:
            write(self._state().to_content(), self.last)
            write_history(self.history, self.options.output, tensorboard=self.options.tensorboard and not self.step)
        wait_for_all()

    def _state(self) -> LastState:
        return LastState(
            options=stored_options(self.options),
            digests=self.digests,
            kind=self.network.kind,
            plan=self.network.plan,
            epoch=self.epoch,
            step=self.step,
            loss_sum=self._loss_sum,
            model=self.network.module.state_dict(),
            optimizer=self._optimizer.state_dict()["state"],
            method=self.method.state_dict() if self.method else None,
            history=self.history,
        )

    def _restore(self, state: LastState) -> None:
        """Raises ValueError, or what torch raises, where the state does not fit the network."""
        if state.step >= len(self.batches):
            raise ValueError(f"step {state.step} of an epoch of {len(self.batches)}")
        if state.kind == FACTORS and self.network.kind == DENSE:
            module = as_pairs(self.network.module, state.plan, str(self.last))
            self._enter_phase(replace(self.network, module=module, kind=FACTORS, plan=state.plan))
        elif state.kind != self.network.kind:
            raise ValueError("the network holds factors, and the state does not")
        self.network.module.load_state_dict(state.model)
        self._restore_optimizer(state)
        if self.method is not None and state.method is not None:
            if state.method["step"] != state.epoch * len(self.batches) + state.step:
                raise ValueError("the method has counted other steps")
            self.method.load_state_dict(state.method)
        elif self.method is not None:  # It was cut after the last epoch. A second cut would lower the ranks again.
            self.method = None
        self.epoch, self.step, self._loss_sum, self.history = state.epoch, state.step, state.loss_sum, state.history

    def _restore_optimizer(self, state: LastState) -> None:
        """The state of each parameter. Its options are those of this run, whatever the file says."""
        parameters = self._optimizer.param_groups[0]["params"]
        if self.options.optimisation.momentum and not state.optimizer and state.epoch + state.step:
            raise ValueError("the optimizer's state is missing")
        for index, buffers in state.optimizer.items():
            if any(buffer.shape != parameters[index].shape for buffer in buffers.values()):
                raise ValueError("the optimizer's state does not fit the network")
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": state.optimizer})

    # Set-up

    def _load_images(self) -> LabelledImages:
        images = load_labelled_images(self.options.data)
        if self.options.start.init is None:  # Weights determine the number of classes; the images may show only some.
            require_every_class(images)
        return images

    def _make_batches(self, train: LabelledImages) -> TrainingBatches:
        batch = self.options.optimisation.batch
        self._normalisation = Normalisation(self.network.mean, self.network.std)
        batches = TrainingBatches(train, self._normalisation, batch, self.options.seed, self.device, world())
        if not len(batches):
            raise OptionError(f"--batch {batch} is more than the {len(train)} training images.")
        return batches

    def _enter_phase(self, network: TrainedNetwork) -> None:
        """Make model and optimizer, and the method for dense weights that follow a rule."""
        options = self.options
        module = on_device(network.module, self.device).train()
        self.network = replace(network, module=module)
        self._model = wrapped(module, self.device, compile=options.speed.compile)
        self._optimizer = make_optimizer(module, options.optimisation)
        self.method = make_method(options, self.network, self._optimizer, len(self.batches))

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.options.speed.amp else nullcontext()


def _digests(options: TrainOptions, images: LabelledImages) -> dict[str, str]:
    """The sha256 of all that the run reads, by flag."""
    teacher = options.distillation.teacher if options.distillation else None
    plan = options.rule.path if isinstance(options.rule, SavedPlan) else None
    files = {"--init": options.start.init, "--teacher": teacher, "--plan": plan}
    return {"--data": images.digest()} | {name: sha256([path]) for name, path in files.items() if path is not None}


@contextmanager
def _damage_named(path: Path, arch: str) -> Iterator[None]:
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:  # RuntimeError is torch's.
        raise LoadError(
            f"{path} does not fit {arch}: the file is damaged, or the network or its plan has changed."
        ) from error
