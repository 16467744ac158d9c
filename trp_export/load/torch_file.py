"""PyTorch files: of which kind one is, and what it holds. Nothing is unpickled unless the user trusts the file."""

from __future__ import annotations

import argparse
import re
import sys
import types
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trp_export.errors import LoadError, OptionError, first_line
from trp_export.load.checkpoint import FORMAT, load_checkpoint
from trp_export.load.source import Source
from trp_export.load.state_dict import load_state
from trp_export.load.torch_weights import find_modules, require_tensors
from trp_export.options import LoadOptions

# Training scripts store their options in these. They hold values, and opening one runs no code of its own.
_PLAIN: list[Any] = [argparse.Namespace, types.SimpleNamespace]


def load_torch(path: Path, options: LoadOptions) -> Source:
    """Raises LoadError, OptionError or UnsupportedError with the remedy."""
    from trp_export.load.torch_example import stored_example
    from trp_export.load.torch_module import export_module  # It needs onnx, which training does not.

    content = read_torch_file(path, trust_pickle=options.trust_pickle)
    if isinstance(content, torch.jit.ScriptModule):
        return export_module(content, path.stem, options, "the TorchScript module")
    if isinstance(content, torch.export.ExportedProgram):
        stored = stored_example(content)
        return export_module(content.module(), path.stem, options, "the exported module", stored=stored)
    if isinstance(content, nn.Module):
        return export_module(content, path.stem, options, "the pickled module")
    if not isinstance(content, Mapping):
        raise LoadError(f"{path} holds a {type(content).__name__}, not a state dict or a checkpoint.")
    if content.get("format") == FORMAT:
        return load_checkpoint(path, content, options)
    if options.arch is not None:
        return load_state(path, options.arch, content, options)
    modules = list(find_modules(content))
    if not modules:
        require_tensors(content, path)
        raise OptionError(f"{path} holds weights only: name their architecture, e.g. --arch torchvision:resnet50.")
    (name, module), *others = modules
    left_out = f"; {', '.join(other for other, _ in others)} left out" if others else ""
    note = f"{path.name}: the module in {name} is taken{left_out}"
    return export_module(module, path.stem, options, f"the pickled module in {name}", (note,))


def read_torch_file(path: Path, *, trust_pickle: bool = False) -> object:
    """What a .safetensors file, a torch.save archive or a torch.export archive holds.

    Nothing is unpickled without `trust_pickle`. Raises LoadError with the remedy.
    """
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    names = _zip_names(path)
    if any(name.endswith("/constants.pkl") for name in names):
        return _read_script(path, trust_pickle)
    if any(name.endswith((".pt2", "serialized_exported_program.json", "models/model.json")) for name in names):
        return _read_exported(path, trust_pickle)
    return _read_pickle(path, trust_pickle)


def _zip_names(path: Path) -> list[str]:
    """Names in the archive, none where the file is not one. Raises LoadError for archives that unpack to far more."""
    try:
        if not zipfile.is_zipfile(path):
            return []
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # BadZipFile, NotImplementedError and more, by what is damaged.
        raise LoadError(f"{path} is a damaged archive: {first_line(error)}") from error
    if sum(entry.file_size for entry in entries) > 2 * path.stat().st_size + 2**20:
        raise LoadError(f"{path} unpacks to far more than its own size; PyTorch does not write such files.")
    return [entry.filename for entry in entries]


def _read_safetensors(path: Path) -> object:
    """Tensors by name. Names that share one tensor are stored once, with the others in the metadata."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict.
            metadata = file.metadata() or {}
    except Exception as error:  # SafetensorError, OSError and more, by version.
        raise LoadError(f"{path} is not a safetensors file, or a damaged one: {first_line(error)}") from error
    shared = {name: tensors[kept] for name, kept in metadata.items() if kept in tensors and name not in tensors}
    return {**tensors, **shared}


def _read_pickle(path: Path, trust_pickle: bool) -> object:
    try:
        with warnings.catch_warnings(), _current_folder_importable(trust_pickle):
            warnings.simplefilter("ignore")  # What is odd about a file is said once, in the error.
            with torch.serialization.safe_globals(_PLAIN):
                return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:  # torch.load raises whatever the pickle machinery does.
        text = str(error).lower()
        if "weights only load failed" in text and "unsupported" in text and _may_be_pickle(path):
            raise LoadError(
                f"{path} holds a pickled Python object, which can run code when it is opened.\n"
                "Save a state dict instead (torch.save(model.state_dict(), ...)) and name its architecture\n"
                "with --arch, or pass --trust-pickle if you trust this file."
            ) from error
        if trust_pickle and isinstance(error, ModuleNotFoundError):
            raise LoadError(
                f"{path} needs the Python module {error.name}, which is not found. Run from the folder that holds it "
                "(the repository that trained the network), or install it."
            ) from error
        missing = re.match(r"Can't get attribute '(\w+)' on <module '([\w.]+)'", str(error))
        if trust_pickle and missing is not None:
            raise LoadError(
                f"{path} needs the class {missing[1]} of the Python module {missing[2]}, which is not found there. "
                "Save a state dict instead (torch.save(model.state_dict(), ...)) and name its architecture with --arch."
            ) from error
        raise LoadError(f"{path} is not a PyTorch file, or a damaged one.") from error


@contextmanager
def _current_folder_importable(wanted: bool) -> Iterator[None]:
    """Classes of a trusted pickle are often in the repository that the command is run from."""
    if not wanted:
        yield
        return
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def _may_be_pickle(path: Path) -> bool:
    """Whether the file begins as an archive or as a pickle of PyTorch; torch tries to unpickle other files as well."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _read_exported(path: Path, trust_pickle: bool) -> object:
    if not trust_pickle:
        raise LoadError(
            f"{path} is a torch.export archive, which may hold pickled objects: pass --trust-pickle if you trust it."
        )
    try:
        return torch.export.load(path)
    except Exception as error:
        raise LoadError(f"{path} is not a torch.export archive this torch reads: {first_line(error)}") from error


def _read_script(path: Path, trust_pickle: bool) -> object:
    if not trust_pickle:
        raise LoadError(f"{path} is TorchScript, which holds code that runs: pass --trust-pickle if you trust it.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated.
            return torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise LoadError(f"{path} is not TorchScript that this torch reads: {first_line(error)}") from error
