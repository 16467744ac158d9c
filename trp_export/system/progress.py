"""How long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

# What is being done, and the share of it that is done, 0 to 1.
Progress = Callable[[str, float], None]
# The share alone, where one step is all there is.
Share = Callable[[float], None]
