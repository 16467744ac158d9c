"""Low-rank export of convolutional networks to ONNX: factor, rewrite, verify, measure.

    from trp_export import Energy, Options, compress
    report = compress("model.onnx", Options(rule=Energy(0.98)))

What is named here is imported when it is first used, so that `--help` need not wait for any of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from trp_export.errors import TrpError

if TYPE_CHECKING:
    from trp_export.load import LoadOptions
    from trp_export.options import (
        Benchmark,
        Images,
        LatencyTables,
        Macs,
        MaxDrop,
        Options,
        SavedPlan,
        Selection,
        Speedup,
    )
    from trp_export.pipeline import compress
    from trp_export.planning.rules import Energy, Rank, Threshold

_HOMES = {
    "LoadOptions": "trp_export.load",
    "Benchmark": "trp_export.options",
    "Images": "trp_export.options",
    "LatencyTables": "trp_export.options",
    "Macs": "trp_export.options",
    "MaxDrop": "trp_export.options",
    "Options": "trp_export.options",
    "SavedPlan": "trp_export.options",
    "Selection": "trp_export.options",
    "Speedup": "trp_export.options",
    "compress": "trp_export.pipeline",
    "Energy": "trp_export.planning.rules",
    "Rank": "trp_export.planning.rules",
    "Threshold": "trp_export.planning.rules",
}

__all__ = [
    "Benchmark",
    "Energy",
    "Images",
    "LatencyTables",
    "LoadOptions",
    "Macs",
    "MaxDrop",
    "Options",
    "Rank",
    "SavedPlan",
    "Selection",
    "Speedup",
    "Threshold",
    "TrpError",
    "compress",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
