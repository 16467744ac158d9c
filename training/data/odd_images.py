"""The images that are damaged or unusual, counted and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from training.replicas import gathered
from trp_export.system.files import atomic_write
from trp_export.system.text import plain

_MOST_NAMES = 100_000


class OddImages:
    """Names of images with what is odd about each; every image counts once."""

    def __init__(self) -> None:
        self._remarks: dict[str, str] = {}
        self._noted = 0

    def add(self, remarks: Iterable[tuple[str, str]]) -> None:
        for name, remark in remarks:
            if len(self._remarks) < _MOST_NAMES:
                self._remarks[name] = remark

    def gather(self) -> None:
        """Take over what the other processes of a distributed run have found."""
        for remarks in gathered(self._remarks):
            self.add(remarks.items())

    def has_more(self) -> bool:
        """Whether there are more than when they were last written."""
        return len(self._remarks) > self._noted

    def summary(self) -> str:
        """One line: how many images of each kind."""
        kinds = Counter("damaged" if name in remark else remark for name, remark in self._remarks.items())
        return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())

    def write(self, path: Path) -> None:
        """Write a line for each image; control characters in names become question marks. Raises OutputError."""
        self._noted = len(self._remarks)
        lines = (plain(f"{name}: {remark}", keep_lines=False) for name, remark in sorted(self._remarks.items()))
        with atomic_write(path) as part:
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
