"""A module in memory -> ONNX, with batch norm kept apart so that ranks are chosen on weights as trained."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trp_export.errors import LoadError, OptionError, UnsupportedError, first_line
from trp_export.graph.metadata import strip_traces
from trp_export.graph.quantised import quantised_already
from trp_export.inputs.options import InputOptions
from trp_export.load.source import Probe, Source
from trp_export.load.torch_example import Example, make_example
from trp_export.options import LoadOptions
from trp_export.system.scratch import Scratch
from trp_export.system.signals import held_back

# Traced at 2 and probed at 3: a batch size that an exporter froze shows up as a difference.
_TRACE_BATCH, _PROBE_BATCH = 2, 3
_QUANTISED = re.compile(r"torch(\.ao)?\.nn\.(intrinsic\.)?quantized\b")
# What Python raises where a tensor stands for a dict, a list or an object.
_NOT_ABOUT_SIZES = (TypeError, IndexError, KeyError, AttributeError)
_WRAP = (
    "\nIf forward takes a dict, a list, an object or *args, wrap the module in one whose forward takes tensors by name."
)


def load_module(module: nn.Module, options: LoadOptions) -> Source:
    """Export a module in memory, which stays as it is."""
    if not isinstance(module, nn.Module):
        raise OptionError(f"expected a path or a torch.nn.Module, not a {type(module).__name__}.")
    return export_module(module, type(module).__name__.lower(), options, type(module).__name__)


def export_module(
    module: nn.Module,
    name: str,
    options: LoadOptions,
    what: str,
    notes: tuple[str, ...] = (),
    stored: Mapping[str, Tensor] | None = None,
) -> Source:
    """Export to ONNX and record what the module itself answers to a probe.

    `stored` are inputs that came with the module. Raises OptionError or LoadError for inputs that do not fit,
    UnsupportedError.
    """
    _require_float(module)
    _require_finite(module)
    half = _half_precision(module)
    if half is not None:
        module = copy.deepcopy(module).float()
        notes += (f"the weights are {half}; they are exported in float32 (--precision fp16 stores half of that)",)
    example = make_example(module, options.inputs, what, stored)
    training = {inner: inner.training for inner in module.modules()}
    try:
        for inner in training:  # eval() is refused by what torch.export.load returns.
            inner.training = False
        return _export(module, example, name, options, what, notes)
    finally:
        for inner, was in training.items():
            inner.training = was


def _half_precision(module: nn.Module) -> str | None:
    """The name of the 16-bit type among the weights, if any: onnxruntime's CPU kernels compute in float32."""
    types = (tensor.dtype for tensor in (*module.parameters(), *module.buffers()))
    found = next((dtype for dtype in types if dtype in (torch.float16, torch.bfloat16)), None)
    return None if found is None else str(found).removeprefix("torch.")


def _export(
    module: nn.Module, example: Example, name: str, options: LoadOptions, what: str, notes: tuple[str, ...]
) -> Source:
    """With any batch size where the module and torch.export can leave it open, unless the user wants it fixed."""
    if not options.static:
        try:
            return _trace(module, example, name, replace(options, static=False), what, notes)
        except (OptionError, UnsupportedError) as error:
            size = example.batch_size
            notes += (f"the batch size is fixed at {size}, as --static fixes it: {first_line(error, 160)}",)
    return _trace(module, example, name, replace(options, static=True), what, notes)


def _trace(
    module: nn.Module, example: Example, name: str, options: LoadOptions, what: str, notes: tuple[str, ...]
) -> Source:
    """Raises OptionError where the module does not take the inputs, UnsupportedError where it cannot be traced."""
    probe = example if options.static else example.with_batch(_PROBE_BATCH)
    expected = _run(module, probe, what)
    traced = example if options.static else example.with_batch(_TRACE_BATCH)
    script = isinstance(module, torch.jit.ScriptModule)
    try:
        with _quiet(), held_back():  # torch drops a signal here, or calls the model unsupported.
            model = (_export_script if script else _export_module)(module, traced, options.static, len(expected))
    except Exception as error:  # torch.export has no common base for its errors.
        raise UnsupportedError(f"torch.export cannot trace {what}: {first_line(error.__cause__ or error)}") from error
    _clean(model)
    kept = {value.name for value in model.graph.inputs}
    shown = example if options.static else example.with_batch(1)
    shapes = tuple(
        (key, tuple(tensor.shape)) for key, tensor in zip(example.names, shown.tensors.values(), strict=True)
    )
    inputs = {key: tensor.numpy() for key, tensor in zip(example.names, probe.tensors.values(), strict=True)}
    return Source(
        name=name,
        model=model,
        arch=options.arch,
        inputs=InputOptions(tuple(shape for shape in shapes if shape[0] in kept)),
        aliases=dict(zip(example.tensors, example.names, strict=True)),
        probe=Probe({key: array for key, array in inputs.items() if key in kept}, expected),
        notes=notes,
    )


def _export_module(module: nn.Module, example: Example, static: bool, outputs: int) -> ir.Model:
    """Through torch.export, which leaves batch norm apart."""
    batch = None if static else torch.export.Dim("batch")
    open_sizes = {
        name: {0: batch} if batched else None for name, batched in zip(example.tensors, example.batched, strict=True)
    }
    by_name = bool(example.by_name) or len(open_sizes) > 1
    program = torch.onnx.export(
        module,
        example.by_position,
        kwargs=example.by_name,
        dynamo=True,
        dynamic_shapes=None if static else open_sizes if by_name else tuple(open_sizes.values()),
        input_names=list(example.names),
        output_names=["output"] if outputs == 1 else None,
        # Optimising would fold batch norm, and with it change the energy of every rank.
        optimize=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    return program.model


def _export_script(module: nn.Module, example: Example, static: bool, outputs: int) -> ir.Model:
    """TorchScript, which torch.export does not take, through the older exporter."""
    names = ["output"] if outputs == 1 else [f"output_{index}" for index in range(outputs)]
    batched = [name for name, batched in zip(example.names, example.batched, strict=True) if batched]
    with Scratch() as scratch:
        file = scratch.folder / "script.onnx"
        torch.onnx.export(
            module,
            tuple(example.tensors.values()),
            file,
            dynamo=False,
            input_names=list(example.names),
            output_names=names,
            dynamic_axes=None if static else {name: {0: "batch"} for name in (*batched, *names)},
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # Batch norm stays apart.
        )
        return ir.from_proto(onnx.load(file))


def _clean(model: ir.Model) -> None:
    """Fold the small constant expressions the exporter leaves, and drop the zeros it gives convs without a bias."""
    from onnxscript import optimizer

    strip_traces(model)
    stored = set(model.graph.initializers)
    with _quiet():
        optimizer.fold_constants(model)
    for node in model.graph:
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
        if bias is None or bias.name in stored or bias.const_value is None or bias.const_value.numpy().any():
            continue
        node.replace_input_with(2, None)
        if not bias.uses():
            del model.graph.initializers[str(bias.name)]


def _run(module: nn.Module, example: Example, what: str) -> list[NDArray[Any]]:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = module(*example.by_position, **example.by_name)
    except Exception as error:  # Any layer may object to the shape.
        inputs = "an input" if len(example.tensors) == 1 else "inputs"
        remedy = _WRAP if isinstance(error, _NOT_ABOUT_SIZES) else ""
        raise OptionError(
            f"{what} does not take {inputs} of shape {example.shapes}: {first_line(error)}{remedy}"
        ) from error
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


def _require_float(module: nn.Module) -> None:
    """Raises UnsupportedError for modules that torch quantised."""
    found = [type(inner) for inner in _modules(module) if _QUANTISED.match(type(inner).__module__)]
    if found:
        raise quantised_already(f"{len(found)} {found[0].__name__} of {found[0].__module__}")


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    """All modules, also where a pickle left out what torch's own walk reads."""
    yield module
    for inner in getattr(module, "_modules", {}).values():
        if inner is not None:
            yield from _modules(inner)


def _require_finite(module: nn.Module) -> None:
    """Raises LoadError. A buffer may be a mask, in which infinity is sound; `prepare` looks at what layers read."""
    for name, tensor in module.named_parameters():
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
