"""Low-rank export of convolutional networks to ONNX: factor, rewrite, verify, measure.

from trp_export import Energy, Options, compress
report = compress("model.onnx", Options(rule=Energy(0.98)))
"""

from trp_export.errors import TrpError
from trp_export.options import Benchmark, Images, Macs, Options, SavedPlan, Selection
from trp_export.pipeline import compress
from trp_export.planning.rules import Energy, Rank, Threshold

__all__ = [
    "Benchmark",
    "Energy",
    "Images",
    "Macs",
    "Options",
    "Rank",
    "SavedPlan",
    "Selection",
    "Threshold",
    "TrpError",
    "compress",
]
