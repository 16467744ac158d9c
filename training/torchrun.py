"""What torchrun says to each process of a distributed run, in environment variables."""

from __future__ import annotations

import os

from trp_export.errors import OptionError


def processes() -> int:
    """The number of processes of the run, on all machines."""
    return _number("WORLD_SIZE", 1, least=1)


def local_processes() -> int:
    """The number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1, least=1)


def rank() -> int:
    """The number of this process among those of the run."""
    return _number("RANK", 0, least=0)


def restarts() -> int:
    """How often torchrun has started the processes again because one died."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0, least=0)


def _number(variable: str, default: int, *, least: int) -> int:
    """Raises OptionError where the variable holds anything but a whole number of at least `least`."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or len(text) > 9 or int(text) < least:
        raise OptionError(
            f"the environment variable {variable} is {text[:80]!r}; it must be a whole number of at least {least}. "
            "torchrun sets it; elsewhere, unset it."
        )
    return int(text)
