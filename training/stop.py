"""Requests to stop a run: Ctrl-C, SIGTERM and SIGHUP become a question that is asked between two steps."""

from __future__ import annotations

from contextlib import ExitStack
from types import FrameType

import torch
import torch.distributed as dist

from training.replicas import world
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

    def pending(self, step: int) -> bool:
        """Whether to stop after this step. Replicas vote on it every tenth step."""
        if world()[1] == 1:
            return self._is_requested
        if step % 10:
            return False
        vote = torch.tensor([float(self._is_requested)])
        dist.all_reduce(vote)
        return bool(vote.item() > 0)
