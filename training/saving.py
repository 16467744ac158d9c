"""The saved states of a run: last.pt, written when it is time, and a bounded number of earlier ones beside it."""

from __future__ import annotations

import re
import shutil
import time
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
        self._reset()

    def is_due(self) -> bool:
        """Whether to save now; asked after each step."""
        self._steps += 1
        if self._every is None:
            return False
        if self._every.steps is not None:
            return self._steps >= self._every.steps
        return time.monotonic() - self._saved >= 60 * (self._every.minutes or 0)

    def write(self, state: LastState) -> None:
        """Write last.pt, then its copy, then remove the oldest copy. Raises OutputError."""
        last = self._folder / LAST
        write(state.to_content(), last)
        self._reset()
        try:
            if self._copies:
                _link(last, self._folder / f"state-{state.epoch}-{state.step}.pt")
            for path in self._earlier()[: -self._copies or None]:
                path.unlink()
        except OSError as error:
            raise OutputError(f"{self._folder} cannot be written: {error.strerror}.") from error

    def _reset(self) -> None:
        self._steps, self._saved = 0, time.monotonic()

    def _earlier(self) -> list[Path]:
        """The copies, the oldest first."""
        found = [(match, path) for path in self._folder.iterdir() if (match := _COPY.fullmatch(path.name))]
        return [path for _, path in sorted(found, key=lambda pair: (int(pair[0][1]), int(pair[0][2])))]


def _link(file: Path, place: Path) -> None:
    """Give a file a second name, or copy it where the disk knows no second names."""
    place.unlink(missing_ok=True)
    try:
        place.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, place)
