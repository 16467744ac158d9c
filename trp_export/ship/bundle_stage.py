"""Write a bundle atomically: in a hidden folder beside its place, which is renamed once everything is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trp_export.errors import LoadError, OptionError, OutputError
from trp_export.ship.verify import verify_bundle
from trp_export.system.files import replace_together
from trp_export.system.signals import held_back
from trp_export.system.staging import (
    Output,
    OutputStage,
    Saved,
    check_outputs,
    made_beside,
    real_path,
    require_writable,
)

MODEL, PAGE = "model.onnx", "report.html"


class BundleStage(OutputStage):
    """The stage of a bundle. An older bundle is moved aside, and moved back if the last step fails."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        super().__init__(bundle / MODEL, bundle / PAGE, bundle)

    def _require_possible(self) -> None:
        _require_replaceable(self.bundle)
        require_writable(self.bundle.parent)

    def _furnish(self) -> None:
        self.scratch, self.made = self.folder / "scratch", self.folder / "bundle"
        self.scratch.mkdir()
        self.made.mkdir()
        self.model, self.page = self.made / MODEL, self.made / PAGE

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.bundle,)

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (Output(self.bundle, "--bundle"),)

    def require_apart(self, inputs: Sequence[Path], others: Sequence[Output] = ()) -> None:
        check_outputs(others, inputs)
        place = real_path(self.bundle)
        for path in inputs:
            if real_path(path).is_relative_to(place):
                raise OptionError(f"{path} is read, and lies in the bundle to be written; choose another --bundle.")
        for output in others:
            if real_path(output.path).is_relative_to(place):
                raise OptionError(f"{output.option} {output.path} lies in the bundle; choose another place for it.")

    def publish(self, others: Sequence[Saved] = ()) -> None:
        _require_replaceable(self.bundle)
        aside = self.folder / "older"
        with made_beside(others) as moves, held_back():
            try:
                if self.bundle.exists():
                    self.bundle.rename(aside)
                self.made.rename(self.bundle)
                replace_together(moves)
            except BaseException:
                if not self.made.exists():
                    self.bundle.rename(self.made)
                if aside.exists():
                    aside.rename(self.bundle)
                raise


def _require_replaceable(bundle: Path) -> None:
    """Raises OutputError unless the place is free, an empty folder or an intact bundle: nothing else is removed."""
    if bundle.is_symlink() or (bundle.exists() and not bundle.is_dir()):
        raise OutputError(f"--bundle {bundle} is a file or a link; choose a new folder.")
    if not bundle.name or real_path(bundle) == Path.cwd():
        raise OutputError(f"--bundle {bundle}: choose another folder than the current one.")
    if not bundle.exists() or not os.listdir(bundle):  # noqa: PTH208 - one name is enough to know
        return
    try:
        verify_bundle(bundle)
    except LoadError as error:
        raise OutputError(
            f"--bundle {bundle} exists and is not an intact bundle ({error})\nRemove it, or choose another folder."
        ) from error
