"""The command line in a report, read by the command itself, asks for the same export."""

from __future__ import annotations

import shlex
from pathlib import Path

import onnx_ir as ir
import pytest

from trp_export.cli.export import command
from trp_export.command_line import command_line
from trp_export.flags import build_value
from trp_export.inputs.options import InputOptions
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.load import Source
from trp_export.options import Benchmark, Calibration, Images, LoadOptions, Options, Selection, Tuning
from trp_export.rules import Energy, Macs, MaxDrop, Params, Rank, SavedPlan, Speedup, Threshold

SOURCE = Source("a net", ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), path=Path("/somewhere/a net.onnx"))


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(Energy(0.98765), output=Path("out; rm -rf.onnx"), report=Path("$(page).html")),
        Options(Threshold(0.01), selection=Selection("spatial-t", ("a*", "b c"), ("'d'",), 8)),
        Options(Threshold(3.5, absolute=True), selection=Selection(align="auto")),
        Options(Rank(7), benchmark=Benchmark(run=False)),
        Options(Macs(1.5), benchmark=Benchmark(threads=4, budget_s=2.5, require=True)),
        Options(
            SavedPlan(Path("plan.json")),
            load=LoadOptions("resnet20", static=True, trust_pickle=True),
            inputs=InputOptions.of(1, 3, 8, 8),
        ),
        Options(MaxDrop(0.5), images=Images(Path("i.npz"))),
        Options(MaxDrop(2, "params"), images=Images(Path("i.npz"))),
        Options(
            Energy(0.9),
            images=Images(Path("i.npz")),
            preprocessing=Preprocessing((0.485, 0.4), (0.2, 0.25), 256, (224, 224)),
        ),
        Options(Macs(2), calibration=Calibration("synthetic", count=5, seed=3, recover=False, tune=Tuning(steps=30))),
        Options(Speedup(2), calibration=Calibration(Path("i"), tune=Tuning(minutes=0.5), statistics=Path("s.npz"))),
        Options(Params(2.5), benchmark=Benchmark(device="ssh:a@b"), precision="best"),
        Options(Speedup(2), benchmark=Benchmark(table=Path("t.json")), dry_run=True),
    ],
)
def test_the_command_line_of_a_report_makes_the_same_options(options: Options) -> None:
    program, *arguments = shlex.split(command_line(SOURCE, options))
    assert program == "trp-export"
    given = dict(command.make_context(program, arguments).params)
    assert given.pop("model") == Path("a net.onnx")
    assert build_value(Options, given) == options
