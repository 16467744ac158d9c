"""Writing so that a file is whole or absent: everything is made in a folder beside its place, then renamed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from trp_export.errors import OptionError, OutputError
from trp_export.system.files import atomic_write, require_plain_file
from trp_export.system.signals import held_back


class Scratch:
    """A folder for files on the way, gone when it is left; in the system's place for such."""

    def __enter__(self) -> Self:
        return self._enter("trp-export.", None)

    def _enter(self, prefix: str, parent: Path | None) -> Self:
        """Make the folder. A signal waits until it is known, so that none is left behind."""
        made = None
        try:
            with held_back():
                made = self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
                self._furnish()
        except BaseException as error:
            if made is not None:
                self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _furnish(self) -> None:
        """Name what will be made in the folder."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class OutputStage(Scratch):
    """A hidden folder beside `place`, the output. `publish` moves what lies in it into place; leaving removes it.

    Raises OutputError or OptionError on entry where the output could not be written, before any work is done.
    """

    def __init__(self, output: Path, report: Path | None) -> None:
        self.place = self.output = output
        self.report = report

    def __enter__(self) -> Self:
        self._require_possible()
        require_writable(self.place.parent)
        return self._enter(f".{self.place.stem}.", self.place.parent)

    def _require_possible(self) -> None:
        for target in (self.output, self.report):
            if target is not None and target.is_dir():
                raise OutputError(f"{target} is a folder; name a file in it.")
            if target is not None:
                require_plain_file(target)
        if self.report is not None and self.report.resolve() in [file.resolve() for file in self.files[:2]]:
            raise OptionError(f"--report {self.report} is the same file as another output.")
        if self.report is not None:
            require_writable(self.report.parent)

    def _furnish(self) -> None:
        self.scratch = self.folder / "scratch"
        self.scratch.mkdir()
        self.model = self.folder / self.output.name
        self.document = self.model.with_suffix(".json")
        self.page = self.scratch / "page.html" if self.report else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(f"{self.place} cannot be written: {error.strerror or error}.") from error

    def require_apart(self, inputs: Sequence[Path]) -> None:
        """Raises OptionError where an output would take the place of a file that is read."""
        read = {path.resolve() for path in inputs}
        for target in (*self.files, self.output.with_name(f"{self.output.name}.data")):
            if target.resolve() in read:
                raise OptionError(
                    f"{target} is read and would be written over; choose another place with -o or --report."
                )

    @property
    def files(self) -> tuple[Path, ...]:
        """Where everything will lie, the model first."""
        document = self.output.with_suffix(".json")
        return (self.output, document, self.report) if self.report else (self.output, document)

    def publish(self) -> None:
        """Move everything into place, the model last: who sees the model sees it with all its parts.

        The page comes first: it alone may go to another disk, where that can fail.
        """
        if self.page is not None and self.report is not None:
            with atomic_write(self.report) as part:
                shutil.move(self.page, part)
        made = (path for path in self.folder.iterdir() if path != self.scratch)
        for path in sorted(made, key=lambda path: path == self.model):
            path.replace(self.output.parent / path.name)


def require_writable(folder: Path) -> None:
    """Raises OutputError where no file can be made in a folder, which is found out by making one."""
    try:
        if not folder.is_dir():
            raise OutputError(f"there is no folder {folder}; make it first, or write elsewhere.")
        with held_back(), tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder} cannot be written to: {error.strerror}.") from error
