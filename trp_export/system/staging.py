"""The outputs of a command: checked together before work begins, made apart, published together."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from trp_export.errors import OptionError, OutputError
from trp_export.system.files import replace_together, require_replaceable
from trp_export.system.scratch import Scratch
from trp_export.system.signals import held_back

# The place of a file, and what makes the file under a name that it is given.
Saved = tuple[Path, Callable[[Path], object]]

# What earlier runs may have left in a folder that is read, such as the current one; images and arrays are not.
_OURS = (".onnx", ".data", ".json", ".html", ".npz")


@dataclass(frozen=True, slots=True)
class Output:
    """A file that a command will write, and the option that names it."""

    path: Path
    option: str


def check_outputs(outputs: Sequence[Output], inputs: Sequence[Path] = ()) -> None:
    """Check, before work begins, that all outputs can be written without harm to one another or to an input.

    Raises OptionError where an output is the same file as an input or as another output, also through links, and
    OutputError where one cannot be written.
    """
    for output in outputs:
        _require_possible_name(output)
    for index, output in enumerate(outputs):
        for other in outputs[:index]:
            if is_same_file(output.path, other.path):
                raise OptionError(
                    f"{output.option} {output.path} is the same file as another output ({other.option}); "
                    "choose another place for one of them."
                )
        for path in inputs:
            if _overwrites(output.path, path):
                raise OptionError(
                    f"{output.path} is read and would be written over; choose another place with {output.option}."
                )
    for output in outputs:
        require_writable_file(output)


def _require_possible_name(output: Output) -> None:
    """Raise OutputError for a name that the disk or a library does not take: too long, or not UTF-8."""
    try:
        str(output.path).encode()
        output.path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        why = "its name is not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
        raise OutputError(
            f"{output.path} cannot be written: {why}. Choose another name with {output.option}."
        ) from error


def require_writable_file(output: Output) -> None:
    """Raise OutputError where the file could not be written, which is found out by making a file beside it."""
    if output.path.is_dir():
        raise OutputError(f"{output.path} is a folder; name a file in it with {output.option}.")
    require_replaceable(output.path, remedy=f"Choose another place with {output.option}.")
    require_writable(output.path.parent)


def require_writable(folder: Path) -> None:
    """Raise OutputError where no file can be made in a folder, which is found out by making one."""
    try:
        if not folder.is_dir():
            raise OutputError(f"there is no folder {folder}; make it first, or write elsewhere.")
        with held_back(), tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder} cannot be written to: {getattr(error, 'strerror', None) or error}.") from error


def real_path(path: Path) -> Path:
    """The path behind links. Those that lead in a circle stay, where `Path.resolve` raises a RuntimeError."""
    return Path(os.path.realpath(path))


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths name one file, through links and on disks that ignore case."""
    try:
        if real_path(one) == real_path(other):
            return True
        return one.exists() and other.exists() and one.samefile(other)
    except (OSError, ValueError):  # A path that cannot be followed: opening it will say why.
        return one.absolute() == other.absolute()


def _overwrites(output: Path, path: Path) -> bool:
    """Whether writing `output` would destroy the input `path`: the file, or what a folder holds but we never write."""
    if is_same_file(output, path):
        return True
    if output.suffix.lower() in _OURS or not output.exists() or not path.is_dir():
        return False
    return real_path(output).is_relative_to(real_path(path))


class OutputStage(Scratch):
    """A hidden folder beside `place`. Files are made in it; `publish` moves them into place together.

    `place` is the output file, or the folder that will hold it where the stage makes a whole folder.

    Raises OutputError or OptionError on entry where an output could not be written, before any work is done.
    """

    def __init__(self, output: Path, report: Path | None, place: Path | None = None) -> None:
        self.output, self.report, self.place = output, report, place or output
        super().__init__(self.place.parent)

    def __enter__(self) -> Self:
        self._require_possible()
        try:
            return super().__enter__()
        except OSError as error:
            raise OutputError(f"{self.place} cannot be written: {error.strerror or error}.") from error

    def _require_possible(self) -> None:
        check_outputs(self.outputs)

    def _furnish(self) -> None:
        self.scratch = self.folder / "scratch"
        self.scratch.mkdir()
        self.model = self.folder / self.output.name
        self.document = self.model.with_suffix(".json")
        self.page = self.scratch / "page.html" if self.report else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        # The names of outputs are checked before: one that is too long is that of an input.
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            raise OutputError(f"{self.place} cannot be written: {error.strerror or error}.") from error

    def require_apart(self, inputs: Sequence[Path], others: Sequence[Output] = ()) -> None:
        """Check all outputs, and `others` that the command writes itself, against one another and the inputs."""
        check_outputs((*self.outputs, *others), inputs)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Every file that may be written, the model first."""
        data = Output(self.output.with_name(f"{self.output.name}.data"), "-o")
        model, document, *report = self.files
        return (Output(model, "-o"), Output(document, "-o"), *(Output(path, "--report") for path in report), data)

    @property
    def files(self) -> tuple[Path, ...]:
        """Where the results will lie, the model first. A model over 2 GB has a .data file besides."""
        document = self.output.with_suffix(".json")
        return (self.output, document, self.report) if self.report else (self.output, document)

    def publish(self, others: Sequence[Saved] = ()) -> None:
        """Move everything into place, and `others` with it, the model last. If one move fails, all old files come back.

        Raises OutputError. The report may lie on another disk, so it is copied beside its place first.
        """
        files = (path for path in self.folder.iterdir() if path != self.scratch)
        made = sorted(files, key=lambda path: path == self.model)
        moves = [(path, self.output.parent / path.name) for path in made]
        if (page := self.page) is not None and self.report is not None:
            others = (*others, (self.report, lambda path: path.write_bytes(page.read_bytes())))
        with made_beside(others) as beside:
            replace_together([*beside, *moves])


@contextmanager
def made_beside(files: Sequence[Saved]) -> Iterator[list[tuple[Path, Path]]]:
    """New files, each made on the disk of its place and paired with that; removed at the end unless they were moved.

    Raises OutputError.
    """
    with ExitStack() as until:
        moves = []
        for place, save in files:
            try:
                new = until.enter_context(Scratch(place.parent)).folder / place.name
                save(new)
            except OSError as error:
                raise OutputError(f"{place} cannot be written: {error.strerror or error}.") from error
            except OutputError as error:  # It names the hidden folder.
                raise OutputError(str(error).replace(str(new), str(place))) from error
            moves.append((new, place))
        yield moves
