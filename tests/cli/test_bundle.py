"""`trp-bundle verify`: what it prints, how it exits, and what it leaves unimported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import CONTENTS, make_bundle
from command import Outcome

from trp_export.cli import bundle as cli

Run = Callable[..., Outcome]


@pytest.fixture
def trp_bundle(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["trp-bundle", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Outcome(int(end.value.code or 0), *capsys.readouterr())

    return run


def test_verify_prints_integrity_and_origin(trp_bundle: Run, tmp_path: Path) -> None:
    digest = make_bundle(tmp_path)
    with_digest, without = trp_bundle("verify", tmp_path, "--digest", digest), trp_bundle("verify", tmp_path)
    assert (with_digest.code, without.code) == (0, 0)
    assert "integrity and origin verified" in with_digest.out
    assert "integrity verified; --digest verifies the origin as well" in without.out
    assert with_digest.err == without.err == ""


def test_verify_prints_json(trp_bundle: Run, tmp_path: Path) -> None:
    digest = make_bundle(tmp_path)
    expected = {"files": len(CONTENTS), "bytes": sum(map(len, CONTENTS.values())), "digest": digest}
    assert json.loads(trp_bundle("verify", tmp_path, "--json").out) == {**expected, "origin": False}
    assert json.loads(trp_bundle("verify", tmp_path, "--json", "--digest", digest).out) == {**expected, "origin": True}


def test_verify_quiet_prints_nothing(trp_bundle: Run, tmp_path: Path) -> None:
    make_bundle(tmp_path)
    assert trp_bundle("verify", tmp_path, "-q") == Outcome(0, "", "")


@pytest.mark.parametrize("output", [(), ("--json",), ("-q",)])
def test_verify_fails_for_a_changed_bundle(trp_bundle: Run, tmp_path: Path, output: tuple[str, ...]) -> None:
    make_bundle(tmp_path)
    (tmp_path / "load.py").write_bytes(b"evil()\n\n")
    outcome = trp_bundle("verify", tmp_path, *output)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith("error: ")
    assert "not the file that the manifest describes" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("verify",), 2, "Missing argument 'DIR'"),
        (("verify", "nowhere"), 3, "nowhere is not a folder"),
        (("verify", ".", "--digest", "abc"), 2, "is not a sha256"),
        (("verify", ".", "--digest", "0" * 64), 3, "not the expected one"),
        (("verify", ".", "--macs", "2"), 2, "No such option"),
        (("check", "."), 2, "No such command"),
    ],
)
def test_errors_name_the_cause(
    trp_bundle: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    make_bundle(tmp_path)
    monkeypatch.chdir(tmp_path)
    outcome = trp_bundle(*arguments)
    assert outcome.code == code
    assert message in outcome.err


def test_help_shows_examples_and_exit_codes(trp_bundle: Run) -> None:
    text = trp_bundle("verify", "--help").out
    assert "trp-bundle verify app/model --digest" in text
    for code in ("0", "2", "3", "130"):
        assert f"\n    {code} " in text


def test_verify_imports_no_runtime_and_no_model_code(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    program = (
        "import sys; from trp_export.cli.bundle import command; "
        "command(['verify', sys.argv[1], '-q'], standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert {"torch", "onnx", "onnx_ir", "onnxruntime", "rich", "numpy"}.isdisjoint(done.stdout.split())
