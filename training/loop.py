"""The training run, read from top to bottom: set up, epochs with projections, the cut, epochs on the factors."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.batches import Normalisation, TrainingBatches, evaluation_batches
from training.batchnorm import reestimate
from training.checkpoint import (
    DENSE,
    FACTORS,
    TrainedNetwork,
    as_pairs,
    load_network,
    new_network,
    save_network,
    write,
)
from training.data import load_labelled_images, require_every_class, require_fit, split
from training.guard import StopRequest, diverged, require_finite, require_finite_weights
from training.history import Record, plot, require_tensorboard, write_jsonl, write_tensorboard
from training.layers import ByName, find_layers, paper_choice, total_macs
from training.loss import training_loss
from training.options import TrainOptions
from training.pairs import decompose, low_rank_copy
from training.replay import saved_plan
from training.replicas import wait_for_all, world
from training.resume import RUN_FORMAT, RUN_VERSION, read_run
from training.schedule import learning_rate
from training.settings import TRPSettings
from training.trp import TRP, as_trained
from trp_export.errors import LoadError, OptionError, OutputError, StoppedEarly
from trp_export.planning.plan import Plan

_STATISTICS_BATCHES = 16

Progress = Callable[[Record], None]


class Run:
    """One training run in one process. `history` has a record per epoch; `network.kind` says which phase it is in."""

    def __init__(self, options: TrainOptions, progress: Progress, resume: bool = False) -> None:
        self.options, self._progress = options, progress
        self.device = _device(options.device)
        if options.tensorboard:
            require_tensorboard()
        torch.manual_seed(options.seed)
        images = load_labelled_images(options.data)
        if options.init is None:  # Weights say themselves how many classes there are, and images may be of a few.
            require_every_class(images)
        train, self.validation = split(images, options.validation, options.seed)
        self.network = _start(options, train.classes)
        require_fit(train, self.network.input_shape, _outputs(self.network))
        self._normalisation = Normalisation(self.network.mean, self.network.std)
        self.batches = TrainingBatches(train, self._normalisation, options.batch, options.seed, self.device, world())
        if not len(self.batches):
            raise OptionError(f"--batch {options.batch} is more than the {len(train)} training images.")
        self._teacher = self._load_teacher(train.classes)
        dense = new_network(self.network.arch, self.network.classes, self.network.input_shape).module
        self._dense_macs = total_macs(find_layers(dense, self.network.input_shape))
        self.history: list[Record] = []
        self.epoch = self.step = 0
        self._loss_sum = 0.0
        self.trp: TRP | None = None
        self._enter_phase()
        if resume:
            self._restore()
        else:
            _require_new(options)

    def train(self) -> None:
        """All epochs that are left. Raises StoppedEarly, with the run saved, where Ctrl-C or SIGTERM came."""
        options = self.options
        with StopRequest() as stop:
            while self.epoch < options.epochs:
                if self.trp is not None and self.epoch == options.epochs - options.factors:
                    self._cut()
                started = time.perf_counter()
                first_step = self.step
                self._train_epoch(stop)
                images = (len(self.batches) - first_step) * options.batch
                self._end_epoch(images / (time.perf_counter() - started))
            if self.trp is not None:
                self._cut_for_good()

    def _train_epoch(self, stop: StopRequest) -> None:
        options, steps = self.options, len(self.batches)
        self._model.train()
        for x, y in self.batches.epoch(self.epoch, self.step):
            progress = (self.epoch * steps + self.step) / (options.epochs * steps)
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(options.schedule, options.lr, progress)
            self._train_step(x, y)
            self.step += 1
            self._progress({"step": self.step, "steps": steps, "epoch": self.epoch, "loss": self._loss_sum / self.step})
            if stop.pending(self.step) and self.step < steps:
                require_finite_weights(self.network.module, self._steps_done, self._last)
                self.save()
                raise StoppedEarly

    def _train_step(self, x: Tensor, y: Tensor) -> None:
        options = self.options
        with self._autocast():
            with torch.no_grad():
                taught = self._teacher(x) if self._teacher is not None else None
            logits = self._model(x)
        loss = training_loss(logits, y, taught, options.temperature, options.teacher_share)
        require_finite(loss, self.network.module, x, self._steps_done + 1, self._last)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        try:
            self._optimizer.step()
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # Of a projection.
            raise diverged("weights are too large to project", self._steps_done + 1, self._last) from error
        self._loss_sum += float(loss.detach())

    @property
    def _steps_done(self) -> int:
        return self.epoch * len(self.batches) + self.step

    @property
    def _last(self) -> Path:
        return self.options.output / "last.pt"

    def _end_epoch(self, images_per_second: float) -> None:
        require_finite_weights(self.network.module, self._steps_done, self._last)
        steps = len(self.batches)
        record: Record = {
            "epoch": self.epoch + 1,
            "kind": self.network.kind,
            "loss": self._loss_sum / steps,
            "lr": self._optimizer.param_groups[0]["lr"],
            "images_per_s": round(images_per_second, 1),
        }
        cut, macs = self._cut_now()
        record["accuracy"] = self.accuracy(self.network.module)
        record["cut_accuracy"] = record["accuracy"] if self.trp is None else self.accuracy(cut.module)
        record["macs_ratio"] = self._dense_macs / macs
        record["ranks"] = {
            layer["name"]: layer["rank"] for layer in (cut.plan or {}).get("layers", ()) if layer.get("rank")
        }
        self.history.append(record)
        self.epoch, self.step, self._loss_sum = self.epoch + 1, 0, 0.0
        if self.kept is record:
            self._keep(cut)
        self.save()
        self._progress(record)

    @property
    def kept(self) -> Record:
        """The epoch whose network is in model.pt, once cut: the best so far, or under `keep="last"` simply the last."""
        if self.options.keep == "last":
            return self.history[-1]
        return max(self.history, key=lambda record: record["cut_accuracy"])  # Of equals the first.

    def _cut_now(self) -> tuple[TrainedNetwork, int]:
        """The network as it would be if it were cut now, and its multiply-adds. It is cut already in the last phase."""
        if self.trp is None:
            return self.network, total_macs(find_layers(self.network.module, self.network.input_shape))
        plan = self.trp.measure()
        module = low_rank_copy(self.network.module, plan)
        reestimate(module, self.batches.inputs(_STATISTICS_BATCHES))
        cut = replace(self.network, module=module, plan=as_trained(plan).to_json())
        return cut, sum(decision.macs for decision in plan.decisions)

    def _cut(self) -> None:
        """From dense weights of low rank to factors that train on their own."""
        plan = self._finish()
        self.network = replace(
            self.network, module=decompose(self.network.module, plan), kind=FACTORS, plan=plan.to_json()
        )
        self._enter_phase()

    def _cut_for_good(self) -> None:
        plan = self._finish()
        self.network = replace(self.network, plan=plan.to_json())
        if self.options.keep == "last":
            self._keep(self.network)
        self.save()

    def _finish(self) -> Plan:
        assert self.trp is not None
        plan = self.trp.finish(self.batches.inputs(_STATISTICS_BATCHES))
        self.trp = None
        return plan

    def _keep(self, network: TrainedNetwork) -> None:
        if world()[0] == 0:
            save_network(network, self.options.output / "model.pt", self.history)

    @torch.no_grad()
    def accuracy(self, module: nn.Module) -> float:
        """Share of the validation images that `module` gets right."""
        was_training, hits = module.training, 0
        module.eval()
        for x, y in evaluation_batches(self.validation, self._normalisation, self.device):
            hits += int((module(x).argmax(1) == y).sum())
        module.train(was_training)
        return hits / len(self.validation)

    def save(self) -> None:
        """All that a resumed run needs, in one stroke, and the history to look at.

        Replicas wait for it: one that ended before would have torchrun end the first while it writes.
        """
        if world()[0] == 0:
            self._write()
        wait_for_all()

    def _write(self) -> None:
        output = self.options.output
        content = {
            "format": RUN_FORMAT,
            "version": RUN_VERSION,
            "options": self.options.to_json(),
            "kind": self.network.kind,
            "plan": self.network.plan,
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self._loss_sum,
            "model": self.network.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "trp": self.trp.state_dict() if self.trp else None,
            "history": self.history,
        }
        write(content, self._last)
        try:
            write_jsonl(self.history, output / "history.jsonl")
            if self.history:
                plot(self.history, output / "history.png")
                if self.options.tensorboard and self.step == 0:
                    write_tensorboard(self.history[-1], output / "tensorboard")
        except OSError as error:
            raise OutputError(f"{output} cannot be written: {error.strerror}.") from error

    def _restore(self) -> None:
        content = read_run(self.options.output)
        try:
            self._fill(content)
        except (
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
            RuntimeError,
        ) as error:  # torch's for what does not fit
            raise LoadError(
                f"{self._last} does not fit {self.network.arch}: the network or its plan has changed, or it is damaged."
            ) from error

    def _fill(self, content: Mapping[str, Any]) -> None:
        if content["kind"] == FACTORS and self.network.kind == DENSE:
            module = as_pairs(self.network.module, content["plan"], str(self._last))
            self.network = replace(self.network, module=module, kind=FACTORS, plan=content["plan"])
            self.trp = None
            self._enter_phase()
        self.network.module.load_state_dict(content["model"])
        self._optimizer.load_state_dict(content["optimizer"])
        if content["trp"] is None:
            self.trp = None  # Cut for good: a second time would be lower still.
        elif self.trp is not None:
            self.trp.load_state_dict(content["trp"])
        self.epoch, self.step, self._loss_sum = int(content["epoch"]), int(content["step"]), float(content["loss_sum"])
        self.history = content["history"]
        if len(self.history) != self.epoch:
            raise ValueError("a record per epoch")

    def _enter_phase(self) -> None:
        """Model, optimizer and, while the weights are dense and there is a rule, TRP."""
        options, network = self.options, self.network
        module = _placed(network.module, self.device).train()
        self.network = replace(network, module=module)
        self._model = _wrapped(module, options, self.device)
        self._optimizer = torch.optim.SGD(
            module.parameters(),
            options.lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
        )
        if network.kind == DENSE and options.rule is not None:
            self.trp = TRP(module, self._optimizer, self._settings(), network.input_shape)
        else:
            self.trp = None

    def _settings(self) -> TRPSettings:
        options = self.options
        assert options.rule is not None
        steps = (options.epochs - options.factors) * len(self.batches)
        chosen = ByName(options.only, options.skip) if options.only or options.skip else paper_choice
        return TRPSettings(
            rule=options.rule,
            schemes={"*": options.scheme},
            layers=chosen,
            period=options.period,
            nuclear=options.nuclear,
            nuclear_every_step=options.nuclear_every_step,
            project=options.project,
            ramp=options.ramp,
            ramp_steps=int(0.75 * steps),
            exact_every=options.exact_every,
            momentum=options.momentum_at_projection,
            preserve_energy=options.preserve_energy,
        )

    def _load_teacher(self, classes: tuple[str, ...]) -> nn.Module | None:
        if self.options.teacher is None:
            return None
        arch = self.options.teacher_arch or self.options.arch
        teacher = load_network(self.options.teacher, arch, classes, self.network.input_shape)
        if (teacher.mean, teacher.std) != (self.network.mean, self.network.std):
            raise OptionError("--teacher is normalised by another mean and std than the network it would teach.")
        return _placed(teacher.module, self.device).eval()

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.options.amp:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def _start(options: TrainOptions, classes: tuple[str, ...]) -> TrainedNetwork:
    if options.init is not None:
        network = load_network(options.init, options.arch, classes, options.input_shape)
    else:
        assert options.arch is not None
        network = new_network(options.arch, classes, options.input_shape)
    if options.plan is not None:
        network = _by_plan(network, options.plan)
    if options.factors == options.epochs and network.kind == DENSE and options.rule is None:
        raise OptionError("--factors needs a rank rule (--energy, --threshold or --macs) or a --plan to cut by.")
    return replace(network, classes=network.classes or classes, module=copy.deepcopy(network.module))


def _by_plan(network: TrainedNetwork, path: Path) -> TrainedNetwork:
    if network.kind == FACTORS:
        raise OptionError("--init holds factors already: leave --plan out to train them, or start from dense weights.")
    plan = saved_plan(path, network.module, network.input_shape)
    return replace(network, module=decompose(network.module, plan), kind=FACTORS, plan=as_trained(plan).to_json())


def _outputs(network: TrainedNetwork) -> int:
    last = [module for module in network.module.modules() if isinstance(module, nn.Linear)]
    return last[-1].out_features if last else len(network.classes)


def _placed(module: nn.Module, device: torch.device) -> nn.Module:
    """On the device, its kernels channels last in memory."""
    return module.to(device).to(memory_format=torch.channels_last)


def _wrapped(module: nn.Module, options: TrainOptions, device: torch.device) -> nn.Module:
    model: nn.Module = module
    if world()[1] > 1:
        model = nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    return torch.compile(model) if options.compile else model  # type: ignore[return-value]


def _device(name: str) -> torch.device:
    if name == "auto":
        name = f"cuda:{world()[0] % max(1, torch.cuda.device_count())}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"--device {name} is not there: {str(error).splitlines()[0]}") from error
    return device


def _require_new(options: TrainOptions) -> None:
    if (options.output / "last.pt").exists():
        raise OptionError(f"{options.output} holds a run already: go on with --resume, or name another folder with -o.")
