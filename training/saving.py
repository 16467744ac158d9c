"""The saved states of a run: last.pt, written when it is time, and a bounded number of earlier ones beside it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from training.checkpoint import write
from training.last_state import LastState
from training.run_folder import LAST
from training.save_every import SaveEvery
from trp_export.errors import OutputError

_COPY = re.compile(r"state-(\d+)-(\d+)\.pt")


class StateFiles:
    """Writes states into the folder of a run, whole or not at all, and keeps the latest `copies` of them."""

    def __init__(self, folder: Path, every: SaveEvery | None, copies: int) -> None:
        self._folder, self._every, self._copies = folder, every, copies
        self.restart()

    def is_due(self) -> bool:
        """Whether to save now; asked after each step."""
        self._steps += 1
        if self._every is None:
            return False
        if self._every.steps is not None:
            return self._steps >= self._every.steps
        return time.monotonic() - self._saved >= 60 * (self._every.minutes or 0)

    def restart(self) -> None:
        """Count steps and minutes from now on."""
        self._steps, self._saved = 0, time.monotonic()

    def write(self, state: LastState) -> None:
        """Write last.pt, then its copy, then remove the oldest copy. Raises OutputError."""
        content = state.to_content()
        write(content, self._folder / LAST)
        if self._copies:  # A file of its own: who copies an older state over last.pt must not change this one.
            write(content, self._folder / f"state-{state.epoch}-{state.step}.pt")
        self._remove([path for _, path in sorted(self._earlier())][: -self._copies or None])

    def remove_after(self, epoch: int, step: int) -> None:
        """Remove copies of states that lie after this one: the run has gone back and comes by there anew."""
        self._remove([path for position, path in self._earlier() if position > (epoch, step)])

    def _earlier(self) -> Iterator[tuple[tuple[int, int], Path]]:
        """The copies, each with the epochs and steps that were done."""
        for path in self._folder.glob("state-*.pt"):
            if match := _COPY.fullmatch(path.name):
                yield (int(match[1]), int(match[2])), path

    def _remove(self, paths: list[Path]) -> None:
        try:
            for path in paths:
                path.unlink()
        except OSError as error:
            raise OutputError(f"{self._folder} cannot be written: {error.strerror}.") from error
