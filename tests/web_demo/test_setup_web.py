"""Fetching onnxruntime-web: whole or not at all, and the version asked for; npm is played by a script."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import setup_web  # tools/ is on the path: see site_server

from trp_export.bench.devices.page_server import FILES

# Version 0 lacks a file, as old ones do.
NPM = f"""#!{sys.executable}
import io, json, sys, tarfile
version = sys.argv[-1].rpartition("@")[2]
with tarfile.open("made.tgz", "w:gz") as archive:
    for name in {FILES[:1]!r} if version == "0" else {FILES!r}:
        content = f"{{name}} of {{version}}".encode()
        member = tarfile.TarInfo(f"package/dist/{{name}}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
print(json.dumps([{{"filename": "made.tgz"}}]))
"""
Setup = Callable[..., int]


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Runs the tool for tmp_path/web."""
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(NPM)
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent))

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["setup_web.py", str(tmp_path / "web"), *arguments])
        with pytest.raises(SystemExit) as end:
            setup_web.main()
        return int(end.value.code or 0)

    return run


def contents(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.iterdir()}


def test_the_version_asked_for_is_fetched_once(setup: Setup, tmp_path: Path) -> None:
    web = tmp_path / "web"
    assert setup("--version", "1") == 0
    assert contents(web) == {"1", *(f"{name} of 1" for name in FILES)}
    (tmp_path / "bin" / "npm").rename(tmp_path / "npm")
    assert setup("--version", "1") == 0
    assert setup("--version", "2") == 1
    (tmp_path / "npm").rename(tmp_path / "bin" / "npm")
    assert setup("--version", "2") == 0
    assert contents(web) == {"2", *(f"{name} of 2" for name in FILES)}


def test_files_of_an_unknown_version_are_not_taken_for_ready(setup: Setup, tmp_path: Path) -> None:
    web = tmp_path / "web"
    web.mkdir()
    for name in FILES:
        (web / name).write_text("broken off")
    assert setup("--version", "1") == 0
    assert "broken off" not in contents(web)


def test_a_version_without_the_files_leaves_nothing(
    setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup("--version", "0") == 1
    assert f"holds no {FILES[1]}" in capsys.readouterr().err
    assert list((tmp_path / "web").iterdir()) == []
