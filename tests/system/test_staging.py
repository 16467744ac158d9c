"""Outputs are checked against one another and the inputs before work begins, and appear together or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trp_export.errors import OptionError, OutputError
from trp_export.system.staging import Output, OutputStage, check_outputs, is_same_file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_text("model")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.png").write_text("cat")
    (tmp_path / "link.npz").symlink_to("model.onnx")
    (tmp_path / "linked").symlink_to(".")
    return tmp_path


@pytest.mark.parametrize(
    "output",
    ["model.onnx", "./model.onnx", "images/../model.onnx", "linked/model.onnx", "link.npz", "images/cat.png"],
)
def test_an_output_never_takes_the_place_of_an_input(folder: Path, output: str) -> None:
    for path in (Path(output), folder / output):
        with pytest.raises(OptionError, match="is read and would be written over; choose another place with --save"):
            check_outputs([Output(path, "--save")], [Path("model.onnx"), Path("images")])


@pytest.mark.parametrize("name", ["images/cat.png", "images/cat.npy", "images/cat.txt", "images/inner/cat.png"])
def test_an_output_takes_the_place_of_nothing_that_a_folder_may_be_read_for(folder: Path, name: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("read")
    for output in (Path(name), Path("linked", name)):
        with pytest.raises(OptionError, match="is read and would be written over"):
            check_outputs([Output(output, "--report")], [Path("images")])
    check_outputs([Output(Path(name).with_stem("new"), "--report")], [Path("images")])
    (folder / "small.json").write_text("of an earlier run")
    check_outputs([Output(Path("small.json"), "-o")], [Path()])


def test_links_in_a_circle_are_refused(folder: Path) -> None:
    (folder / "loop.onnx").symlink_to("loop.onnx")
    assert not is_same_file(folder / "loop.onnx", folder / "model.onnx")
    with pytest.raises(OutputError, match="it is a link"):
        check_outputs([Output(Path("loop.onnx"), "-o")], [Path("model.onnx")])


def test_a_second_name_of_an_input_is_that_input(folder: Path) -> None:
    (folder / "second.npz").hardlink_to(folder / "model.onnx")
    with pytest.raises(OptionError, match="is read and would be written over"):
        check_outputs([Output(Path("second.npz"), "--save")], [Path("model.onnx")])


def test_outputs_are_different_files(folder: Path) -> None:
    outputs = [Output(Path("a.json"), "--save"), Output(Path("linked/a.json"), "--report")]
    with pytest.raises(OptionError, match=r"--report linked/a.json is the same file as another output \(--save\)"):
        check_outputs(outputs)
    check_outputs(
        [outputs[0], Output(Path("b.json"), "--report"), Output(Path("images/b.json"), "-o")], [Path("images")]
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["o.onnx", "o.json", "o.onnx.data", "r.html"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_a_stage_refuses_what_it_could_not_replace(folder: Path, name: str, kind: str) -> None:
    make = {"folder": Path.mkdir, "pipe": os.mkfifo, "link": lambda path: path.symlink_to("model.onnx")}
    make[kind](folder / name)
    with (
        pytest.raises(OutputError, match=name),
        OutputStage(folder / "o.onnx", folder / "r.html"),
    ):
        raise AssertionError("the stage was opened")


def publish(folder: Path) -> None:
    with OutputStage(folder / "o.onnx", folder / "r.html") as stage:
        stage.model.write_text("new model")
        stage.document.write_text("new document")
        assert stage.page is not None
        stage.page.write_text("new page")
        stage.publish([(folder / "s.npz", lambda path: path.write_text("new statistics"))])


def test_published_files_appear_together(folder: Path) -> None:
    before = set(folder.iterdir())
    publish(folder)
    assert {path.name for path in set(folder.iterdir()) - before} == {"o.onnx", "o.json", "r.html", "s.npz"}
    assert (folder / "o.onnx").read_text() == "new model"
    assert (folder / "r.html").read_text() == "new page"


def test_files_of_other_folders_appear_with_the_results_or_not_at_all(folder: Path) -> None:
    place = folder / "images" / "s.npz"

    def publish_with(save: Callable[[Path], object]) -> None:
        with OutputStage(folder / "o.onnx", None) as stage:
            stage.model.write_text("model")
            stage.document.write_text("document")
            stage.publish([(place, save)])

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OutputError(f"{path} cannot be written: the disk is full.")

    before = sorted(folder.rglob("*"))
    with pytest.raises(OutputError) as refused:
        publish_with(fail)
    assert str(refused.value) == f"{place} cannot be written: the disk is full."
    assert sorted(folder.rglob("*")) == before
    publish_with(lambda path: path.write_text("statistics"))
    assert place.read_text() == "statistics"
    assert (folder / "o.onnx").read_text() == "model"
    assert {*folder.rglob("*")} - {*before} == {place, folder / "o.onnx", folder / "o.json"}


@pytest.mark.parametrize("fails", ["r.html", "o.json", "o.onnx", "s.npz"])
def test_old_files_come_back_if_one_cannot_be_replaced(
    folder: Path, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("o.onnx", "r.html", "s.npz"):
        (folder / name).write_text(f"old {name}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    replace = Path.replace

    def refuse(path: Path, target: Path) -> Path:
        if target.name == fails and not path.name.startswith("old-"):
            raise PermissionError(1, "Operation not permitted")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match=f"{fails} cannot be written: Operation not permitted"):
        publish(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["o" * 300 + ".onnx", "o" * 249 + ".onnx", "\udcff.onnx", "a\0b.onnx"])
def test_a_stage_refuses_names_that_cannot_be_written(folder: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"cannot be written: .* Choose another name with -o"):
        OutputStage(folder / name, None).__enter__()


def test_an_input_with_a_name_that_is_too_long_is_not_an_output_that_fails(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long"), OutputStage(tmp_path / "o.onnx", None):
        Path("x" * 5000).exists()
    assert not list(tmp_path.iterdir())
