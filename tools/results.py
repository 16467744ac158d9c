"""Results as lines of a JSON file, each there as soon as it is found: a second call takes up where the first ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def missing(path: Path, jobs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the jobs of which the file has no line."""
    lines = read(path)
    return [job for job in jobs if not any(job.items() <= line.items() for line in lines)]


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Keep a job and what came of it, and say so without the long `layers`."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print({name: value for name, value in line.items() if name != "layers"}, flush=True)
