"""Folders of ours are gone when they are left, whatever moment a signal takes; those of killed runs are swept."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from trp_export.cli import shared
from trp_export.errors import OutputError
from trp_export.system import scratch
from trp_export.system.privacy import without_paths
from trp_export.system.scratch import Scratch, locked
from trp_export.system.signals import terminable
from trp_export.system.staging import OutputStage
from trp_export.system.torch_cache import private_torch_cache

TWO_DAYS_AGO = time.time() - 2 * 24 * 3600


@pytest.fixture(autouse=True)
def sweep_again() -> Iterator[None]:
    scratch.sweep.cache_clear()
    yield
    scratch.sweep.cache_clear()


@pytest.mark.parametrize("maker", ["mkdtemp", "TemporaryFile"])
def test_a_signal_while_the_stage_is_made_leaves_nothing(
    maker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_after(maker, monkeypatch)
    with pytest.raises(KeyboardInterrupt), terminable(), OutputStage(tmp_path / "small.onnx", None):
        raise AssertionError("the signal was lost")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_a_scratch_folder_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    signal_after("mkdtemp", monkeypatch)
    with pytest.raises(KeyboardInterrupt), terminable(), Scratch():
        raise AssertionError("the signal was lost")
    assert list(tmp_path.iterdir()) == []


def signal_after(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send Ctrl-C between the making of something and the return of its name."""
    make: Callable[..., Any] = getattr(tempfile, maker)

    def interrupted(*args: Any, **options: Any) -> Any:
        made = make(*args, **options)
        signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(tempfile, maker, interrupted)


def test_a_killed_run_s_folder_is_removed_a_day_later(tmp_path: Path) -> None:
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys, pathlib\n"
            "from trp_export.system.scratch import Scratch\n"
            "with Scratch(pathlib.Path(sys.argv[1])) as made:\n"
            "    (made.folder / 'weights').write_text('half')\n"
            "    os.kill(os.getpid(), 9)\n",
            str(tmp_path),
        ],
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with Scratch(tmp_path):
        assert left.exists()  # It is young: another run may be about to lock it.
    os.utime(left, (TWO_DAYS_AGO, TWO_DAYS_AGO))
    scratch.sweep.cache_clear()
    with Scratch(tmp_path) as current:
        assert list(tmp_path.iterdir()) == [current.folder]
    assert list(tmp_path.iterdir()) == []


def test_where_no_temporary_file_can_be_written_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "removed"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with pytest.raises(OutputError, match=r"(?s)No such file.*Set TMPDIR to a folder"), Scratch():
        raise AssertionError("it was made")
    with pytest.raises(FileNotFoundError), Scratch(tmp_path / "removed"):
        raise AssertionError("it was made")
    with private_torch_cache():
        assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_a_command_without_temporary_files_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container whose disk is read-only."""

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    @click.command("some")
    def some() -> None:
        assert without_paths("/opt/a/net.onnx") == "net.onnx"
        with Scratch():
            pass

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    assert shared.run(some, [], interrupted="", memory="") == OutputError.exit_code
    assert "Set TMPDIR" in capsys.readouterr().err


def test_a_folder_is_removed_where_rmtree_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    monkeypatch.setattr("shutil.rmtree", lambda folder, *, ignore_errors: None)
    with Scratch(tmp_path) as scratch:
        (scratch.folder / "inside" / "deep").mkdir(parents=True)
        (scratch.folder / "inside" / "file").touch()
        (scratch.folder / "link").symlink_to(tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").exists()


def test_sweeping_spares_what_is_locked_or_not_ours(tmp_path: Path) -> None:
    other, plain, link = tmp_path / "data.trp-export.x", tmp_path / ".trp-export.file", tmp_path / ".trp-export.link"
    other.mkdir()
    plain.write_text("")
    link.symlink_to(other)
    for path in (other, plain):
        os.utime(path, (TWO_DAYS_AGO, TWO_DAYS_AGO))
    with Scratch(tmp_path) as running:
        os.utime(running.folder, (TWO_DAYS_AGO, TWO_DAYS_AGO))
        scratch.sweep.cache_clear()
        with Scratch(tmp_path):
            assert running.folder.exists()
    assert sorted(tmp_path.iterdir()) == sorted([other, plain, link])


def test_sweeping_spares_the_folders_of_other_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ".trp-export.x"
    folder.mkdir()
    os.utime(folder, (TWO_DAYS_AGO, TWO_DAYS_AGO))
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with Scratch(tmp_path):
        assert folder.exists()


def test_a_folder_is_locked_once(tmp_path: Path) -> None:
    with locked(tmp_path) as first:
        assert first
        with locked(tmp_path) as second:
            assert not second
    with locked(tmp_path) as again:
        assert again
