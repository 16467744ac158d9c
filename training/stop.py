"""Requests to stop a run: Ctrl-C, SIGTERM and SIGHUP become a question that is asked between two steps."""

from __future__ import annotations

from contextlib import ExitStack
from types import FrameType

from training.replicas import highest
from trp_export.system.signals import handling, not_ignored


class StopRequest:
    """Inside the block, a signal sets a flag that `pending` reports. A second signal ends the run at once."""

    def __init__(self) -> None:
        self._is_requested = False
        self._handlers = ExitStack()

    def __enter__(self) -> StopRequest:
        self._handlers.enter_context(handling(self._request, not_ignored))
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.close()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._is_requested:
            raise KeyboardInterrupt
        self._is_requested = True

    def raised(self) -> bool:
        """Whether this process has got a signal."""
        return self._is_requested

    def pending(self, *, also: bool = False) -> bool:
        """Whether any process has got a signal, or another reason to stop. All processes must ask together."""
        return bool(highest(int(self._is_requested or also)))
