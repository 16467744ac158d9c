"""Whole runs of trp-search: what they leave, how they stop, go on and fail, and that trp-export carries them out."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from latency.fake import OTHER, FakeDevice
from networks import make_images, make_network

from training.run_folder import restored_options
from training.search import cli
from training.search.calibrated import calibrate_for_search
from training.search.logits import Logits
from training.search.options import SearchOptions
from training.search.run import open_search, read_search, restore_search
from training.search.space import by_macs
from trp_export.errors import LoadError
from trp_export.latency import network as network_latency
from trp_export.rules import Macs

Command = Callable[..., Any]
FAST = ("--epochs", "3", "--batch", "8", "--lr", "0.05")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, and images of its own size as floats."""
    model, _ = make_network()
    onnx.save(ir.serde.serialize_model(model), tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", make_images(48).inputs)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trp_search(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trp-search", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def macs_of(document: dict[str, Any]) -> float:
    return float(document["before"]["macs"] / document["after"]["macs"])


@pytest.mark.parametrize("branches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_trp_export_carries_out_the_plan(folder: Path, trp_search: Command, trp: Command, branches: int) -> None:
    code, out, err = trp_search(
        "model.onnx", "--data", "images.npy", "--macs", 2, "--branches", branches, *FAST, "-o", "plan.json"
    )
    assert code == 0, err
    assert "48 images of images.npy, seed 0" in out
    plan = json.loads((folder / "plan.json").read_text())
    assert str(folder) not in json.dumps(plan)
    left = {path.name for path in (folder / "plan.search").iterdir()}
    assert left == {"last.pt", "history.jsonl", *(f"settling-{stage + 1}.png" for stage in range(branches))}
    lines = [json.loads(line) for line in (folder / "plan.search" / "history.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        (stage + 1, epoch + 1) for stage in range(branches) for epoch in range(3)
    ]
    outcome = trp("model.onnx", "--plan", "plan.json", "--calib", "images.npy", "--no-bench", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert 2.0 <= macs_of(json.loads((folder / "small.json").read_text())) <= 2.04


@pytest.mark.slow
def test_a_speedup_is_planned_by_measured_latency(folder: Path, trp_search: Command) -> None:
    code, out, err = trp_search(
        "model.onnx", "--data", "images.npy", "--speedup", 1.01, "--scheme", "channel", *FAST, "-o", "plan.json"
    )
    # So small a network may not become faster at all.
    assert {0: "speed-up 1.01x" in out, 2: "out of reach" in err, 4: "that costs less" in err}[code], err


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> FakeDevice:
    """A device whose costs are known, in the place of the one asked for."""
    device = FakeDevice({"x": (1, 3, 12, 12)})

    def open_device(specification: str, threads: int, shapes: object, precision: str) -> FakeDevice:
        assert (specification, threads, shapes, precision) == ("fake", 3, device.shapes, "fp32")
        return device

    monkeypatch.setattr(network_latency, "DeviceUnderTest", open_device)
    monkeypatch.setenv("TRP_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    return device


def test_the_plan_has_the_speedup_asked_for(
    folder: Path, trp_search: Command, trp: Command, device: FakeDevice
) -> None:
    wish = ("model.onnx", "--data", "images.npy", "--device", "fake", "--threads", 3, *FAST, "-o", "plan.json")
    code, out, err = trp_search(*wish, "--speedup", 1.2)
    assert code == 0, err
    assert "speed-up 1.2x, searched with 48 images" in out
    assert trp("model.onnx", "--plan", "plan.json", "--no-bench", "-o", "small.onnx").code == 0
    dense, small = (OTHER + sum(device.costs(folder / name).values()) for name in ("model.onnx", "small.onnx"))
    assert dense / small == pytest.approx(1.2, rel=0.02)


def test_a_speedup_out_of_reach_is_refused(folder: Path, trp_search: Command, device: FakeDevice) -> None:
    wish = ("model.onnx", "--data", "images.npy", "--device", "fake", "--threads", 3, *FAST, "-o", "plan.json")
    code, _, err = trp_search(*wish, "--speedup", 40)
    assert code == 2
    assert "--speedup 40 is out of reach on this device: the fastest plan measured" in err
    assert not (folder / "plan.json").exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_plan(folder: Path, trp_search: Command) -> None:
    for name in ("a.json", "b.json"):
        assert trp_search("model.onnx", "--data", "images.npy", "--macs", 2, *FAST, "-o", name)[0] == 0
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()


def test_labels_of_a_specification_are_used(folder: Path, trp_search: Command) -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 255, (40, 12, 12, 3), dtype=np.uint8), np.arange(40) % 5
    np.savez(folder / "train_1.npz", images=images, labels=labels)
    arguments = ("--macs", 2, "--epochs", 1, "--mean", "0.5", "--std", "0.25", "-o", "plan.json")
    code, out, err = trp_search("model.onnx", "--data", "npz:.", *arguments)
    assert code == 0, err
    assert "40 images" in out
    assert "all are used" in err
    np.savez(folder / "train_1.npz", images=images, labels=labels + 1)
    code, _, err = trp_search("model.onnx", "--data", "npz:.", *arguments[:-1], "other.json")
    assert code == 3
    assert "label 5 is outside the network's 5 classes" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_stopped_and_resumed_it_is_the_same_plan(
    folder: Path, trp_search: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    arguments = ["model.onnx", "--data", "images.npy", "--macs", "2", "--epochs", "60", "--batch", "8", "-o"]
    assert trp_search(*arguments, "whole.json")[0] == 0
    with monkeypatch.context() as patch:
        step, drawn = Logits.draw, []

        def signalled(*given: Any) -> Any:
            drawn.append(given)
            if len(drawn) == 100:  # In the middle of an epoch.
                signal.raise_signal(number)
            return step(*given)

        patch.setattr(Logits, "draw", signalled)
        code, _, err = trp_search(*arguments, "plan.json")
    assert code == 130, err
    assert "stopped and saved" in err
    assert not (folder / "plan.json").exists()
    code, _, err = trp_search("--resume", "-o", "plan.json")
    assert code == 0, err
    assert (folder / "plan.json").read_bytes() == (folder / "whole.json").read_bytes()
    code, _, err = trp_search("--resume", "--macs", 3, "-o", "plan.json")
    assert code == 2
    assert "--macs 3.0 differs from the stored 2.0" in err


def test_bad_input_is_refused_in_a_line(folder: Path, trp_search: Command) -> None:
    base = ["model.onnx", "--data", "images.npy", "-o", "plan.json"]
    np.save(folder / "odd.npy", make_images(8).inputs[:, :2])
    (folder / "folder.json").mkdir()
    cases = [
        (2, "say how small", base),
        (2, "contradict", [*base, "--macs", 2, "--speedup", 2]),
        (2, "must be a number above 1", [*base, "--macs", 1]),
        (2, "out of reach", [*base, "--macs", 1000]),
        (2, "--branches 2 needs --macs", [*base, "--speedup", 2, "--branches", 2]),
        (2, "must end in .json", ["model.onnx", "--data", "images.npy", "--macs", 2, "-o", "plan.txt"]),
        (2, "name the images to search with", ["model.onnx", "--macs", 2, "-o", "plan.json"]),
        (2, "name the images to search with", [*base, "--no-data", "--macs", 2]),
        (2, "name the file of the plan", ["model.onnx", "--data", "images.npy", "--macs", 2]),
        (2, "--threads must be at least 1, not 0", [*base, "--macs", 2, "--threads", 0]),
        (2, "--epochs must be at least 1, not 0", [*base, "--macs", 2, "--epochs", 0]),
        (3, "does not exist", ["model.onnx", "--data", "none.npy", "--macs", 2, "-o", "plan.json"]),
        (3, "does not exist", ["none.onnx", "--data", "images.npy", "--macs", 2, "-o", "plan.json"]),
        (3, "channels", ["model.onnx", "--data", "odd.npy", "--macs", 2, "-o", "plan.json"]),
        (3, "holds no run to continue", ["--resume", "-o", "plan.json"]),
        (7, "there is no folder", [*base[:3], "--macs", 2, "-o", "absent/plan.json"]),
    ]
    for code, text, arguments in cases:
        got, out, err = trp_search(*arguments, "--seed", 0) if "--resume" not in arguments else trp_search(*arguments)
        assert got == code, (arguments, got, err)
        assert text in err, (arguments, err)
        assert "Traceback" not in err
        assert out == ""
        assert not (folder / "plan.json").exists()
        assert not (folder / "plan.search").exists(), arguments


@pytest.mark.parametrize("read", ["model.onnx", "images.npy"])
def test_a_plan_is_not_written_over_what_is_read(folder: Path, trp_search: Command, read: str) -> None:
    (folder / "plan.json").hardlink_to(folder / read)
    code, _, err = trp_search("model.onnx", "--data", "images.npy", "--macs", 2, *FAST, "-o", "plan.json")
    assert (code, "plan.json is read and would be written over" in err) == (2, True)


def test_names_out_of_a_model_do_not_act_on_the_terminal(folder: Path, trp_search: Command) -> None:
    model = onnx.load("model.onnx")
    for part in (*model.graph.initializer, *model.graph.node):
        part.name = part.name.replace("one", "\x1b]0;title\x07\nerror: forged")
    for node in model.graph.node:
        node.input[:] = [name.replace("one", "\x1b]0;title\x07\nerror: forged") for name in node.input]
    onnx.save(model, "odd.onnx")
    code, out, err = trp_search("odd.onnx", "--data", "images.npy", "--macs", 2, *FAST, "-o", "plan.json")
    assert (code, "forged" in out) == (0, True)
    for text in (out, err):
        assert all(line.isprintable() and not line.startswith("error") for line in text.splitlines())


def test_a_diverging_search_is_reported_and_leaves_nothing(folder: Path, trp_search: Command) -> None:
    arguments = ("model.onnx", "--data", "images.npy", "--macs", 2, "--epochs", 3, "--batch", 8, "--lr", 1e30)
    code, out, err = trp_search(*arguments, "-o", "plan.json")
    assert (code, out) == (1, "")
    assert "the search diverged: within 6 steps" in err
    assert not [path for path in folder.iterdir() if path.name.startswith("plan")]


def damaged_states(sound: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """States that no search has written: each field of a stage missing, then each field wrong in several ways."""
    (state,) = sound["searches"]
    for key in state:
        yield sound | {"searches": [{name: state[name] for name in state if name != key}]}
    score, best = state["best"]
    layer, logits = next(iter(best.items()))
    record = state["history"][0]
    for change in (
        *({"epoch": epoch} for epoch in (-1, 99, "x", True)),
        *({"step": step} for step in (-1, 10**9, None)),
        *({"price": price} for price in (math.nan, "x", 10**400)),
        {"best": (math.inf, best)},
        {"best": (score, {})},
        *({"best": (score, best | {layer: value})} for value in (3, logits[:1], logits * math.nan, logits.to_sparse())),
        {"random": torch.zeros(3)},
        {"logits": {}},
        {"optimizer": {"state": {0: {"exp_avg": 3}}}},
        {"history": []},
        *({"history": [record | {key: math.nan}, *state["history"][1:]]} for key in ("loss", "score", "cost")),
        {"history": [record | {"layers": {"\x1b[2J": {}}}, *state["history"][1:]]},
        {"history": [record | {"layers": {name: own | {"choice": "\x1b[2J"} for name, own in record["layers"].items()}},
                     *state["history"][1:]]},
    ):  # fmt: skip
        yield sound | {"searches": [state | change]}
    options = sound["options"]
    for change in ({"epochs": "x"}, {"lr": "1e39"}, {"seed": str(2**70)}, {"mean": "inf"}, {"data": "\x1b[2J"}):
        yield sound | {"options": options | change}
    yield from (sound | {key: 3} for key in ("model", "options", "digests", "searches", "version", "format"))


def test_a_damaged_state_is_refused_in_each_field(folder: Path, trp_search: Command) -> None:
    arguments = ("model.onnx", "--data", "images.npy", "--macs", 2, *FAST, "-o", "plan.json")
    assert trp_search(*arguments)[0] == 0
    path, options = (
        folder / "plan.search" / "last.pt",
        SearchOptions(Macs(2.0), Path("plan.json"), "images.npy", epochs=3, batch=8),
    )
    sound = torch.load(path, weights_only=True)
    known = calibrate_for_search(Path("model.onnx"), options, folder, lambda step, share: None)
    spaces = by_macs([place.site for place in known.network.located], "all")
    search = open_search(options, known, spaces, known.network.budget_macs / 2, lambda step, share: None)

    def resume() -> None:
        saved = read_search(folder / "plan.search")
        restored_options(SearchOptions, saved.options, "last.pt")
        restore_search(search, saved.searches[0], path)

    resume()
    for content in damaged_states(sound):
        torch.save(content, path)
        with pytest.raises(LoadError, match=r"last\.pt") as error:
            resume()
        assert len(str(error.value)) < 400
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("arch", "evil_net:make", "asks to import evil_net:make. If you trust it, repeat the name: --arch"),
        ("device", "ssh:a@b", "asks to measure on ssh:a@b. If that is yours, repeat it: --device ssh:a@b"),
    ],
)
def test_resume_runs_and_reaches_nothing_that_only_the_file_names(
    folder: Path, trp_search: Command, key: str, value: str, message: str
) -> None:
    assert trp_search("model.onnx", "--data", "images.npy", "--macs", 2, *FAST, "-o", "plan.json")[0] == 0
    path = folder / "plan.search" / "last.pt"
    content = torch.load(path, weights_only=True)
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "weights.pt")
    content["model"], content["options"][key] = "weights.pt", value
    torch.save(content, path)
    (folder / "evil_net.py").write_text("open('imported', 'w').write('x')\ndef make(**options): ...\n")
    code, out, err = trp_search("--resume", "-o", "plan.json")
    assert (code, out) == (2, "")
    assert message in err
    assert not (folder / "imported").exists()


def test_resume_on_changed_images_is_refused_unless_allowed(folder: Path, trp_search: Command) -> None:
    assert trp_search("model.onnx", "--data", "images.npy", "--macs", 2, *FAST, "-o", "plan.json")[0] == 0
    np.save(folder / "images.npy", make_images(48).inputs[::-1])
    code, _, err = trp_search("--resume", "-o", "plan.json")
    assert code == 2
    assert "--data holds other data than when this run was started" in err
    assert trp_search("--resume", "--allow-changed-data", "-o", "plan.json")[0] == 0


@pytest.mark.parametrize("lr", ["1e39", "0", "nan", "inf"])
def test_a_learning_rate_that_no_step_can_use_is_refused(folder: Path, trp_search: Command, lr: str) -> None:
    code, _, err = trp_search("model.onnx", "--data", "images.npy", "--macs", 2, "--lr", lr, "-o", "plan.json")
    assert code == 2
    assert "--lr must be a number above 0" in err


def test_a_folder_with_a_search_is_not_written_over(folder: Path, trp_search: Command) -> None:
    arguments = ("model.onnx", "--data", "images.npy", "--macs", 2, *FAST, "-o", "plan.json")
    assert trp_search(*arguments)[0] == 0
    code, _, err = trp_search(*arguments)
    assert code == 2
    assert "holds a run already" in err


def test_help_lists_sections(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "training.search.cli", "--help"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert "What layers may become:" in done.stdout
    assert "Examples:" in done.stdout
    assert done.returncode == 0, done.stderr
