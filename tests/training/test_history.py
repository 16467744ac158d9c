"""What a run leaves to look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from training.history import Record, plot, require_tensorboard, write_jsonl, write_tensorboard
from trp_export.errors import OptionError, OutputError


def record(epoch: int, ranks: dict[str, int]) -> Record:
    return {"epoch": epoch, "loss": 1.0 / epoch, "accuracy": 0.5, "cut_accuracy": 0.4, "ranks": ranks}


def test_history_has_a_line_per_epoch_and_a_plot(tmp_path: Path) -> None:
    # A layer can come and go: a budget may leave it dense in some epochs.
    history = [record(1, {"a": 5}), record(2, {"a": 4, "b": 7}), record(3, {"b": 6})]
    write_jsonl(history, tmp_path / "history.jsonl")
    assert [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()] == history
    for shown in (history, history[:1], [record(1, {})]):
        plot(shown, tmp_path / "history.png")
        with Image.open(tmp_path / "history.png") as image:
            assert image.size == (800, 800)


def test_a_plot_shows_a_single_epoch_and_whole_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **more: (drawn.append(figure), path.touch()))
    for count in (1, 2, 3):
        plot([record(epoch, {"a": 5, "b": 7}) for epoch in range(1, count + 1)], tmp_path / "history.png")
    for figure in drawn:
        for axis in figure.axes:
            assert all(float(tick).is_integer() for tick in axis.get_xticks())
            assert 1 in axis.get_xticks()
            for line in axis.get_lines():
                assert len(line.get_xdata()) > 1 or line.get_marker() == "o"


def test_names_of_layers_are_drawn_as_they_are(tmp_path: Path) -> None:
    plot([record(1, {"$\\frac{$": 5, "\x1b]0;X\x07\n": 7})], tmp_path / "history.png")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("history.jsonl", write_jsonl),
        ("history.png", plot),
        ("tensorboard", lambda history, folder: write_tensorboard(history[-1], folder)),
    ],
)
def test_a_link_in_the_folder_is_not_followed(
    tmp_path: Path, name: str, write: Callable[[list[Record], Path], None]
) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / name).symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match=f"{name} cannot be written: it is a link"):
        write([record(1, {"a": 5})], tmp_path / name)
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="TensorBoard is installed")
def test_tensorboard_that_is_not_installed_is_refused() -> None:
    with pytest.raises(OptionError, match="pip install tensorboard"):
        require_tensorboard()


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="TensorBoard is not installed")
def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    write_tensorboard(record(1, {"a": 5}), tmp_path)
    assert list(tmp_path.glob("events*"))
