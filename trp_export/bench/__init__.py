"""Latency you can trust: ONNX models side by side on a device, with raw samples, ratios and intervals.

    from trp_export.bench import compare, ratio
    result = compare([Path("model.onnx"), Path("model.trp.onnx")], budget_s=20)
    print(ratio(*result.measurements))          # 1.62x [1.58, 1.66]

onnx, scipy and onnxruntime are imported when they are first needed.
"""

from trp_export.bench.devices.base import Settings
from trp_export.bench.environment import Environment
from trp_export.bench.samples import Comparison, Measurement, OutputDeviation, Process
from trp_export.bench.saved import load, save, to_json
from trp_export.bench.session import compare
from trp_export.bench.stats import Ratio, Summary, median, ratio, summary

__all__ = [
    "Comparison",
    "Environment",
    "Measurement",
    "OutputDeviation",
    "Process",
    "Ratio",
    "Settings",
    "Summary",
    "compare",
    "load",
    "median",
    "ratio",
    "save",
    "summary",
    "to_json",
]
