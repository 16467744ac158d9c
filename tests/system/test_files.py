"""Files are written whole or not at all, and only in the place of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trp_export.errors import OutputError
from trp_export.system.files import atomic_write


def write(place: Path, *how: str) -> None:
    with atomic_write(place, *how) as part:
        part.write_text("new")


def test_the_file_takes_its_name_at_the_end(tmp_path: Path) -> None:
    place = tmp_path / "a.txt"
    place.write_text("old")
    with atomic_write(place) as part:
        part.write_text("new")
        assert place.read_text() == "old"
    assert place.read_text() == "new"
    assert list(tmp_path.iterdir()) == [place]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    place = tmp_path / "a.txt"
    place.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(place) as part:
        part.write_text(str(1 / 0))
    with pytest.raises(OutputError, match=r"the table cannot be written: No such file or directory\. Go elsewhere\."):
        write(tmp_path / "no" / "b.txt", "the table", "Go elsewhere.")
    assert list(tmp_path.iterdir()) == [place]
    assert place.read_text() == "old"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_devices_and_folders_are_not_replaced(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for place in (pipe, folder):
        with pytest.raises(OutputError, match="exists and is not a plain file"):
            write(place)
    assert pipe.is_fifo()
    assert sorted(tmp_path.iterdir()) == [folder, pipe]
