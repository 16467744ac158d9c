"""Where an export works: a scratch folder, the place where outputs are prepared, and the progress callback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trp_export.errors import OptionError
from trp_export.flags import InvalidOptionError
from trp_export.graph.model_files import model_files
from trp_export.inputs.options import named_file
from trp_export.options import Options
from trp_export.rules import SavedPlan
from trp_export.system.progress import Progress
from trp_export.system.scratch import Scratch
from trp_export.system.staging import Output, OutputStage, check_outputs, is_same_file

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Workspace:
    """`scratch` is a folder that is removed at the end. `outputs` is None where nothing is to be written."""

    scratch: Path
    progress: Progress
    outputs: OutputStage | None = None

    @property
    def result(self) -> Path:
        """Where the model is made."""
        return self.outputs.model if self.outputs is not None else self.scratch / "result.onnx"


@contextmanager
def open_workspace(model: str | Path | nn.Module, options: Options, progress: Progress) -> Iterator[Workspace]:
    """A workspace for one export, removed when it is left. A dry run gets one without outputs.

    Raises OptionError and OutputError for outputs that cannot be written, before any work is done.
    """
    inputs, saved = files_read(model, options), files_saved(options)
    if options.dry_run:
        check_outputs(saved, [*inputs, *_external_data(model, saved)])
        with Scratch() as scratch:
            yield Workspace(scratch.folder, progress)
        return
    with _output_stage(model, options) as stage:
        stage.require_apart([*inputs, *_external_data(model, [*stage.outputs, *saved])], saved)
        yield Workspace(stage.scratch, progress, stage)


def files_read(model: str | Path | nn.Module, options: Options) -> list[Path]:
    """The user's files that an export reads, none of which it may write over.

    A report whose plan is replayed may be renewed: the new one holds the same plan.
    """
    calibration, images = options.calibration, options.images
    read = [Path(model)] if isinstance(model, (str, Path)) else []
    if images is not None:
        read += [images.path, *named_file(str(images.path)), *named_file(images.metric)]
        read += [images.labels] if images.labels is not None else []
    if calibration is not None and isinstance(calibration.path, Path):
        read += [calibration.path, *named_file(str(calibration.path))]
    read += [options.inputs.file] if options.inputs.file is not None else []
    return read + (
        [options.rule.path] if isinstance(options.rule, SavedPlan) and not _is_renewed(model, options) else []
    )


def _is_renewed(model: str | Path | nn.Module, options: Options) -> bool:
    """Whether the plan is read from the report that lies beside the result."""
    if options.bundle is not None or not isinstance(options.rule, SavedPlan):
        return False
    return is_same_file(_output(model, options).with_suffix(".json"), options.rule.path)


def files_saved(options: Options) -> list[Output]:
    """The files of measurements: an export reads them where they exist, and writes them back with its own added."""
    statistics = options.calibration.statistics if options.calibration else None
    named = (("--calib-stats", statistics), ("--latency-table", options.benchmark.table))
    return [Output(path, option) for option, path in named if path is not None]


def _external_data(model: str | Path | nn.Module, outputs: Sequence[Output]) -> tuple[Path, ...]:
    """The files of an ONNX model's weights. They are looked for only where an output exists already."""
    if not isinstance(model, (str, Path)) or not any(output.path.exists() for output in outputs):
        return ()
    return model_files(Path(model))[1:] if Path(model).suffix.lower() == ".onnx" else ()


def _output_stage(model: str | Path | nn.Module, options: Options) -> OutputStage:
    """Outputs are prepared beside their final place, that of the model or of the bundle."""
    if options.bundle is None:
        return OutputStage(_output(model, options), options.report)
    from trp_export.ship.bundle_stage import BundleStage

    return BundleStage(options.bundle.folder)


def _output(model: str | Path | nn.Module, options: Options) -> Path:
    """The file of the result. Raises OptionError for a name that does not end in .onnx, or is the model's own."""
    name = Path(model).stem if isinstance(model, (str, Path)) else type(model).__name__.lower()
    output = options.output or Path(f"{name}.trp.onnx")
    if output.suffix.lower() != ".onnx":
        raise InvalidOptionError(f"{{output}} {output} must end in .onnx; the report goes beside it as .json.")
    if isinstance(model, (str, Path)) and is_same_file(output, Path(model)):
        raise OptionError(f"{output} is the model itself; give the result another name.")
    return output
