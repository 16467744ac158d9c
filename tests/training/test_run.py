"""Whole runs of trp-train on a small network: what they leave, how they stop, go on and fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training import cli
from training.checkpoint import FACTORS, load_network, read, write
from training.layers import find_layers, total_macs
from training.loop import Run
from training.options import TrainOptions
from trp_export.errors import LoadError, OptionError, StoppedEarly, TrpError
from trp_export.lowrank import schemes
from trp_export.planning.plan import parse_plan

HERE = Path(__file__).parent
Command = Callable[..., Any]
TINY, SHAPE = "tiny_networks:tiny", (1, 3, 8, 8)


def options_for(data: Path, output: Path, **changes: Any) -> TrainOptions:
    basis = TrainOptions(
        data=f"npz:{data}",
        output=output,
        arch=TINY,
        input_shape=SHAPE,
        macs=1.6,
        period=3,
        nuclear=1e-3,
        epochs=4,
        batch=16,
        lr=0.05,
        validation=64,
        device="cpu",
    )
    output.mkdir(exist_ok=True)
    return replace(basis, **changes)


def silent(record: dict[str, Any]) -> None:
    pass


def train(options: TrainOptions, **more: Any) -> Run:
    run = Run(options, silent, **more)
    run.train()
    return run


def load(path: Path) -> Any:
    return load_network(path, TINY, ())


def test_a_run_learns_and_leaves_a_network_of_low_rank(stripes: Path, tmp_path: Path) -> None:
    run = train(options_for(stripes, tmp_path / "run", epochs=8))
    network = load(tmp_path / "run" / "model.pt")
    assert network.plan is not None
    assert run.history[-1]["cut_accuracy"] > 0.9
    assert run.history[-1]["macs_ratio"] >= 1.6
    for choice in parse_plan(network.plan, "plan"):
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
    train(options_for(stripes, tmp_path / "dense", epochs=6))
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


def test_a_network_is_trained_without_a_rank_rule(stripes: Path, tmp_path: Path) -> None:
    run = train(options_for(stripes, tmp_path / "run", macs=None, epochs=1))
    assert run.history[-1]["macs_ratio"] == 1
    assert load(tmp_path / "run" / "model.pt").plan is None


def test_a_stray_label_makes_no_network_of_more_classes(stripes: Path, tmp_path: Path) -> None:
    train(options_for(stripes, tmp_path / "run", epochs=1, macs=None))
    with np.load(stripes / "train_0.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    few = tmp_path / "few"
    few.mkdir()
    np.savez(few / "train.npz", images=images, labels=np.where(labels == 2, 3, labels))
    with pytest.raises(LoadError, match="no image is of class"):
        Run(options_for(few, tmp_path / "scratch"), silent)
    # Weights know their classes, of which the images may show some.
    changes = {"init": tmp_path / "run" / "model.pt", "epochs": 1, "macs": None}
    assert train(options_for(few, tmp_path / "further", **changes)).network.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("stop_at", [(0, 5), (2, 7)])
def test_a_stopped_run_goes_on_to_the_same_bits(stripes: Path, tmp_path: Path, stop_at: tuple[int, int]) -> None:
    changes = {"factors": 2, "ramp": "linear"}
    whole = train(options_for(stripes, tmp_path / "whole", **changes))

    def interrupt(record: dict[str, Any]) -> None:
        if (record["epoch"], record.get("step")) == stop_at:
            signal.raise_signal(signal.SIGTERM)

    stopped = Run(options_for(stripes, tmp_path / "run", **changes), interrupt)
    with pytest.raises(StoppedEarly):
        stopped.train()
    resumed = train(options_for(stripes, tmp_path / "run", **changes), resume=True)
    for name, value in whole.network.module.state_dict().items():
        assert torch.equal(value, resumed.network.module.state_dict()[name]), name
    for mine, other in zip(whole.history, resumed.history, strict=True):
        assert {**mine, "images_per_s": 0} == {**other, "images_per_s": 0}


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


def test_a_damaged_state_is_refused_in_a_line(stripes: Path, tmp_path: Path, command: Command) -> None:
    train(options_for(stripes, tmp_path / "run", epochs=1))
    path = tmp_path / "run" / "last.pt"
    sound = read(path)
    without: list[dict[str, Any]] = [{name: sound[name] for name in sound if name != key} for key in sound]
    wrong: list[dict[str, Any]] = [
        {"options": 3},
        {"options": sound["options"] | {"epochs": "x"}},
        {"model": {}},
        {"model": 3},
        {"model": sound["model"] | {"head.weight": torch.zeros(5, 12)}},
        {"optimizer": {"state": {}, "param_groups": []}},
        {"trp": {"step": 1}},
        {"epoch": "x"},
        {"history": []},
        {"kind": "factors", "plan": None},
        {"kind": "factors", "plan": sound["plan"]},
    ]
    for content in (*without, *(sound | change for change in wrong)):
        write(content, path)
        done = command("--resume", "-o", tmp_path / "run")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done.stderr
        assert "last.pt" in done.stderr


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ((0, 2), r"conv2 the first layer with such outputs at step 3\. Nothing is saved yet: start again"),
        ((1, 2), r"conv2 the first layer with such outputs at step 19\. .*last\.pt is from before: go on with"),
        ((1, 16), r"conv2\.weight is no longer finite at step 32\. .*last\.pt is from before"),
    ],
)
def test_a_loss_that_is_no_number_names_the_step_and_the_layer(
    stripes: Path, tmp_path: Path, when: tuple[int, int], message: str
) -> None:
    run = Run(options_for(stripes, tmp_path / "run"), silent)
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


def test_a_projection_of_what_is_no_number_is_no_fault_of_the_program(stripes: Path, tmp_path: Path) -> None:
    run = Run(options_for(stripes, tmp_path / "run", period=1, lr=1e38), silent)
    with pytest.raises(TrpError, match="start again with a lower --lr"):
        run.train()


def test_options_that_contradict_one_another(stripes: Path, tmp_path: Path) -> None:
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
    ):
        with pytest.raises(OptionError):
            options_for(stripes, tmp_path / "run", **wrong)
    for wrong in ({"batch": 500}, {"validation": 320}, {"macs": 900.0}, {"device": "cuda:77"}, {"only": ("x",)}):
        with pytest.raises(OptionError):
            Run(options_for(stripes, tmp_path / "run", **wrong), silent)
    with pytest.raises(LoadError, match="no run to resume"):
        Run(options_for(stripes, tmp_path / "run"), silent, resume=True)


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


def test_the_command_trains_by_a_config_file_resumes_and_refuses(
    stripes: Path, tmp_path: Path, command: Command
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f'arch = "{TINY}"\ninput-shape = "1,3,8,8"\ndata = "npz:{stripes}"\nmacs = 1.6\n'
        'epochs = 9\nbatch = 16\nvalidation = 64\nonly = ["conv*"]\n'
    )
    done = command("--config", config, "--epochs", 1, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "x fewer MACs" in done.stdout
    assert "epoch 1  loss" in done.stderr
    again = command("--config", config, "--epochs", 1, "-o", tmp_path / "run")
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("error: ")
    assert "holds a run already" in again.stderr
    resumed = command("--resume", "--epochs", 3, "-o", tmp_path / "run")
    assert resumed.returncode == 2
    assert "--epochs 3 differs from the 1" in resumed.stderr
    assert command("--resume", "-o", tmp_path / "run").returncode == 0
    config.write_text("epoch = 3\n")
    assert "unknown option 'epoch'" in command("--config", config).stderr


@pytest.mark.parametrize(("keep", "epoch", "percent"), [("best", 1, 90), ("last", 2, 50)])
def test_the_last_line_is_about_the_network_that_is_kept(
    stripes: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    keep: str,
    epoch: int,
    percent: int,
) -> None:
    measured = iter([0.2, 0.9, 0.3, 0.5])  # In each epoch as it is, then if cut.
    monkeypatch.setattr(Run, "accuracy", lambda run, module: next(measured))
    done = command(
        *("--arch", TINY, "--input-shape", "1,3,8,8", "--data", f"npz:{stripes}", "--macs", 1.6),
        *("--validation", 64, "--batch", 16, "--epochs", 2, "--keep", keep, "-o", tmp_path / "run"),
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


def test_a_run_goes_on_with_a_lower_learning_rate(stripes: Path, tmp_path: Path, command: Command) -> None:
    def interrupt(record: dict[str, Any]) -> None:
        if (record["epoch"], record.get("step")) == (1, 5):
            signal.raise_signal(signal.SIGTERM)

    options = options_for(stripes, tmp_path / "run", epochs=2, schedule="step")
    with pytest.raises(StoppedEarly):
        Run(options, interrupt).train()
    done = command("--resume", "--lr", 0.02, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rates = [json.loads(line)["lr"] for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.05, 0.02 / 100])  # The schedule ends at a hundredth.


def test_a_command_that_is_broken_off_does_not_speak_of_what_is_not_there(
    stripes: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(run: Run) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "train", interrupt)
    shape = ("--arch", TINY, "--input-shape", "1,3,8,8", "--data", f"npz:{stripes}", "--validation", 64)
    done = command(*shape, "-o", tmp_path / "run")
    assert (done.returncode, done.stdout) == (130, "")
    assert not (tmp_path / "run").exists()
    assert done.stderr.strip() == "interrupted; where there is a last.pt, --resume goes on from it."


def test_errors_are_one_line_and_an_exit_code(stripes: Path, tmp_path: Path, command: Command) -> None:
    for arguments, code, text in (
        (("--arch", "resnet20", "-o", tmp_path), 2, "--data is missing"),
        (("--arch", "resnet20", "--input-shape", "2,3,8,8"), 2, "'2,3,8,8' is not a shape such as 1,3,224,224"),
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
        *("--arch", TINY, "--input-shape", "1,3,8,8", "--data", f"npz:{stripes}", "--macs", 1.6),
        *("--validation", 64, "--batch", 16, "--dry-run", "-o", tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr
    assert "conv2" in done.stdout
    assert "16 steps an epoch; macs 1.6x fewer" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_leaves_a_run_that_resumes(
    stripes: Path, tmp_path: Path, how: signal.Signals, command: Command
) -> None:
    output = tmp_path / "run"
    arguments = ["--arch", TINY, "--input-shape", "1,3,8,8", "--data", f"npz:{stripes}", "--macs", "1.6"]
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
    done = command("--resume", "-o", output)
    assert done.returncode == 0, done.stderr
    assert len((output / "history.jsonl").read_text().splitlines()) == 40
