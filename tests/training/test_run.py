"""Whole runs of trp-train on a small network: what they write, how they stop, resume and fail."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training import cli
from training.checkpoint import FACTORS, load_network, new_network, save_network, write
from training.last_state import read_last_state
from training.layers import find_layers, total_macs
from training.loop import TrainingRun
from training.optimisation import Speed
from training.options import TrainOptions, with_recipe
from training.prepare import find_device, start_network
from training.run_folder import run_folder
from trp_export.errors import LoadError, OptionError, StoppedEarly, TrpError
from trp_export.flags import build_value
from trp_export.load.torch_file import read_torch_file
from trp_export.lowrank import schemes
from trp_export.planning.saved_plan import parse_plan

HERE = Path(__file__).parent
Command = Callable[..., Any]
TINY, SHAPE = "tiny_networks:tiny", (1, 3, 8, 8)


def options_for(data: Path, output: Path, **changes: Any) -> TrainOptions:
    """The options of a short run; `changes` are by the keys of flags."""
    given = {"data": f"npz:{data}", "output": output, "arch": TINY, "shape": SHAPE, "macs": 1.6, "period": 3}
    given |= {"nuclear": 1e-3, "epochs": 4, "batch": 16, "lr": 0.05, "validation": 64, "device": "cpu"}
    output.mkdir(exist_ok=True)
    options: TrainOptions = build_value(TrainOptions, given | changes)
    return options


def silent(record: dict[str, Any]) -> None:
    pass


def train(options: TrainOptions, **more: Any) -> TrainingRun:
    run = TrainingRun(options, silent, **more)
    run.train()
    return run


def read(path: Path) -> dict[str, Any]:
    content = read_torch_file(path)
    assert isinstance(content, dict)
    return content


def load(path: Path) -> Any:
    return load_network(path, TINY)


def test_a_run_trains_a_network_of_low_rank(stripes: Path, tmp_path: Path) -> None:
    run = train(options_for(stripes, tmp_path / "run", epochs=8))
    network = load(tmp_path / "run" / "model.pt")
    assert network.plan is not None
    assert run.history[-1]["cut_accuracy"] > 0.9
    assert run.history[-1]["macs_ratio"] >= 1.6
    for choice in parse_plan(network.plan, "plan").layers:
        if not choice.branches:
            continue
        (branch,) = choice.branches
        weight = network.module.get_submodule(choice.name).weight.detach().double().numpy()
        (matrix,) = schemes.unfold(weight, branch.scheme, 1)
        assert np.linalg.matrix_rank(matrix, tol=1e-5 * np.linalg.norm(matrix, 2)) == branch.rank
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 9))
    assert (tmp_path / "run" / "history.png").stat().st_size > 0


def test_factors_are_trained_at_the_end(stripes: Path, tmp_path: Path) -> None:
    train(options_for(stripes, tmp_path / "dense", epochs=6, schedule="step", ramp="none"))
    teacher = tmp_path / "dense" / "model.pt"
    # Long enough to learn it under any seed, so that rounding on another machine does not matter.
    changes = {"epochs": 20, "factors": 15, "teacher": teacher, "amp": True, "keep": "last", "schedule": "cosine"}
    run = train(options_for(stripes, tmp_path / "run", ramp="cosine", **changes))
    assert [record["kind"] for record in run.history] == ["dense"] * 5 + ["factors"] * 15
    network = load(tmp_path / "run" / "model.pt")
    assert network.kind == FACTORS
    dense = total_macs(find_layers(load(teacher).module, SHAPE))
    assert dense / total_macs(find_layers(network.module, SHAPE)) >= 1.6
    assert run.accuracy(network.module) == run.history[-1]["accuracy"] > 0.8
    again = train(options_for(stripes, tmp_path / "more", init=tmp_path / "run" / "model.pt", epochs=1, macs=None))
    assert again.network.kind == FACTORS
    with pytest.raises(OptionError, match=r"a rule such as --macs needs dense weights, and .*model\.pt holds factors"):
        TrainingRun(options_for(stripes, tmp_path / "cut", init=tmp_path / "run" / "model.pt"), silent)


def test_a_teacher_must_be_normalised_as_the_network_is(stripes: Path, tmp_path: Path) -> None:
    train(options_for(stripes, tmp_path / "dense", epochs=1, macs=None))
    content, teacher = read(tmp_path / "dense" / "model.pt"), tmp_path / "teacher.pt"
    write(content | {"mean": np.float32(content["mean"]).tolist()}, teacher)  # As a float32 tensor gives its values.
    TrainingRun(options_for(stripes, tmp_path / "run", teacher=teacher, macs=None), silent)
    write(content | {"mean": [0.5, 0.5, 0.5]}, teacher)
    with pytest.raises(OptionError, match="normalised by a different mean and std"):
        TrainingRun(options_for(stripes, tmp_path / "other", teacher=teacher, macs=None), silent)


def test_a_teacher_has_the_architecture_that_its_file_names(stripes: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.pt"
    save_network(new_network("resnet20", ("a", "b", "c", "d")), teacher, [])
    run = TrainingRun(options_for(stripes, tmp_path / "run", teacher=teacher), silent)
    assert run.network.arch == TINY


def test_a_teacher_knows_the_classes_of_the_network(stripes: Path, tmp_path: Path) -> None:
    teacher, own = tmp_path / "teacher.pt", tmp_path / "own.pt"
    save_network(new_network(TINY, ("a", "b", "c", "d"), SHAPE), own, [])
    for classes, message in (
        (("a", "b"), "the --teacher has 2 classes, and the network 4"),
        (("a", "c", "b", "d"), "the --teacher has other classes than the network: c in the place of b"),
    ):
        save_network(new_network(TINY, classes, SHAPE), teacher, [])
        with pytest.raises(OptionError, match=message):
            TrainingRun(options_for(stripes, tmp_path / "run", init=own, teacher=teacher, macs=None), silent)


def test_weights_of_other_classes_than_the_images_keep_their_head(stripes: Path, tmp_path: Path) -> None:
    torch.save(new_network(TINY, tuple("abcdefg"), SHAPE).module.state_dict(), tmp_path / "dense.pt")
    train(options_for(stripes, tmp_path / "run", init=tmp_path / "dense.pt", epochs=1, factors=1))
    network = load(tmp_path / "run" / "model.pt")
    assert (network.kind, network.module.head.out_features, network.classes) == (FACTORS, 7, ())


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_auxiliary_heads_take_no_part(stripes: Path, tmp_path: Path, arch: str) -> None:
    changes = {"arch": f"torchvision:{arch}", "shape": (1, 3, 96, 96), "macs": None}
    network = start_network(options_for(stripes, tmp_path / "run", **changes), ("a", "b"))
    assert network.module.train()(torch.zeros(2, 3, 96, 96)).shape == (2, 2)
    save_network(network, tmp_path / "model.pt", [])
    assert load_network(tmp_path / "model.pt", None).classes == ("a", "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "tiny_networks:tiny_with_features"}, "tiny_with_features returns a tuple; trp-train needs a tensor"),
        ({"arch": "resnet14-seg"}, "resnet14-seg returns a tensor .*; trp-train needs one of"),
        ({"arch": "vgg8", "shape": (1, 3, 4, 4)}, "vgg8 cannot take an input of 1,3,4,4: "),
        ({"sync_bn": True}, "--sync-bn needs GPUs, and this run is on cpu"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(
    stripes: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message) as error:
        TrainingRun(options_for(stripes, tmp_path / "run", **changes), silent)
    assert "\n" not in str(error.value)


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.prepare.torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("training.prepare.torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("training.prepare.torch.zeros", lambda *shape, device: None)
    monkeypatch.setattr("training.prepare.world", lambda: (5, 8))
    devices = [find_device(Speed(device=name)) for name in ("auto", "cuda", "cuda:3", "cpu")]
    assert list(map(str, devices)) == ["cuda:1", "cuda:1", "cuda:3", "cpu"]


def test_a_network_is_trained_without_a_rank_rule(stripes: Path, tmp_path: Path) -> None:
    run = train(options_for(stripes, tmp_path / "run", macs=None, epochs=1))
    assert run.history[-1]["macs_ratio"] == 1
    assert load(tmp_path / "run" / "model.pt").plan is None


def test_a_class_without_images_is_refused(stripes: Path, tmp_path: Path) -> None:
    train(options_for(stripes, tmp_path / "run", epochs=1, macs=None))
    with np.load(stripes / "train_0.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    few = tmp_path / "few"
    few.mkdir()
    np.savez(few / "train.npz", images=images, labels=np.where(labels == 2, 3, labels))
    with pytest.raises(LoadError, match="there is no image of class"):
        TrainingRun(options_for(few, tmp_path / "scratch"), silent)
    # Weights know their classes, of which the images may show some.
    changes = {"init": tmp_path / "run" / "model.pt", "epochs": 1, "macs": None}
    assert train(options_for(few, tmp_path / "further", **changes)).network.classes == ("0", "1", "2", "3")


def stop_at(epoch: int, step: int, number: signal.Signals = signal.SIGTERM) -> Callable[[dict[str, Any]], None]:
    """A progress function that sends a signal after a step."""

    def interrupt(record: dict[str, Any]) -> None:
        if (record["epoch"], record.get("step")) == (epoch, step):
            signal.raise_signal(number)

    return interrupt


@pytest.mark.parametrize(
    ("epoch", "step", "number"), [(0, 5, signal.SIGINT), (2, 7, signal.SIGTERM), (1, 9, signal.SIGHUP)]
)
def test_a_stopped_run_resumes_to_the_same_bits(
    stripes: Path, tmp_path: Path, epoch: int, step: int, number: signal.Signals
) -> None:
    changes = {"factors": 2, "ramp": "linear"}
    whole = train(options_for(stripes, tmp_path / "whole", **changes))
    stopped = TrainingRun(options_for(stripes, tmp_path / "run", **changes), stop_at(epoch, step, number))
    with pytest.raises(StoppedEarly):
        stopped.train()
    resumed = train(options_for(stripes, tmp_path / "run", **changes), resume=True)
    for name, value in whole.network.module.state_dict().items():
        assert torch.equal(value, resumed.network.module.state_dict()[name]), name
    unlike = {"images_per_s": 0, "waiting": 0}  # What the clock says.
    for mine, other in zip(whole.history, resumed.history, strict=True):
        assert {**mine, **unlike} == {**other, **unlike}


def test_a_network_with_dropout_resumes_to_the_same_bits(
    stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"arch": "tiny_networks:tiny_dropout", "epochs": 2}
    whole = train(options_for(stripes, tmp_path / "whole", **changes)).network.module.state_dict()
    with pytest.raises(StoppedEarly):
        TrainingRun(options_for(stripes, tmp_path / "run", **changes), stop_at(1, 5)).train()
    resumed = train(options_for(stripes, tmp_path / "run", **changes), resume=True).network.module.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    # Another process of a run drops other values.
    monkeypatch.setattr("training.step.world", lambda: (1, 2))
    other = train(options_for(stripes, tmp_path / "other", **changes)).network.module.state_dict()
    assert not torch.equal(other["head.weight"], whole["head.weight"])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_finished_run_is_not_cut_again(stripes: Path, tmp_path: Path, keep: str) -> None:
    # After a cut by energy the same share of what is left asks for fewer ranks.
    options = options_for(stripes, tmp_path / "run", macs=None, energy=0.8, epochs=2, keep=keep)
    train(options)
    files = [options.output / name for name in ("model.pt", "last.pt", "history.jsonl")]
    left = [path.read_bytes() for path in files]
    for _ in range(2):
        train(options, resume=True)
        assert [path.read_bytes() for path in files] == left


def damaged_states(sound: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """States of a run that no run has written: each field missing, then each field wrong in several ways."""
    for key in sound:
        yield {name: sound[name] for name in sound if name != key}
    record, trp, optimizer = sound["history"][0], sound["method"], sound["optimizer"]
    name = next(iter(trp["ranks"]))
    buffer = optimizer[0]["momentum_buffer"]
    head = sound["model"]["head.weight"]
    for change in (
        {"format": "trp-checkpoint"},
        {"version": 1},
        {"options": 3},
        {"options": sound["options"] | {"epochs": "x"}},
        {"options": sound["options"] | {"epochs": 4}},
        {"options": sound["options"] | {"data": "\x1b]0;title\x07"}},
        {"digests": None},
        {"digests": {"--data": 5}},
        {"kind": "\x1b[2J"},
        {"kind": "factors", "plan": None},
        {"kind": "factors", "plan": sound["plan"]},
        {"plan": 5},
        {"plan": {}},
        {"options": sound["options"] | {"arch": "torchvision:vit_h_14"}},
        *({"epoch": epoch} for epoch in ("x", -1, 2, 10**9, None, True, 1.0)),
        *({"step": step} for step in ("x", -1, 16, 10**9, 10**400)),
        *({"loss_sum": value} for value in (math.nan, math.inf, "x", 10**400)),
        {"model": {}},
        {"model": 3},
        {"model": sound["model"] | {5: head}},
        *({"model": sound["model"] | {"head.weight": value}} for value in (torch.zeros(5, 12), head * math.nan, 3)),
        *({"model": sound["model"] | {"head.weight": value}} for value in (head.to_sparse(), head.to("meta"))),
        {"optimizer": 3},
        {"optimizer": {}},
        *({"optimizer": optimizer | {0: value}} for value in (3, {"momentum_buffer": 3})),
        *({"optimizer": optimizer | {0: {"momentum_buffer": v}}} for v in (buffer * math.inf, buffer[:1], None)),
        {"optimizer": optimizer | {999: {"momentum_buffer": buffer}}},
        {"method": None},
        {"method": {"step": 1}},
        {"method": trp | {"step": 10**9}},
        *({"method": trp | {"ranks": trp["ranks"] | {name: rank}}} for rank in (0, -3, 10**6, "x")),
        *({"method": trp | {"schemes": trp["schemes"] | {name: scheme}}} for scheme in ("x", 3, "channel-wise")),
        *({"method": trp | {"orders": trp["orders"] | {name: order}}} for order in ((), (0, 0), "x")),
        *({"method": trp | {"pulls": {name: pull}}} for pull in (torch.zeros(1), 5)),
        {"method": trp | {"spaces": {name: torch.zeros(3)}}},
        {"average": {}},
        {"version": torch.zeros(3)},
        {"history": []},
        {"history": [{"x": 1}]},
        {"history": [record, record]},
        *({"history": [record | {key: math.nan}]} for key in ("loss", "accuracy", "images_per_s")),
        {"history": [record | {"kind": "\x1b[2J"}]},
        *({"history": [record | {"ranks": ranks}]} for ranks in ({"a": -1}, {"\x1b": 1}, {"a": "b"}, None)),
    ):
        yield sound | change


def test_a_damaged_state_is_refused_in_each_field(stripes: Path, tmp_path: Path, command: Command) -> None:
    train(options_for(stripes, tmp_path / "run", epochs=1))
    # As if the run had been killed before the cut after its last epoch.
    resume = ("--resume", "--arch", TINY, "-o", tmp_path / "run")
    path = tmp_path / "run" / "last.pt"
    interrupted = TrainingRun(options_for(stripes, tmp_path / "two", epochs=2), stop_at(1, 3))
    with pytest.raises(StoppedEarly):
        interrupted.train()
    sound = read(tmp_path / "two" / "last.pt")
    for content in damaged_states(sound):
        write(content, path)
        done = command(*resume)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), (done.stderr, content)
        assert "last.pt" in done.stderr
        assert done.stderr.rstrip("\n").isprintable()
        assert len(done.stderr) < 600
    write(sound | {"options": sound["options"] | {"output": str(tmp_path / "run")}}, path)
    assert command(*resume).returncode == 0


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ((0, 2), r"step 3: .*conv2 is the first layer with such outputs\. Nothing is saved yet: start again"),
        ((1, 2), r"step 19: .*conv2 is the first layer with such outputs\. .*last\.pt is from before: continue with"),
        ((1, 16), r"step 32: conv2\.weight is no longer finite\. .*last\.pt is from before"),
    ],
)
def test_a_loss_that_is_not_finite_names_the_step_and_the_layer(
    stripes: Path, tmp_path: Path, when: tuple[int, int], message: str
) -> None:
    run = TrainingRun(options_for(stripes, tmp_path / "run"), silent)
    assert len(run.batches) == 16

    def poison(record: dict[str, Any]) -> None:
        if (record["epoch"], record.get("step")) == when:
            run.network.module.get_submodule("conv2").weight.data[0, 0, 0, 0] = float("inf")

    run._progress = poison
    with pytest.raises(TrpError, match=message):
        run.train()
    if when[0] == 0:
        assert not (tmp_path / "run" / "last.pt").exists()
        return
    state = read(tmp_path / "run" / "last.pt")
    assert state["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_weights_too_large_to_project_are_reported(stripes: Path, tmp_path: Path) -> None:
    run = TrainingRun(options_for(stripes, tmp_path / "run", period=1, lr=9e36), silent)
    with pytest.raises(TrpError, match="start again with a lower --lr"):
        run.train()


def test_contradicting_options_are_refused(stripes: Path, tmp_path: Path) -> None:
    for wrong in (
        {"epochs": 0},
        {"factors": 9},
        {"batch": 0},
        {"lr": 0.0},
        {"momentum": 1.0},
        {"momentum": 0.0, "nesterov": True},
        {"weight_decay": -1.0},
        {"energy": 0.9},
        {"ramp": "up"},
        {"schedule": "?"},
        {"teacher_share": 2.0},
        {"arch": None},
        {"keep": "none"},
        {"validation": 0},
        {"validation": -3},
    ):
        with pytest.raises(OptionError):
            options_for(stripes, tmp_path / "run", **wrong)
    for wrong in ({"batch": 500}, {"validation": 320}, {"macs": 900.0}, {"device": "cuda:77"}, {"only": ("x",)}):
        with pytest.raises(OptionError):
            TrainingRun(options_for(stripes, tmp_path / "run", **wrong), silent)
    with pytest.raises(LoadError, match="no run to continue"):
        TrainingRun(options_for(stripes, tmp_path / "run"), silent, resume=True)


@dataclass(frozen=True, slots=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs trp-train in this process: a process of its own takes seconds to import torch."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["trp-train", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Done(code, *capsys.readouterr())

    return run


def test_without_a_word_factors_train_for_three_quarters_and_the_start_teaches(
    stripes: Path, tmp_path: Path, command: Command
) -> None:
    start = tmp_path / "dense" / "model.pt"
    train(options_for(stripes, tmp_path / "dense", epochs=1, macs=None))
    short = (
        "--data",
        f"npz:{stripes}",
        "--batch",
        16,
        "--validation",
        64,
        "--epochs",
        4,
        "--arch",
        TINY,
        "--macs",
        1.6,
    )
    done = command(*short, "--init", start, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "note: the last 3 of 4 epochs train factors (--factors)" in done.stderr
    assert "note: the network of --init is the teacher (--no-teacher trains without)" in done.stderr
    run = tmp_path / "run"
    assert [record["kind"] for record in read(run / "model.pt")["history"]][:2] == ["dense", "factors"]
    stored = read_last_state(run).options
    assert stored["teacher"] == str(start)
    assert stored["factors"] == "3"
    refused = command(*short, "--init", start, "--teacher", start, "--no-teacher", "-o", tmp_path / "other")
    assert refused.returncode == 2
    assert "--teacher and --no-teacher contradict each other" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "factors", "teaches"),
    [
        ({}, 3, True),
        ({"no_teacher": False}, 3, False),
        ({"init": None}, 3, False),
        ({"factors": 0}, 0, True),
        ({"macs": None}, None, False),
        ({"method": "csgd"}, None, True),
        ({"macs": None, "plan": "plan.json"}, None, True),
    ],
)
def test_what_is_chosen_where_nothing_is_said(
    changes: dict[str, Any], factors: int | None, teaches: bool, tmp_path: Path
) -> None:
    changes = {"init": tmp_path / "start.pt"} | changes
    options, notes = with_recipe(options_for(tmp_path, tmp_path / "run", **changes))
    assert options.optimisation.factors == factors
    assert (options.distillation is not None) == teaches
    assert len(notes) == (factors is not None and "factors" not in changes) + teaches
    if options.distillation is not None:
        assert options.distillation.teacher == tmp_path / "start.pt"


def test_the_command_reads_a_config_file_and_resumes(stripes: Path, tmp_path: Path, command: Command) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f'arch = "{TINY}"\nshape = "1,3,8,8"\ndata = "npz:{stripes}"\nmacs = 1.6\n'
        'epochs = 9\nbatch = 16\nvalidation = 64\nonly = ["conv*"]\n'
    )
    done = command("--config", config, "--arch", TINY, "--epochs", 1, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "x fewer MACs" in done.stdout
    assert "epoch 1  loss" in done.stderr
    again = command("--config", config, "--arch", TINY, "--epochs", 1, "-o", tmp_path / "run")
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("error: ")
    assert "holds a run already" in again.stderr
    resumed = command("--resume", "--epochs", 3, "-o", tmp_path / "run")
    assert resumed.returncode == 2
    assert "--epochs 3 differs from the stored 1" in resumed.stderr
    assert command("--resume", "--arch", TINY, "-o", tmp_path / "run").returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown option 'epoch'"),
        ("epochs = ", "cannot be read as TOML"),
        ("epochs = 1.5", "--epochs must be a whole number, not '1.5'"),
        ("epochs = true", "--epochs must be a text"),
        ("epochs = [3]", "--epochs must be a text"),
        ("epochs = 1979-05-27", "--epochs must be a text"),
        ("[epochs]\nx = 1", "--epochs must be a text"),
        ("lr = 'fast'", "--lr must be a number, not 'fast'"),
        ("lr = nan", "--lr must be a number above 0"),
        ("amp = 'yes'", "--amp must be true or false"),
        ("only = 'conv*'", "--only must be a list of texts"),
        ("schedule = 'never'", "--schedule must be one of step, cosine, not 'never'"),
        ("seed = " + "9" * 5000, "cannot be read as TOML"),
        (f"seed = {2**64}", "--seed must lie between 0 and 2^63 - 1"),
        ("data = '\x1b[2J'", "cannot be read as TOML"),
        ('data = "\\u001b[2J"', "--data must be a text"),
        ("only = " + "[" * 5000, "cannot be read as TOML"),
        ("# " + "x" * 70_000, "is larger than 64 KiB"),
    ],
)
def test_a_bad_config_file_is_refused_in_a_line(tmp_path: Path, command: Command, text: str, message: str) -> None:
    config = tmp_path / "run.toml"
    config.write_text(text)
    done = command("--config", config, "--arch", "resnet20", "--data", "npz:x", "-o", tmp_path / "run")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert message in done.stderr
    assert len(done.stderr) < 400
    assert done.stderr.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('arch = "evil_net:make"', "asks to import evil_net:make. If you trust it, repeat the name: --arch"),
        (
            'arch = "resnet20"\nteacher = "x.pt"\nteacher-arch = "evil_net:make"',
            "asks to import evil_net:make. If you trust it, repeat the name: --teacher-arch",
        ),
        ('arch = "resnet20"\ndata = "webdataset:pipe:touch imported"', "If you trust it, repeat it with --data"),
    ],
)
def test_a_config_file_imports_and_runs_nothing_that_it_alone_names(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "run.toml").write_text(text)
    (tmp_path / "evil_net.py").write_text("open('imported', 'w').write('x')\ndef make(**options): ...\n")
    monkeypatch.chdir(tmp_path)
    data = () if "data" in text else ("--data", "npz:x")
    done = command("--config", "run.toml", *data, "-o", "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not (tmp_path / "imported").exists()


def test_a_config_file_does_not_speak_for_the_user_when_a_run_resumes(
    stripes: Path, tmp_path: Path, command: Command
) -> None:
    train(options_for(stripes, tmp_path / "run", epochs=1))
    (tmp_path / "run.toml").write_text(f'arch = "{TINY}"\n')
    done = command("--resume", "--config", tmp_path / "run.toml", "-o", tmp_path / "run")
    assert (done.returncode, "repeat the name: --arch" in done.stderr) == (2, True)


@pytest.mark.parametrize("key", ["arch", "teacher_arch"])
def test_resume_imports_no_architecture_that_only_the_file_names(
    stripes: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    teacher = tmp_path / "dense" / "model.pt"
    train(options_for(stripes, tmp_path / "dense", macs=None, epochs=1))
    train(options_for(stripes, tmp_path / "run", epochs=1, teacher=teacher))
    state = read(tmp_path / "run" / "last.pt")
    write(state | {"options": state["options"] | {key: "evil_net:make"}}, tmp_path / "run" / "last.pt")
    (tmp_path / "evil_net.py").write_text("open('imported', 'w').write('x')\ndef make(**options): ...\n")
    monkeypatch.chdir(tmp_path)
    arch = () if key == "arch" else ("--arch", TINY)
    done = command("--resume", *arch, "-o", "run")
    flag = "--" + key.replace("_", "-")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"asks to import evil_net:make. If you trust it, repeat the name: {flag} evil_net:make." in done.stderr
    assert not (tmp_path / "imported").exists()
    assert "evil_net" not in sys.modules


def test_resume_on_changed_data_is_refused_unless_allowed(stripes: Path, tmp_path: Path, command: Command) -> None:
    with pytest.raises(StoppedEarly):
        TrainingRun(options_for(stripes, tmp_path / "run", epochs=2), stop_at(1, 5)).train()
    with np.load(stripes / "train_0.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    images[0, 0, 0, 0] ^= 1
    np.savez(stripes / "train_0.npz", images=images, labels=labels)
    resume = ("--resume", "--arch", TINY, "-o", tmp_path / "run")
    done = command(*resume)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--data holds other data than when this run was started" in done.stderr
    assert command(*resume, "--allow-changed-data").returncode == 0


@pytest.mark.parametrize("step", [5, 9])
def test_a_run_goes_on_with_another_number_of_images(stripes: Path, tmp_path: Path, step: int) -> None:
    options = options_for(stripes, tmp_path / "run", epochs=3)
    with pytest.raises(StoppedEarly):
        TrainingRun(options, stop_at(1, step)).train()
    for path in stripes.iterdir():
        with np.load(path) as archive:
            half = {name: archive[name][:80] for name in ("images", "labels")}
        np.savez(path, **half)
    run = TrainingRun(options, stop_at(2, 2), resume=True, allow_changed_data=True)
    assert len(run.batches) == 6  # Once 16.
    with pytest.raises(StoppedEarly):
        run.train()
    assert len(train(options, resume=True).history) == 3


def test_a_loss_just_below_zero_is_no_damage(stripes: Path, tmp_path: Path) -> None:
    options, path = options_for(stripes, tmp_path / "run", epochs=2), tmp_path / "run" / "last.pt"
    with pytest.raises(StoppedEarly):
        TrainingRun(options, stop_at(1, 5)).train()
    state = read(path)
    write(state | {"loss_sum": -1e-9, "history": [state["history"][0] | {"loss": -1e-9}]}, path)
    assert len(train(options, resume=True).history) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--period", 3), "--period has no effect here: it needs a rule for ranks: --macs, --energy or --threshold."),
        (("--plan", "plan.json", "--align", 4), "--align has no effect here: it needs a rule for ranks"),
        (("--method", "csgd", "--widths", 0.5, "--scheme", "channel"), "--scheme has no effect here: it needs a rule"),
        (("--only", "conv*"), "--only has no effect here: it needs a rule such as --macs."),
        (("--macs", 2, "--strength", 0.1), "--strength has no effect here: it needs --method csgd."),
        (
            ("--method", "csgd", "--macs", 2, "--gate-steps", 9),
            "--gate-steps has no effect here: it needs --method dag",
        ),
        (("--factors", 3), "--factors has no effect here: it needs a rule by which the network is cut"),
    ],
)
def test_options_without_effect_are_refused(
    tmp_path: Path, command: Command, arguments: tuple[object, ...], message: str
) -> None:
    done = command("--arch", "resnet20", "--data", "npz:x", *arguments, "-o", tmp_path / "run")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def test_a_run_of_earlier_days_goes_on_with_options_without_effect(
    stripes: Path, tmp_path: Path, command: Command
) -> None:
    with pytest.raises(StoppedEarly):
        TrainingRun(options_for(stripes, tmp_path / "run", macs=None, period=3), stop_at(1, 5)).train()
    assert command("--resume", "--arch", TINY, "-o", tmp_path / "run").returncode == 0


def test_resume_with_a_changed_teacher_is_refused(stripes: Path, tmp_path: Path, command: Command) -> None:
    teacher = tmp_path / "dense" / "model.pt"
    train(options_for(stripes, tmp_path / "dense", macs=None, epochs=1))
    train(options_for(stripes, tmp_path / "run", epochs=1, teacher=teacher))
    write(read(teacher) | {"licence": "other"}, teacher)
    done = command("--resume", "--arch", TINY, "-o", tmp_path / "run")
    assert done.returncode == 2
    assert "--teacher holds other data" in done.stderr


def test_a_run_leaves_nothing_in_the_temporary_folder(stripes: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    program = [sys.executable, "-m", "training.cli", "--arch", TINY, "--shape", "1,3,8,8", "--data", f"npz:{stripes}"]
    program += ["--epochs", "1", "--validation", "64", "-o", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "TMPDIR": str(temporary)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(temporary.iterdir())


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "training.cli", "--arch", "resnet20", "--data", "npz:x", "-o", tmp_path / "run"]
    with run_folder(tmp_path / "run", resume=False):
        done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is in use by another run" in done.stderr


@pytest.mark.parametrize(("keep", "epoch", "percent"), [("best", 1, 90), ("last", 2, 50)])
def test_the_last_line_describes_the_epoch_that_is_kept(
    stripes: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    keep: str,
    epoch: int,
    percent: int,
) -> None:
    measured = iter([0.2, 0.9, 0.3, 0.5])  # In each epoch without a cut, then with one.
    monkeypatch.setattr(TrainingRun, "accuracy", lambda run, module: next(measured))
    done = command(
        *("--arch", TINY, "--shape", "1,3,8,8", "--data", f"npz:{stripes}", "--macs", 1.6),
        *("--validation", 64, "--batch", 16, "--epochs", 2, "--factors", 0, "--keep", keep, "-o", tmp_path / "run"),
    )
    assert f"model.pt: epoch {epoch}  " in done.stdout
    assert f"cut {percent}.00 %" in done.stdout
    assert len(read(tmp_path / "run" / "model.pt")["history"]) == epoch


def test_ctrl_c_waits_until_torch_is_imported(
    stripes: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CtrlC:
        def find_spec(self, name: str, *rest: object) -> None:
            if name == "training.loop":
                signal.raise_signal(signal.SIGINT)

    monkeypatch.delitem(sys.modules, "training.loop")
    monkeypatch.setattr(sys, "meta_path", [CtrlC(), *sys.meta_path])
    done = command("--arch", TINY, "--data", f"npz:{stripes}", "-o", tmp_path / "run")
    assert (done.returncode, done.stdout) == (130, "")
    assert "training.loop" in sys.modules
    assert not (tmp_path / "run").exists()


def test_a_run_resumes_with_a_lower_learning_rate(stripes: Path, tmp_path: Path, command: Command) -> None:
    options = options_for(stripes, tmp_path / "run", epochs=2, schedule="step")
    with pytest.raises(StoppedEarly):
        TrainingRun(options, stop_at(1, 5)).train()
    done = command("--resume", "--arch", TINY, "--lr", 0.02, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rates = [json.loads(line)["lr"] for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.05, 0.02 / 100])  # The schedule ends at a hundredth.


def test_an_interrupted_command_leaves_no_empty_folder(
    stripes: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(run: TrainingRun) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "train", interrupt)
    shape = ("--arch", TINY, "--shape", "1,3,8,8", "--data", f"npz:{stripes}", "--validation", 64)
    done = command(*shape, "-o", tmp_path / "run")
    assert (done.returncode, done.stdout) == (130, "")
    assert not (tmp_path / "run").exists()
    assert done.stderr.strip() == "interrupted; if there is a last.pt, --resume continues from it."


def test_errors_are_one_line_and_an_exit_code(stripes: Path, tmp_path: Path, command: Command) -> None:
    for arguments, code, text in (
        (("--arch", "resnet20", "-o", tmp_path), 2, "name the training data: --data"),
        (
            ("--arch", "resnet20", "--shape", "2,3,8,8"),
            2,
            "'2,3,8,8' is not the shape of one image",
        ),
        (("--arch", "resnet20", "--data", f"npz:{stripes}", "-o", tmp_path / "a"), 3, "images are 8x8"),
        (("--arch", "resnet20", "--data", "npz:/nowhere", "-o", tmp_path / "a"), 3, "is not a folder"),
        (("--arch", "resnet20", "--data", f"npz:{stripes}", "-o", config_file(tmp_path)), 7, "cannot be made"),
    ):
        done = command(*arguments, "--validation", 10)
        assert (done.returncode, done.stdout) == (code, "")
        assert text in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_a_failed_start_leaves_no_empty_folder(stripes: Path, tmp_path: Path, command: Command) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for folder in (tmp_path / "run", own):
        assert command("--arch", "resnet20", "--data", "npz:/nowhere", "-o", folder).returncode == 3
    assert not (tmp_path / "run").exists()
    assert own.is_dir()


def config_file(folder: Path) -> Path:
    path = folder / "a-file"
    path.write_text("")
    return path


def test_a_dry_run_prints_the_plan_and_writes_nothing(stripes: Path, tmp_path: Path, command: Command) -> None:
    done = command(
        *("--arch", TINY, "--shape", "1,3,8,8", "--data", f"npz:{stripes}", "--macs", 1.6),
        *("--validation", 64, "--batch", 16, "--dry-run", "-o", tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr
    assert "conv2" in done.stdout
    assert "16 steps per epoch; macs 1.6x fewer" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_leaves_a_run_that_resumes(
    stripes: Path, tmp_path: Path, how: signal.Signals, command: Command
) -> None:
    output = tmp_path / "run"
    arguments = ["--arch", TINY, "--shape", "1,3,8,8", "--data", f"npz:{stripes}", "--macs", "1.6"]
    arguments += ["--validation", "64", "--batch", "4", "--epochs", "40", "-o", str(output)]
    process = subprocess.Popen(
        [sys.executable, "-m", "training.cli", *arguments],
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (output / "last.pt").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline, "no epoch ended in two minutes"
            time.sleep(0.05)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130), errors
    assert "Traceback" not in errors
    done = command("--resume", "--arch", TINY, "-o", output)
    assert done.returncode == 0, done.stderr
    assert len((output / "history.jsonl").read_text().splitlines()) == 40
