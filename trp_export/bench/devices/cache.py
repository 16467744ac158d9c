"""Where tools/ puts what devices need, so that trp-bench finds it without being told."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cached(part: str) -> Path:
    """The folder for `arm`, `web` or `native`: $TRP_BENCH_CACHE/part, or in the user's cache folder."""
    if chosen := os.environ.get("TRP_BENCH_CACHE"):
        return Path(chosen) / part
    if sys.platform == "win32":
        home = Path(os.environ.get("LOCALAPPDATA", Path.home()))
    elif sys.platform == "darwin":
        home = Path.home() / "Library" / "Caches"
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "trp-bench" / part
