"""The variables of torchrun."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from training.torchrun import local_processes, processes, rank, restarts
from trp_export.errors import OptionError


def test_without_torchrun_one_process_trains() -> None:
    assert (processes(), local_processes(), rank(), restarts()) == (1, 1, 0, 0)


@pytest.mark.parametrize("text", ["", "abc", "-1", "1.5", "0x2", "\x1b[2J", "9" * 5000])
@pytest.mark.parametrize(
    ("variable", "read"), [("WORLD_SIZE", processes), ("LOCAL_WORLD_SIZE", local_processes), ("RANK", rank)]
)
def test_a_variable_that_is_not_a_number_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, read: Callable[[], int], text: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(OptionError, match=f"{variable} is .* must be a whole number") as error:
        read()
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()


def test_there_is_at_least_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "0")
    with pytest.raises(OptionError, match="at least 1"):
        local_processes()
