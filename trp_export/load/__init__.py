"""A model file of any kind, or a module in memory, becomes an onnx_ir.Model and what is known about it."""

from trp_export.load.loader import load
from trp_export.load.source import Source

__all__ = ["Source", "load"]
