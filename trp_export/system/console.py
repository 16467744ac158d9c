"""Standard output as a rich console."""

from __future__ import annotations

import sys

from rich.console import Console

# In a pipe, tables take the width that they need, and lines stay whole.
WIDTH_WHEN_PIPED = 1000


def standard_output() -> Console:
    """Standard output, wide enough for whole rows if it is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else WIDTH_WHEN_PIPED, highlight=False)
