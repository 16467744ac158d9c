"""What one export hands to verification, kept so that it can be broken on purpose and verified again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import onnx
import onnx_ir as ir
from models import save
from numpy.typing import NDArray

import trp_export.steps.build as building
from trp_export import Benchmark, Options, Rank, Selection, compress
from trp_export.inputs.description import NetworkInputs
from trp_export.load import Source
from trp_export.options import Calibration
from trp_export.planning.plan import Plan
from trp_export.verify import Deviation, Files, verify_export


@dataclass(frozen=True)
class Export:
    """The arguments of verification, and the result as a model to change."""

    source: Source
    inputs: NetworkInputs
    files: Files
    plan: Plan

    def verify(
        self, result: ir.Model | None = None, images: Sequence[NDArray] = (), arrays: dict[str, NDArray] | None = None
    ) -> Deviation:
        files = self.files
        if result is not None:
            files = replace(files, result=files.result.with_name("broken.onnx"))
            ir.save(result, files.result)
        return verify_export(self.source, replace(self.inputs, arrays=arrays or {}), files, self.plan, images=images)

    def result(self) -> ir.Model:
        return ir.load(self.files.result)


def capture(model: onnx.ModelProto, folder: Path, rank: int = 2, scheme: str = "channel") -> Export:
    """Export a model, and keep the files that verification compares."""
    kept: list[Export] = []

    def keep(source: Source, inputs: NetworkInputs, files: Files, plan: Plan, **_: object) -> Deviation:
        names = ("original", "dense", "products", "result")
        copies = {name: folder / "kept" / f"{name}.onnx" for name in names}
        (folder / "kept").mkdir()
        for name, copy in copies.items():
            ir.save(_in_memory(getattr(files, name)), copy)
        unrounded = [folder / "kept" / f"unrounded{index}.onnx" for index in range(len(files.unrounded or ()))]
        for file, copy in zip(files.unrounded or (), unrounded, strict=True):
            ir.save(_in_memory(file), copy)
        kept.append(Export(source, inputs, Files(**copies, unrounded=tuple(unrounded) or None), plan))
        return verify_export(source, inputs, files, plan)

    with patch.object(building, "verify_export", keep):
        options = Options(
            rule=Rank(rank),
            selection=Selection(scheme),
            benchmark=Benchmark(run=False),
            output=folder / "small.onnx",
            calibration=Calibration("none"),
        )
        compress(save(model, folder / "model.onnx"), options)
    return kept[0]


def _in_memory(file: Path) -> ir.Model:
    model = ir.load(file)
    ir.external_data.load_to_model(model)
    return model
