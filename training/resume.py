"""Going on with a run: its saved state, and the promise that it is the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from training.checkpoint import read
from training.options import FREE
from training.stored import plain
from trp_export.errors import LoadError, OptionError

RUN_FORMAT, RUN_VERSION = "trp-run", 1
_KEYS = {"options", "kind", "plan", "epoch", "step", "loss_sum", "model", "optimizer", "trp", "history"}


def read_run(output: Path) -> dict[str, Any]:
    """The saved state of a run. Raises LoadError where there is none."""
    path = output / "last.pt"
    if not path.is_file():
        raise LoadError(f"{output} holds no run to resume: last.pt is missing. Leave --resume out to start one.")
    content = read(path)
    if content.get("format") != RUN_FORMAT or content.get("version") != RUN_VERSION:
        raise LoadError(f"{path} is not the saved state of a run.")
    if _KEYS - content.keys() or not isinstance(content["options"], dict):
        raise LoadError(f"{path} is damaged, or of another version of this program.")
    return content


def given_options(context: click.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a command's options those that somebody gave, as they are stored."""
    return {
        name: plain(value)
        for name, value in values.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }


def require_same_run(options: Mapping[str, Any], stored: Mapping[str, Any], free: Sequence[str] = FREE) -> None:
    """Raises OptionError where an option given on resuming, unless `free`, differs from that of the start."""
    for name, value in options.items():
        if name not in free and stored.get(name) != value:
            raise OptionError(
                f"--{name.replace('_', '-')} {value} differs from the {stored.get(name)} this run was started with; "
                "leave it out, or start another run."
            )
