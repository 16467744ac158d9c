"""Weights by name -> the module they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models_zoo import Architecture, find_architecture
from trp_export.errors import LoadError, OptionError, first_line
from trp_export.load.source import Source
from trp_export.load.torch_module import export_module
from trp_export.options import LoadOptions

_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net", "network")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def load_state(path: Path, arch: str, tensors: Mapping[str, Tensor], options: LoadOptions) -> Source:
    """Build the architecture, give it the weights, export it. Raises OptionError, LoadError, UnsupportedError."""
    architecture = get_architecture(arch)
    module = _fit(architecture, _best_prefix(build_module(architecture, None), tensors), path)
    shape = options.input_shape or architecture.input_shape
    return export_module(module, path.stem, replace(options, input_shape=shape, arch=arch), arch)


def find_state(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint, or the checkpoint itself."""
    for key in _STATE_KEYS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return _tensors(inner)
    if any(isinstance(value, Tensor) for value in content.values()):
        return _tensors(content)
    keys = ", ".join(list(map(str, content))[:5])
    raise LoadError(f"{path} holds no state dict: its keys are {keys or 'none'}, and none of them leads to tensors.")


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}


def strip(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict without the prefixes that wrappers leave on every key."""
    stripped = _tensors(state)
    while True:
        prefix = next((p for p in _PREFIXES if stripped and all(key.startswith(p) for key in stripped)), None)
        if prefix is None:
            return stripped
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}


def _best_prefix(module: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """With or without the prefixes of wrappers, whichever names more of the module's own keys: some are part of it."""
    own = module.state_dict().keys()
    return max((strip(tensors), tensors), key=lambda named: len(own & named.keys()))


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
    except Exception as error:  # The module is the user's own code, and its name may be none.
        raise OptionError(f"--arch {name} cannot be imported: {first_line(error)}") from error


def _fit(architecture: Architecture, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The module with these weights. A head with another number of classes is built to fit."""
    module = build_module(architecture, None)
    problems = _differences(module, tensors)
    if problems:
        classes = _class_count(module, tensors)
        if classes is not None:
            module = build_module(architecture, classes)
            problems = _differences(module, tensors)
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise LoadError(f"{path} does not fit {architecture.name}: {shown}.")
    # Laid over the module's own: auxiliary heads that the file lacks play no part in inference, and a few
    # architectures insist on the version notes that a plain dict has lost.
    state = module.state_dict()
    state.update(tensors)
    module.load_state_dict(state)
    return module.eval()


def build_module(architecture: Architecture, classes: int | None) -> nn.Module:
    """Raises OptionError where the builder fails or builds something else."""
    try:
        module = architecture.build(classes)
    except Exception as error:  # The factory is the user's own code.
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
    """The class count behind a misfit, where the shapes differ in nothing but their first dimension."""
    own = module.state_dict()
    misfits = [
        (own[key].shape, tensors[key].shape) for key in own if key in tensors and own[key].shape != tensors[key].shape
    ]
    counts = {there[0] for here, there in misfits if here[1:] == there[1:] and len(there)}
    return int(counts.pop()) if misfits and len(counts) == 1 else None
