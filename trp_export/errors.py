"""The errors a user can meet. Each message says what, where and the remedy, in a line or two.

`exit_code` is what the commands return; the table in docs/exit-codes.md is checked against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trp_export.report.document import Report


class TrpError(Exception):
    """Anything this project refuses or fails to do, for a reason it can name."""

    exit_code = 1


class OptionError(TrpError):
    """Options that contradict one another or lie outside their range."""

    exit_code = 2


class LoadError(TrpError):
    """The model, the plan or the images cannot be read, or are not what they claim to be."""

    exit_code = 3


class UnsupportedError(TrpError):
    """A valid model with something in it that cannot be handled."""

    exit_code = 4


class VerifyError(TrpError):
    """The rewritten model does not compute what the factors say. Nothing is written."""

    exit_code = 5


class NotFasterError(TrpError):
    """The result is not faster than the original, and the user asked for that to be an error."""

    exit_code = 6


class OutputError(TrpError):
    """The result cannot be written where it should go."""

    exit_code = 7


class DeviceError(TrpError):
    """A device or a program on it is missing, gone, or misbehaves."""

    exit_code = 8


class PrecisionError(TrpError):
    """The model cannot be had in the precision asked for. The float model has been written instead."""

    exit_code = 10


class ShortfallError(TrpError):
    """The result has been written, but it is larger than its source, or nothing could check its budget."""

    exit_code = 11


class FarFromOriginalError(TrpError):
    """The outputs of the result are far from the original's, and no image of the user's shows what that costs.

    `report` says what would have been written.
    """

    exit_code = 12

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report


class EnvironmentMismatchError(TrpError):
    """Measurements from unlike environments or of unlike models would have been compared."""

    exit_code = 9


INTERRUPTED = 130


_TORCHSCRIPT = "The following operation failed in the TorchScript interpreter."


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of a foreign error that says something, without its decoration."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return "it calls sys.exit"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0] == _TORCHSCRIPT:  # The error itself comes last, behind a traceback.
        lines = [lines[-1].removeprefix("RuntimeError: ")]
    return (lines[0] if lines else type(error).__name__)[:limit]


_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to map segment",
    "cannot map zero-fill pages",
    "without setting an exception",
    "error return without exception set",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; torch, the loader of libraries and Python have their own for it."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY)


class StoppedEarly(Exception):  # noqa: N818 - not an error: the user asked for it
    """Long work was asked to stop, and what was done is saved; the message says how to go on."""

    def __init__(self, message: str = "stopped and saved; the same command with --resume goes on.") -> None:
        super().__init__(message)
