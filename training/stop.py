"""Requests to stop a run: Ctrl-C, SIGTERM and SIGHUP become a question that is asked between two steps."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from types import FrameType

from training.replicas import highest
from trp_export.system.signals import handling, not_ignored

# A signal to all processes of a job comes twice to those that torchrun has started: it hands its own on to them.
ECHO_S = 5.0


class StopRequest:
    """Inside the block, a signal sets a flag that `pending` reports.

    A second Ctrl-C, or any signal some seconds after the first, ends the run at once.
    """

    def __init__(self) -> None:
        self._requested_at: float | None = None
        self._handlers = ExitStack()

    def __enter__(self) -> StopRequest:
        self._handlers.enter_context(handling(self._request, not_ignored))
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.close()

    def _request(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._requested_at is None:
            self._requested_at = now
        elif number == signal.SIGINT or now - self._requested_at > ECHO_S:
            raise KeyboardInterrupt

    def raised(self) -> bool:
        """Whether this process has got a signal."""
        return self._requested_at is not None

    def pending(self, *, also: bool = False) -> bool:
        """Whether any process has got a signal, or another reason to stop. All processes must ask together."""
        return bool(highest(int(self.raised() or also)))
