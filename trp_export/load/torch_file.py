"""PyTorch files: state dicts, checkpoints that hold one, our own checkpoints. Nothing is unpickled unasked."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models_zoo import Architecture, find_architecture
from trp_export.errors import LoadError, OptionError, UnsupportedError
from trp_export.load.onnx_file import first_line
from trp_export.load.source import LoadOptions, Source
from trp_export.load.torch_module import export_module

CHECKPOINT_FORMAT = "trp-checkpoint"
CHECKPOINT_VERSION = 1
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net", "network")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def load_torch(path: Path, options: LoadOptions) -> Source:
    """Raises LoadError, OptionError or UnsupportedError with the remedy."""
    content = _read(path, options.trust_pickle)
    if isinstance(content, nn.Module):
        return export_module(content, path.stem, options, "the pickled module")
    if not isinstance(content, Mapping):
        raise LoadError(f"{path} holds a {type(content).__name__}, not a state dict or a checkpoint.")
    if content.get("format") == CHECKPOINT_FORMAT:
        return _load_checkpoint(path, content, options)
    if options.arch is None:
        raise OptionError(f"{path} holds weights only: name their architecture, e.g. --arch torchvision:resnet50.")
    return _load_state(path, options.arch, _find_state(content, path), options)


def _load_checkpoint(path: Path, content: Mapping[str, Any], options: LoadOptions) -> Source:
    """Our own format, which names its architecture and says how its images are normalised."""
    if content.get("version") != CHECKPOINT_VERSION:
        raise LoadError(
            f"{path}: checkpoint version {content.get('version')!r}; this program reads {CHECKPOINT_VERSION}."
        )
    arch, state = content.get("arch"), content.get("state_dict")
    if not isinstance(arch, str) or not isinstance(state, Mapping):
        raise LoadError(f"{path} lacks its architecture or its weights; it is damaged.")
    if options.arch is not None and options.arch != arch:
        raise OptionError(f"{path} is a checkpoint of {arch}, not of {options.arch}; leave --arch out.")
    if ":" in arch and not arch.startswith("torchvision:") and options.arch is None:
        raise OptionError(f"{path} asks to import {arch}; if you trust it, say so with --arch {arch}.")
    source = _load_state(path, arch, state, _default_shape(options, content))
    mean, std, plan = content.get("mean"), content.get("std"), content.get("plan")
    return replace(
        source,
        mean=tuple(map(float, mean)) if mean else None,
        std=tuple(map(float, std)) if std else None,
        classes=tuple(map(str, content.get("classes") or ())),
        plan=plan if isinstance(plan, Mapping) else None,
    )


def _default_shape(options: LoadOptions, content: Mapping[str, Any]) -> LoadOptions:
    stored = content.get("input_shape")
    if options.input_shape or not stored:
        return options
    return replace(options, input_shape=tuple(int(dim) for dim in stored))


def _load_state(path: Path, arch: str, state: Mapping[str, Any], options: LoadOptions) -> Source:
    architecture = _architecture(arch)
    tensors = {str(key): value for key, value in _strip(state).items() if isinstance(value, Tensor)}
    module = _fit(architecture, tensors, path)
    shape = options.input_shape or architecture.input_shape
    return export_module(module, path.stem, replace(options, input_shape=shape, arch=arch), arch)


def _architecture(name: str) -> Architecture:
    try:
        return find_architecture(name)
    except LookupError as error:
        raise OptionError(f"--arch: {error.args[0]}") from error
    except ImportError as error:
        raise OptionError(f"--arch {name}: {first_line(error)}; run from the folder that holds the module.") from error


def _fit(architecture: Architecture, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The module with these weights. A head with another number of classes is built to fit."""
    module = _build(architecture, None)
    problems = _differences(module, tensors)
    if problems:
        classes = _class_count(module, tensors)
        if classes is not None:
            module = _build(architecture, classes)
            problems = _differences(module, tensors)
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise LoadError(f"{path} does not fit {architecture.name}: {shown}.")
    # Auxiliary heads that the file lacks play no part in inference.
    module.load_state_dict(dict(tensors), strict=False)
    return module.eval()


def _build(architecture: Architecture, classes: int | None) -> nn.Module:
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


def _find_state(content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    for key in _STATE_KEYS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return inner
    if any(isinstance(value, Tensor) for value in content.values()):
        return content
    keys = ", ".join(list(map(str, content))[:5])
    raise LoadError(f"{path} holds no state dict: its keys are {keys or 'none'}, and none of them leads to tensors.")


def _strip(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without the prefixes that wrappers leave on every key."""
    stripped = {str(key): value for key, value in state.items()}
    while True:
        prefix = next((p for p in _PREFIXES if stripped and all(key.startswith(p) for key in stripped)), None)
        if prefix is None:
            return stripped
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}


def _read(path: Path, trust_pickle: bool) -> object:
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    names = _zip_names(path)
    if any(name.endswith("/constants.pkl") for name in names):
        raise UnsupportedError(
            f"{path} is TorchScript, which is deprecated. Save a state dict and name --arch, or export to ONNX."
        )
    if any(name.endswith((".pt2", "serialized_exported_program.json", "models/model.json")) for name in names):
        return _read_exported(path, trust_pickle)
    return _read_pickle(path, trust_pickle)


def _zip_names(path: Path) -> list[str]:
    """Names in the archive, none where the file is not one; archives that unpack to more than they are, refused."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise LoadError(f"{path} is a damaged archive: {first_line(error)}") from error
    if sum(entry.file_size for entry in entries) > 2 * path.stat().st_size + 2**20:
        raise LoadError(f"{path} unpacks to far more than its own size; PyTorch does not write such files.")
    return [entry.filename for entry in entries]


def _read_safetensors(path: Path) -> object:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, OSError and more, by version.
        raise LoadError(f"{path} is not a safetensors file, or a damaged one: {first_line(error)}") from error


def _read_pickle(path: Path, trust_pickle: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:  # torch.load raises whatever the pickle machinery does.
        message = str(error)
        if "Weights only load failed" in message and "Unsupported" in message:
            raise LoadError(
                f"{path} holds a pickled Python object, which can run code when it is opened.\n"
                "Save a state dict instead (torch.save(model.state_dict(), ...)) and name its architecture\n"
                "with --arch, or pass --trust-pickle if you trust this file."
            ) from error
        raise LoadError(f"{path} is not a PyTorch file, or a damaged one ({first_line(error, 120)}).") from error


def _read_exported(path: Path, trust_pickle: bool) -> object:
    if not trust_pickle:
        raise LoadError(
            f"{path} is a torch.export archive, which may hold pickled objects: pass --trust-pickle if you trust it."
        )
    try:
        return torch.export.load(path).module()
    except Exception as error:
        raise LoadError(f"{path} is not a torch.export archive this torch reads: {first_line(error)}") from error
