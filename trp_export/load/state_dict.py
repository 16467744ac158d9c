"""Weights by name become the module that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models_zoo import Architecture, find_architecture
from models_zoo.registry import imports_code, with_iterations
from trp_export.errors import LoadError, OptionError, first_line
from trp_export.load.source import Source
from trp_export.load.torch_weights import choose_weights
from trp_export.options import LoadOptions


def load_state(path: Path, arch: str, content: Mapping[str, Any], options: LoadOptions) -> Source:
    """Build the architecture, give it the weights in `content`, export it.

    Raises OptionError, LoadError, UnsupportedError.
    """
    from trp_export.load.torch_module import export_module  # It needs onnx, which training does not.

    architecture = get_architecture(arch if options.iterations is None else _at_iterations(arch, options.iterations))
    module, notes = fit_module(architecture, content, path)
    inputs = options.inputs.or_shape(architecture.input_shape)
    return export_module(module, path.stem, replace(options, inputs=inputs, arch=architecture.name), arch, notes)


def _at_iterations(arch: str, iterations: int) -> str:
    """Raises OptionError for a network that does not run in iterations, and for a number out of range."""
    try:
        return with_iterations(arch, iterations)
    except LookupError as error:
        raise OptionError(f"--iterations {iterations}: {error.args[0]}.") from error


def get_architecture(name: str) -> Architecture:
    """Raises OptionError with near names where nothing of that name is known."""
    try:
        return find_architecture(name)
    except OptionError:
        raise
    except LookupError as error:
        raise OptionError(f"--arch: {error.args[0]}") from error
    except ImportError as error:
        raise OptionError(f"--arch {name}: {first_line(error)}; run from the folder that holds the module.") from error
    except (Exception, SystemExit) as error:  # The module is the user's own code, and its name may be anything.
        raise OptionError(f"--arch {name} cannot be imported: {first_line(error)}") from error


def fit_module(architecture: Architecture, content: Mapping[str, Any], path: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """The module with its weights, and what the user should know of their choice.

    A head with another number of classes is built to fit. Shapes are compared before memory is allocated. Raises
    LoadError where the weights do not fit, OptionError where the architecture cannot be built.
    """
    module = outline(architecture, None)
    weights = choose_weights(content, module, path)
    require_plain_tensors(weights.tensors, path)
    problems = _differences(module, weights.tensors)
    classes = _class_count(module, weights.tensors) if problems else None
    if classes is not None:
        problems = _differences(outline(architecture, classes), weights.tensors)
    if problems:
        for key in weights.tensors:
            if key.endswith(".zero_point"):
                raise LoadError(f"{path}: {key.removesuffix('.zero_point')} is quantised; save plain float weights.")
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise LoadError(f"{path} does not fit {architecture.name}: {shown}.")
    return _fill_module(build_module(architecture, classes), weights.tensors), weights.notes


def _fill_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Load weights into a module of the same shapes, and put it in evaluation mode.

    They are laid over the module's own: auxiliary heads that the file lacks play no part in inference, and a few
    architectures insist on the version notes that a plain dict has lost.
    """
    state = module.state_dict()
    state.update(tensors)
    module.load_state_dict(state)
    return module.eval()


def outline(architecture: Architecture, classes: int | None) -> nn.Module:
    """The module, without memory for its weights unless users' own code builds it: a wrong name costs no memory."""
    if imports_code(architecture.name):
        return build_module(architecture, classes)
    with torch.device("meta"):
        return build_module(architecture, classes)


def require_plain_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise LoadError for tensors that hold no plain numbers: sparse, quantised, complex or without data."""
    for name, tensor in tensors.items():
        kind = None
        if tensor.is_meta:
            kind = "without data"
        elif tensor.is_quantized:
            kind = "quantised"
        elif tensor.layout != torch.strided:
            kind = "sparse"
        elif tensor.is_complex():
            kind = "complex"
        if kind is not None:
            raise LoadError(f"{path}: {name} is {kind}; save plain float weights.")


def build_module(architecture: Architecture, classes: int | None) -> nn.Module:
    """Raises OptionError where the builder fails or builds something else."""
    try:
        module = architecture.build(classes)
    except (Exception, SystemExit) as error:  # The factory is the user's own code.
        raise OptionError(f"--arch {architecture.name} cannot be built: {first_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise OptionError(f"--arch {architecture.name} builds a {type(module).__name__}, not a torch.nn.Module.")
    return module


def _differences(module: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    own = module.state_dict()
    missing = [
        f"{key} is missing"
        for key in own
        if key not in tensors and not key.endswith("num_batches_tracked") and not key.lower().startswith("aux")
    ]
    foreign = [f"{key} is unknown to it" for key in tensors if key not in own]
    shapes = [
        f"{key} is {list(tensors[key].shape)}, not {list(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    return missing + foreign + shapes


def _class_count(module: nn.Module, tensors: Mapping[str, Tensor]) -> int | None:
    """The number of classes that explains a misfit: shapes differ in nothing but their first dimension."""
    own = module.state_dict()
    misfits = [
        (own[key].shape, tensors[key].shape) for key in own if key in tensors and own[key].shape != tensors[key].shape
    ]
    counts = {there[0] for here, there in misfits if here[1:] == there[1:] and len(there)}
    return int(counts.pop()) if misfits and len(counts) == 1 else None
