"""The training run, from top to bottom: set up, epochs with projections, the cut, epochs on the factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from training.checkpoint import DENSE, FACTORS, TrainedNetwork, as_pairs, save_network
from training.cut import decompose
from training.data.batches import Examples, TrainingBatches
from training.data.run_data import find_images, make_data
from training.finite import require_finite_weights
from training.history import Record, require_tensorboard, write_history
from training.last_state import LastState, read_last_state
from training.methods import STATISTICS_BATCHES, Method, cut_now, finish
from training.options import TrainOptions
from training.pace import Pace
from training.phase import start_phase
from training.prepare import class_count, dense_macs, find_device, load_teacher, on_device, start_network
from training.replicas import failing_together, wait_for_all, world
from training.resume import Position, damage_named, restore, state_of
from training.run_folder import LAST, require_same_files
from training.saving import StateFiles
from training.schedule import learning_rate
from training.step import TrainingStep
from training.stop import StopRequest
from training.trp import TRP
from training.validation import accuracy
from trp_export.errors import LoadError, OutputError, StoppedEarly, TrpError
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
        self.device = find_device(options.speed)
        torch.manual_seed(options.seed)
        images = find_images(options)
        network = start_network(options, images.classes)
        classes = class_count(network)
        self.data = make_data(options, images, network, classes, self.device)
        self.digests = {"--data": self.data.digest} | _digests(options)
        if state is not None:
            require_same_files(self.digests, state.digests, str(self.last), allow_changes=allow_changed_data)
        teacher = load_teacher(options, network, classes)
        self._teacher = None if teacher is None else on_device(teacher, self.device)
        self._dense_macs = dense_macs(network, classes)
        self._enter_phase(network)
        self._position, self._stop = Position(), StopRequest()
        self._states = StateFiles(options.output, options.save_every, options.states)
        if state is not None:
            with damage_named(self.last, network.arch):
                self._restore(state)

    # Epochs

    def train(self) -> None:
        """Train all remaining epochs. Raises StoppedEarly, after saving, where the user asked to stop."""
        optimisation, position = self.options.optimisation, self._position
        if world()[0] == 0:
            self._states.remove_after(position.epoch, position.step)
        with StopRequest() as self._stop:
            while position.epoch < optimisation.epochs:
                if self.method is not None and position.epoch == optimisation.dense_epochs:
                    self._cut_to_factors()
                pace = Pace()
                self._train_epoch(pace)
                self._end_epoch(pace.images_per_second(), pace.waiting())
            if self.method is not None:
                self._finish_dense()

    def _train_epoch(self, pace: Pace) -> None:
        """Take the steps of an epoch that remain."""
        optimisation, position, steps = self.options.optimisation, self._position, len(self.batches)
        take_step = TrainingStep(self.options, self._phase, self._teacher, self.device, self.last)
        self._phase.train(hold_repeated_norms=optimisation.settles(position.epoch))
        batches = pace.waits_for(self.batches.epoch(position.epoch, position.step), optimisation.batch)
        while position.step < steps:
            x, y = self._next(batches)
            done = position.steps_done(steps)
            for group in self._phase.optimizer.param_groups:
                group["lr"] = self._rate(done)
            position.loss_sum += take_step(x, y, done + 1)
            position.step += 1
            loss = position.loss_sum / position.step
            self._progress({"step": position.step, "steps": steps, "epoch": position.epoch, "loss": loss})
            if self._states.is_due() and position.step < steps:
                self._require_finite_weights()
                self._write_state()

    def _rate(self, steps_done: int) -> float:
        """The learning rate of the step after so many."""
        optimisation = self.options.optimisation
        progress = steps_done / (optimisation.epochs * len(self.batches))
        return learning_rate(optimisation.schedule, optimisation.lr, progress)

    def _next(self, batches: Examples) -> tuple[Tensor, Tensor]:
        """The next batch. Where there is none, or the user asked to stop, all processes save and end."""
        failure: TrpError | None = None
        try:
            batch = next(batches)
        except StopIteration:
            failure = LoadError("the data ended before the epoch did.")
        except TrpError as error:
            failure = error
        if self._stop.pending(also=failure is not None):
            self._require_finite_weights()
            self.save()
            raise StoppedEarly if failure is None else saved_before(failure)
        return batch

    def _end_epoch(self, images_per_second: float, waiting: float) -> None:
        """Measure the network as it is and as cut now, and write what the epoch leaves."""
        self._require_finite_weights()
        position = self._position
        # A disk that is full must not leave a model.pt from which no run can go on.
        if world()[0] == 0 and not self.last.exists():
            self._write_state()
        try:
            with self._phase.averaged():
                cut, figures = self._measure()
                record: Record = {
                    "epoch": position.epoch + 1,
                    "kind": self.network.kind,
                    "loss": position.loss_sum / len(self.batches),
                    "lr": self._rate(position.steps_done(len(self.batches)) - 1),
                    "images_per_s": round(images_per_second, 1),
                    "waiting": round(waiting, 4),
                    **figures,
                }
                self.history.append(record)
                if self.kept is record:
                    self._keep(cut)
        except StoppedEarly:
            self.save()
            raise
        except OutputError:
            raise
        except TrpError as error:
            self.save()
            raise saved_before(error) from error
        position.epoch, position.step, position.loss_sum = position.epoch + 1, 0, 0.0
        self.save()
        self._note_odd_images()
        self._progress(record)

    def _measure(self) -> tuple[TrainedNetwork, Record]:
        """The network as a cut would leave it now, and the figures of both."""
        with failing_together():
            cut, macs = cut_now(self.method, self.network, self.batches)
        measured = self.accuracy(self.network.module)
        ranks = {layer["name"]: layer["rank"] for layer in (cut.plan or {}).get("layers", ()) if layer.get("rank")}
        return cut, {
            "accuracy": measured,
            "cut_accuracy": measured if self.method is None else self.accuracy(cut.module),
            "macs_ratio": self._dense_macs / macs,
            "ranks": ranks,
        }

    def accuracy(self, module: nn.Module) -> float:
        """The share of validation images that `module` classifies correctly."""
        return accuracy(module, self.data.validation.batches(), self._stop.raised)

    def _require_finite_weights(self) -> None:
        require_finite_weights(self.network.module, self._position.steps_done(len(self.batches)), self.last)

    def _note_odd_images(self) -> None:
        """Write the names of images that were damaged or unusual, and say how many there are."""
        odd = self.data.odd_images
        odd.gather()
        if world()[0] == 0 and odd.has_more():
            path = self.options.output / "odd-images.txt"
            odd.write(path)
            self._progress({"note": f"{odd.summary()}; {path} names them. Damaged images are left out."})

    # Phases

    @property
    def network(self) -> TrainedNetwork:
        return self._phase.network

    @property
    def method(self) -> Method | None:
        return self._phase.method

    @property
    def batches(self) -> TrainingBatches:
        return self.data.train

    def _enter_phase(self, network: TrainedNetwork) -> None:
        self._phase = start_phase(self.options, network, self.device, len(self.batches))

    def _cut_to_factors(self) -> None:
        """Replace dense weights of low rank by factor pairs, which then train on their own."""
        assert isinstance(self.method, TRP), "only a dense network with a rank rule is cut to factors"
        self._phase.end_average()
        plan = self.method.finish(self.batches.inputs(STATISTICS_BATCHES))
        module = decompose(self.network.module, plan)
        self._enter_phase(replace(self.network, module=module, kind=FACTORS, plan=plan.to_json()))

    def _finish_dense(self) -> None:
        """End a run that has no epochs on factors: the dense weights can be cut without loss afterwards."""
        assert self.method is not None, "only a network with a rule is finished"
        self._phase.end_average()
        self._phase.network, self._phase.method = finish(self.method, self.network, self.batches), None
        if self.options.keep == "last":
            self._keep(self.network)
        self.save()

    # What is kept

    @property
    def last(self) -> Path:
        """The file from which the run can be resumed."""
        return self.options.output / LAST

    @property
    def history(self) -> list[Record]:
        return self._position.history

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
        self._write_state()
        wait_for_all()

    def _write_state(self) -> None:
        if world()[0] == 0:
            self._states.write(state_of(self.options, self.digests, self._phase, self._position))
            tensorboard = self.options.tensorboard and not self._position.step
            write_history(self.history, self.options.output, tensorboard=tensorboard)
        self._states.restart()

    def _restore(self, state: LastState) -> None:
        """Raises ValueError, or what torch raises, where the state does not fit the network."""
        if state.kind == FACTORS and self.network.kind == DENSE:
            module = as_pairs(self.network.module, state.plan, str(self.last))
            self._enter_phase(replace(self.network, module=module, kind=FACTORS, plan=state.plan))
        elif state.kind != self.network.kind:
            raise ValueError("the network holds factors, and the state does not")
        changed = state.digests.get("--data") != self.data.digest
        momentum = self.options.optimisation.momentum
        self._position = restore(state, self._phase, len(self.batches), momentum, data_changed=changed)


def saved_before(error: TrpError) -> TrpError:
    """The error of a run whose state is saved."""
    return type(error)(f"{error} The state is saved: --resume continues.")


def _digests(options: TrainOptions) -> dict[str, str]:
    """The sha256 of the files that the run reads beside its data, by flag."""
    teacher = options.distillation.teacher if options.distillation else None
    plan = options.rule.path if isinstance(options.rule, SavedPlan) else None
    files = {"--init": options.start.init, "--teacher": teacher, "--plan": plan}
    return {name: sha256([path]) for name, path in files.items() if path is not None}
