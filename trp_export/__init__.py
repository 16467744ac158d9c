"""Low-rank export of convolutional networks to ONNX: factor, rewrite, verify, measure.

    from trp_export import Energy, Options, compress
    report = compress("model.onnx", Options(rule=Energy(0.98)))

What is named here is imported when it is first used, so that `--help` need not wait for any of it.
"""

import os
import sys
from importlib import import_module

TYPE_CHECKING = False  # As in typing, whose import would delay the moment from which Ctrl-C is handled.

# onnxruntime would queue the names of models, nodes and the interpreter's path for its maker, from its import on.
# The programs that we start inherit this.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
if "onnxruntime" in sys.modules:
    sys.modules["onnxruntime"].disable_telemetry_events()

if TYPE_CHECKING:
    from trp_export.errors import TrpError
    from trp_export.inputs.options import InputOptions
    from trp_export.inputs.preprocessing import Preprocessing
    from trp_export.options import (
        Benchmark,
        Bundle,
        Calibration,
        Images,
        LoadOptions,
        Options,
        Selection,
        Tuning,
    )
    from trp_export.pipeline import compress
    from trp_export.planning.plan import Plan
    from trp_export.report.document import Report
    from trp_export.rules import Energy, Macs, MaxDrop, Params, Rank, Rule, SavedPlan, Speedup, Threshold
    from trp_export.ship.verify import verify_bundle

_OPTIONS, _RULES = "trp_export.options", "trp_export.rules"
_HOMES = {
    "Benchmark": _OPTIONS,
    "Bundle": _OPTIONS,
    "Calibration": _OPTIONS,
    "Images": _OPTIONS,
    "InputOptions": "trp_export.inputs.options",
    "LoadOptions": _OPTIONS,
    "Options": _OPTIONS,
    "Selection": _OPTIONS,
    "Tuning": _OPTIONS,
    "Energy": _RULES,
    "Macs": _RULES,
    "MaxDrop": _RULES,
    "Params": _RULES,
    "Rank": _RULES,
    "Rule": _RULES,
    "SavedPlan": _RULES,
    "Speedup": _RULES,
    "Threshold": _RULES,
    "TrpError": "trp_export.errors",
    "Plan": "trp_export.planning.plan",
    "Preprocessing": "trp_export.inputs.preprocessing",
    "Report": "trp_export.report.document",
    "compress": "trp_export.pipeline",
    "verify_bundle": "trp_export.ship.verify",
}

__all__ = [
    "Benchmark",
    "Bundle",
    "Calibration",
    "Energy",
    "Images",
    "InputOptions",
    "LoadOptions",
    "Macs",
    "MaxDrop",
    "Options",
    "Params",
    "Plan",
    "Preprocessing",
    "Rank",
    "Report",
    "Rule",
    "SavedPlan",
    "Selection",
    "Speedup",
    "Threshold",
    "TrpError",
    "Tuning",
    "compress",
    "verify_bundle",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("trp-export")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
