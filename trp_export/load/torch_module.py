"""A module in memory -> ONNX, with batch norm kept apart so that ranks are chosen on weights as trained."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trp_export.errors import LoadError, OptionError, UnsupportedError, first_line
from trp_export.graph.metadata import strip_traces
from trp_export.load.source import Probe, Source
from trp_export.options import LoadOptions
from trp_export.system.signals import held_back

# Traced at 2 and probed at 3: a batch size that an exporter froze shows up as a difference.
_TRACE_BATCH, _PROBE_BATCH = 2, 3


def load_module(module: nn.Module, options: LoadOptions) -> Source:
    """Export a module in memory, which stays as it is."""
    if not isinstance(module, nn.Module):
        raise OptionError(f"expected a path or a torch.nn.Module, not a {type(module).__name__}.")
    return export_module(module, type(module).__name__.lower(), options, type(module).__name__)


def export_module(module: nn.Module, name: str, options: LoadOptions, what: str, notes: tuple[str, ...] = ()) -> Source:
    """Export to ONNX and record what the module itself answers to a probe. Raises UnsupportedError."""
    if options.input_shape is None:
        raise OptionError(f"the input shape of {what} is unknown: give it, e.g. --shape 1,3,224,224.")
    _require_finite(module)
    half = _half_precision(module)
    if half is not None:
        module = copy.deepcopy(module).float()
        notes += (f"the weights are {half}; they are exported in float32 (--precision fp16 stores half of that)",)
    training = {inner: inner.training for inner in module.modules()}
    try:
        for inner in training:  # eval() is refused by what torch.export.load returns.
            inner.training = False
        return _export(module, name, options, what, notes)
    finally:
        for inner, was in training.items():
            inner.training = was


def _half_precision(module: nn.Module) -> str | None:
    """The name of the 16-bit type among the weights, if any: onnxruntime's CPU kernels compute in float32."""
    types = (tensor.dtype for tensor in (*module.parameters(), *module.buffers()))
    found = next((dtype for dtype in types if dtype in (torch.float16, torch.bfloat16)), None)
    return None if found is None else str(found).removeprefix("torch.")


def _export(module: nn.Module, name: str, options: LoadOptions, what: str, notes: tuple[str, ...]) -> Source:
    """With any batch size where the module and torch.export can leave it open, unless the user wants it fixed."""
    _require_one_input(module, what)
    if not options.static:
        try:
            return _trace(module, name, replace(options, static=False), what, notes)
        except (OptionError, UnsupportedError) as error:
            size = (options.input_shape or (1,))[0]
            notes += (f"the batch size is fixed at {size}, as --static fixes it: {first_line(error, 160)}",)
    return _trace(module, name, replace(options, static=True), what, notes)


def _require_one_input(module: nn.Module, what: str) -> None:
    needed = [
        parameter.name
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if len(needed) > 1:
        raise UnsupportedError(
            f"{what} takes several inputs: {', '.join(needed)}. Export it with torch.onnx.export(module, "
            f'({", ".join(needed)}), "model.onnx", dynamo=True) and give model.onnx.'
        )


def _trace(module: nn.Module, name: str, options: LoadOptions, what: str, notes: tuple[str, ...]) -> Source:
    """Raises OptionError where the module does not take the shape, UnsupportedError where it cannot be traced."""
    shape, static = options.input_shape or (), options.static
    probe = _noise(shape if static else (_PROBE_BATCH, *shape[1:]), module)
    expected = _run(module, probe, what, tuple(probe.shape))
    try:
        model = _to_onnx(module, shape, static, len(expected))
    except Exception as error:  # torch.export has no common base for its errors.
        raise UnsupportedError(f"torch.export cannot trace {what}: {first_line(error)}") from error
    _clean(model)
    return Source(
        name=name,
        model=model,
        arch=options.arch,
        input_shape=shape if static else (1, *shape[1:]),
        probe=Probe({model.graph.inputs[0].name or "": probe.numpy()}, expected),
        notes=notes,
    )


def _to_onnx(module: nn.Module, shape: tuple[int, ...], static: bool, outputs: int) -> ir.Model:
    example = _noise(shape if static else (_TRACE_BATCH, *shape[1:]), module)
    batch = None if static else ({0: torch.export.Dim("batch")},)
    with _quiet(), held_back():  # torch drops a signal here, or calls the model unsupported.
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=batch,
            input_names=["input"],
            output_names=["output"] if outputs == 1 else None,
            # Optimising would fold batch norm, and with it change the energy of every rank.
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    return program.model


def _clean(model: ir.Model) -> None:
    """Fold the small constant expressions the exporter leaves, such as a bias computed from a weight's shape."""
    from onnxscript import optimizer

    strip_traces(model)
    with _quiet():
        optimizer.fold_constants(model)


def _noise(shape: tuple[int, ...], module: nn.Module) -> Tensor:
    floats = [parameter.dtype for parameter in module.parameters() if parameter.dtype.is_floating_point]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(floats[0] if floats else torch.float32)


def _run(module: nn.Module, probe: Tensor, what: str, shape: tuple[int, ...]) -> list[NDArray[Any]]:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = module(probe)
    except Exception as error:  # Any layer may object to the shape.
        text = ",".join(map(str, shape))
        raise OptionError(f"{what} does not take an input of shape {text}: {first_line(error)}") from error
    return [np.asarray(tensor.detach()) for tensor in _flatten(outputs)]


def _flatten(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        for value in outputs.values():
            yield from _flatten(value)
    elif isinstance(outputs, (tuple, list)):
        for value in outputs:
            yield from _flatten(value)


def _require_finite(module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            layer = name.rsplit(".", 1)[0]
            raise LoadError(f"{layer} has NaN or infinite weights ({name}). Export the model from a sound checkpoint.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which prints, logs, and warns about its own internals."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
