"""Requests to stop: once by any signal, at once by a second one that is not the first handed on."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from training.data.loader import _leave_signals_to_the_run
from training.stop import StopRequest


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still; its time is the first element."""
    time = [100.0]
    monkeypatch.setattr("training.stop.time.monotonic", lambda: time[0])
    return time


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_comes_twice_is_one_request(now: list[float], number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop.pending()
        signal.raise_signal(number)
        now[0] += 2
        signal.raise_signal(number)
        assert stop.pending()
        now[0] += 10
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_a_second_ctrl_c_ends_at_once(now: list[float]) -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.raised()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_worker_that_reads_images_takes_two_signals_for_one(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers: dict[int, Any] = {}
    ends: list[int] = []
    monkeypatch.setattr("training.data.loader.signal.signal", handlers.__setitem__)
    monkeypatch.setattr("training.data.loader.os._exit", ends.append)
    _leave_signals_to_the_run(0)
    for seconds, expected in ((0, []), (2, []), (10, [0])):
        now[0] += seconds
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        assert ends == expected
