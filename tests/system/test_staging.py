"""Folders on the way are gone when they are left, whatever moment a signal takes."""

import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trp_export.system.signals import terminable
from trp_export.system.staging import OutputStage, Scratch


@pytest.mark.parametrize("maker", ["mkdtemp", "TemporaryFile"])
def test_a_signal_in_the_middle_of_making_leaves_nothing(
    maker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _signal_after(maker, monkeypatch)
    with pytest.raises(KeyboardInterrupt), terminable(), OutputStage(tmp_path / "small.onnx", None):
        raise AssertionError("the folder was made, and nobody stopped")
    assert list(tmp_path.iterdir()) == []


def test_scratch_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _signal_after("mkdtemp", monkeypatch)
    with pytest.raises(KeyboardInterrupt), terminable(), Scratch():
        raise AssertionError("the folder was made, and nobody stopped")
    assert list(tmp_path.iterdir()) == []


def _signal_after(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the making of something and the return of its name."""
    make: Callable[..., Any] = getattr(tempfile, maker)

    def interrupted(*args: Any, **options: Any) -> Any:
        made = make(*args, **options)
        signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(tempfile, maker, interrupted)
