"""The folder of a run: its lock, and options as they are stored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.optimisation import ALL, Distillation, Optimisation
from training.options import TrainOptions
from training.run_folder import (
    require_same_files,
    require_same_run,
    restored_options,
    run_folder,
    stored_options,
)
from training.settings import Layers
from training.start_options import StartOptions
from trp_export.errors import LoadError, OptionError, OutputError
from trp_export.rules import Energy, Macs, SavedPlan, Threshold

RULES = [None, Macs(2.5), Energy(0.98), Threshold(0.1), Threshold(3.0, True), SavedPlan(Path("plans/plan.json"))]


def options_with(**changes: Any) -> TrainOptions:
    start = StartOptions("resnet20", Path("weights/dense.pt"), (1, 3, 8, 8))
    return TrainOptions("npz:data", Path("runs/one"), start, **changes)


@pytest.mark.parametrize("rule", RULES)
def test_options_come_back_from_storage(rule: Any) -> None:
    options = options_with(
        rule=rule,
        layers=Layers(only=("conv*", "fc")),
        optimisation=Optimisation(factors=ALL, lr=0.07, nesterov=True),
        distillation=Distillation(Path("t.pt"), share=0.5),
    )
    assert restored_options(TrainOptions, stored_options(options), "last.pt") == options


def test_options_that_are_not_stored_have_their_defaults() -> None:
    stored = stored_options(options_with())
    del stored["lr"], stored["keep"]
    assert restored_options(TrainOptions, stored, "last.pt") == options_with()


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 3},
        {"epochs": "x"},
        {"epochs": "0"},
        {"epochs": "9" * 5000},
        {"lr": "nan"},
        {"lr": None},
        {"lr": "1e39"},
        {"seed": str(2**64)},
        {"amp": "yes"},
        {"only": "conv*"},
        {"only": [1]},
        {"schedule": "never"},
        {"macs": "2", "energy": "0.9"},
        {"data": "\x1b[2J"},
        {"data": "x" * 5000},
        {"shape": "1,3,inf,8"},
        {"no_such_option": "1"},
        {5: "1"},
    ],
)
def test_stored_options_that_no_command_line_could_say_are_refused(change: dict[Any, Any]) -> None:
    with pytest.raises(LoadError, match=r"^last\.pt ") as error:
        restored_options(TrainOptions, stored_options(options_with()) | change, "last.pt")
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()


def test_only_free_options_may_differ_on_resume() -> None:
    stored = stored_options(options_with())
    assert require_same_run(TrainOptions, {"lr": 0.5, "epochs": 164}, stored, ("lr",)) == stored | {"lr": "0.5"}
    with pytest.raises(OptionError, match="--epochs 9 differs from the stored 164"):
        require_same_run(TrainOptions, {"epochs": 9}, stored, ("lr",))


def test_changed_files_are_refused_unless_allowed() -> None:
    require_same_files({"--data": "a"}, {"--data": "a"}, "last.pt", allow_changes=False)
    require_same_files({"--data": "a"}, {"--data": "b"}, "last.pt", allow_changes=True)
    with pytest.raises(OptionError, match=r"--data holds other data .* --allow-changed-data"):
        require_same_files({"--data": "a"}, {"--data": "b"}, "last.pt", allow_changes=False)


def test_a_folder_is_made_and_an_empty_one_removed(tmp_path: Path) -> None:
    with run_folder(tmp_path / "a" / "b", resume=False):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a" / "b").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"), run_folder(tmp_path / "file", resume=False):
        pass


def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "last.pt").touch()
    with pytest.raises(OptionError, match="holds a run already"), run_folder(tmp_path, resume=False):
        pass
    with run_folder(tmp_path, resume=True):
        pass


@pytest.mark.parametrize("name", ["model.pt", "history.jsonl", "photo.png", "checkpoints"])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OptionError, match=f"holds other files: {name}"), run_folder(tmp_path, resume=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_with_hidden_files_or_remains_of_an_early_end_is_taken(tmp_path: Path) -> None:
    for name in (".gitignore", "odd-images.txt", "synthetic.npy"):
        (tmp_path / name).touch()
    with run_folder(tmp_path, resume=False):
        pass


def test_a_second_process_cannot_use_the_folder_of_a_run(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from training.run_folder import run_folder\n"
        "from trp_export.errors import OptionError\n"
        "try:\n"
        f"    with run_folder(pathlib.Path({str(tmp_path / 'run')!r}), resume=False): pass\n"
        "except OptionError as error: print(error)\n"
    )

    def second_run() -> str:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    with run_folder(tmp_path / "run", resume=False):
        assert "is in use by another run" in second_run()
    assert second_run() == ""
