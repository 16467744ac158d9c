"""The readers of every kind of file, on files that are damaged at random: each is read or refused with a TrpError.

TRP_FUZZ_SECONDS is the time for each kind, 30 if it is not set. The counts are printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_readers import KINDS

PROGRAM = Path(__file__).parent / "support" / "fuzz_readers.py"
SECONDS = float(os.environ.get("TRP_FUZZ_SECONDS", "30"))
START_S = 120  # torch is imported, on a busy machine.


def fuzz(kind: str, seconds: float, folder: Path) -> dict[str, object]:
    command = [sys.executable, "-W", "ignore", str(PROGRAM), kind, str(seconds), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + START_S, cwd=folder)
    assert done.returncode == 0, f"{kind}: ended with {done.returncode}: {done.stderr[-2000:]}"
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    assert not result["crashes"], f"{kind}: " + "\n".join(map(str, result["crashes"]))  # type: ignore[call-overload]
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_to_be_damaged_are_sound(kind: str, tmp_path: Path) -> None:
    own = KINDS[kind]
    own.make(tmp_path / own.file)
    own.read(tmp_path / own.file)


@pytest.mark.parametrize("kind", ["npz", "png", "moments", "manifest"])
def test_damaged_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    assert fuzz(kind, 1, tmp_path)["runs"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_read_or_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = fuzz(kind, SECONDS, tmp_path)
    with capsys.disabled():
        print(
            f"\n{kind}: {result['runs']:,} damaged files read, {result['accepted']:,} accepted, "
            f"{result['messages']} different refusals, no crash"
        )
