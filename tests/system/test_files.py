"""Reading is bounded and takes plain files only; writing replaces a whole file or leaves the old one."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from trp_export.errors import LoadError, OutputError
from trp_export.inputs.arrays import read_arrays
from trp_export.inputs.pictures import read_picture
from trp_export.system.files import (
    LFS_POINTER,
    atomic_write,
    files_below,
    open_plain,
    read_bounded,
    replace_together,
    require_fetched,
    sha256,
)

pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
devices = pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")


def write(place: Path, *how: str) -> None:
    with atomic_write(place, *how) as part:
        part.write_text("new")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_git_lfs_pointer_is_named_by_every_reader(tmp_path: Path) -> None:
    """By those of JSON and ONNX, of arrays and of images: the file itself was never fetched."""
    for name in ("plan.json", "images.npy", "inputs.npz", "photo.png"):
        (tmp_path / name).write_bytes(LFS_POINTER + b"spec/v1\noid sha256:0\nsize 1\n")
    for reader, name in (
        (lambda path: read_bounded(path, 1000), "plan.json"),
        (require_fetched, "plan.json"),
        (read_arrays, "images.npy"),
        (read_arrays, "inputs.npz"),
        (read_picture, "photo.png"),
    ):
        with pytest.raises(LoadError, match=rf"{name} is a Git LFS pointer. Run `git lfs pull`"):
            reader(tmp_path / name)  # type: ignore[operator]


def test_atomic_write_replaces_the_file_at_the_end(tmp_path: Path) -> None:
    place = tmp_path / "a.txt"
    place.write_text("old")
    with atomic_write(place) as part:
        part.write_text("new")
        assert place.read_text() == "old"
    assert place.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_write_keeps_the_old_file_after_a_failure(tmp_path: Path) -> None:
    place = tmp_path / "a.txt"
    place.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(place) as part:
        part.write_text(str(1 / 0))
    with pytest.raises(OutputError, match=r"the table cannot be written: No such file or directory\. Go elsewhere\."):
        write(tmp_path / "no" / "b.txt", "the table", "Go elsewhere.")
    assert names(tmp_path) == ["a.txt"]
    assert place.read_text() == "old"


@pytest.mark.parametrize("length", [1, 254, 255])
def test_atomic_write_takes_the_longest_names(tmp_path: Path, length: int) -> None:
    write(tmp_path / ("x" * length))
    assert (tmp_path / ("x" * length)).read_text() == "new"


@pipes
def test_atomic_write_refuses_pipes_and_folders(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for place in (pipe, folder):
        with pytest.raises(OutputError, match="exists and is not a plain file"):
            write(place)
    assert pipe.is_fifo()
    assert sorted(tmp_path.iterdir()) == [folder, pipe]


@pytest.mark.parametrize("target", ["file", "absent", "/dev/null", "/proc/self/fd/1"])
def test_atomic_write_refuses_links(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(OutputError, match="it is a link; name the file that it points to"):
        write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file", "link"]


def test_replace_together_brings_all_old_files_back(tmp_path: Path) -> None:
    stage, folder = tmp_path / "stage", tmp_path / "made"
    stage.mkdir()
    folder.mkdir()
    (folder / "b").write_text("old b")
    (folder / "c").mkdir()
    for name in "abc":
        (stage / name).write_text(f"new {name}")
    with pytest.raises(OutputError, match="c cannot be written"):
        replace_together([(stage / name, folder / name) for name in "abc"])
    assert names(folder) == ["b", "c"]
    assert (folder / "b").read_text() == "old b"
    (folder / "c").rmdir()
    (stage / "a").write_text("new a")
    (stage / "b").write_text("new b")
    replace_together([(stage / name, folder / name) for name in "abc"])
    assert [(folder / name).read_text() for name in "abc"] == ["new a", "new b", "new c"]


def test_replace_together_works_on_disks_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(link: Path, target: Path) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", fail)
    test_replace_together_brings_all_old_files_back(tmp_path)


def test_read_bounded_takes_a_file_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 1024)
    (tmp_path / "link").symlink_to(file)
    assert read_bounded(tmp_path / "link", 1024) == b"x" * 1024
    with pytest.raises(LoadError, match="is larger than 1023 bytes"):
        read_bounded(file, 1023)
    os.truncate(file, 1 << 40)
    with pytest.raises(LoadError, match="is larger than 2 KiB"):
        read_bounded(file, 2048)


@devices
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/stdin", "/dev"])
def test_reading_refuses_devices_and_folders(tmp_path: Path, device: str) -> None:
    (tmp_path / "link").symlink_to(device)
    for path in (Path(device), tmp_path / "link"):
        if path.is_file():  # Standard input may be a plain file.
            continue
        with pytest.raises(LoadError, match=r"cannot be read: .*not a plain file"):
            read_bounded(path, 10)
        with pytest.raises(LoadError, match=r"cannot be read: .*not a plain file"):
            open_plain(path)


@pipes
def test_reading_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused = []

    def read() -> None:
        with pytest.raises(LoadError, match="not a plain file"):
            read_bounded(tmp_path / "pipe", 10)
        refused.append(True)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(20)
    assert refused


@pytest.mark.parametrize("name", ["absent", "x" * 300, "nul\0", "loop"])
def test_reading_says_why_it_fails(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(LoadError, match=r"cannot be read: [A-Z]|cannot be read: embedded null"):
        read_bounded(tmp_path / name, 10)


def test_sha256_is_that_of_the_files_joined(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "a").write_bytes(content[:1000])
    (tmp_path / "b").write_bytes(content[1000:])
    assert sha256([tmp_path / "a", tmp_path / "b"]) == hashlib.sha256(content).hexdigest()


def test_files_below_a_folder_are_found_and_what_cannot_be_looked_at_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/one", "two"):
        (tmp_path / name).touch()
    (tmp_path / "to-two").symlink_to("two")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "too-long").symlink_to("x" * 1000)
    os.mkfifo(tmp_path / "pipe")
    assert files_below(tmp_path) == [tmp_path / name for name in ("a/one", "to-two", "two")]
