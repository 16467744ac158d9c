"""The choice between loaders, by what the file is. torch is imported only for what needs it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from trp_export.errors import OptionError
from trp_export.load.foreign import require_model_file
from trp_export.load.source import Source
from trp_export.options import LoadOptions
from trp_export.system.extras import require
from trp_export.system.signals import held_back

if TYPE_CHECKING:
    from torch import nn


def load(model: str | Path | nn.Module, options: LoadOptions) -> Source:
    """Read a model. Raises LoadError, OptionError or UnsupportedError with the remedy."""
    with redirect_stdout(sys.stderr):  # A model's own code may print; stdout is for the report.
        source = _load(model, options)
    if options.iterations is not None and source.arch is None:
        raise OptionError("--iterations is for weights of a network by name (--arch); this model has its iterations.")
    return source


def _load(model: str | Path | nn.Module, options: LoadOptions) -> Source:
    if not isinstance(model, (str, Path)):
        require("a PyTorch module", "torch", "onnxscript")
        with held_back():  # torch aborts where its import is broken off.
            from trp_export.load.torch_module import load_module

        return load_module(model, options)
    path = Path(model)
    require_model_file(path)
    if path.suffix.lower() == ".onnx":
        if options.arch:
            raise OptionError("--arch is for PyTorch weights; an ONNX file holds its architecture itself.")
        if options.iterations is not None:
            raise OptionError("--iterations is for PyTorch weights; an ONNX file holds its iterations itself.")
        from trp_export.load.onnx_file import load_onnx

        return load_onnx(path, options)
    require(f"{path.name}, which is not an ONNX file,", "torch", "onnxscript")
    with held_back():
        from trp_export.load.torch_file import load_torch

    return load_torch(path, options)
