"""PyTorch files: what kind of file it is, and what is in it. Nothing is unpickled unasked."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from trp_export.errors import LoadError, OptionError, UnsupportedError, first_line
from trp_export.load.checkpoint import FORMAT, load_checkpoint
from trp_export.load.source import Source
from trp_export.load.state_dict import find_state, load_state
from trp_export.load.torch_module import export_module
from trp_export.options import LoadOptions


def load_torch(path: Path, options: LoadOptions) -> Source:
    """Raises LoadError, OptionError or UnsupportedError with the remedy."""
    content = _read(path, options.trust_pickle)
    if isinstance(content, nn.Module):
        return export_module(content, path.stem, options, "the pickled module")
    if not isinstance(content, Mapping):
        raise LoadError(f"{path} holds a {type(content).__name__}, not a state dict or a checkpoint.")
    if content.get("format") == FORMAT:
        return load_checkpoint(path, content, options)
    if options.arch is None:
        raise OptionError(f"{path} holds weights only: name their architecture, e.g. --arch torchvision:resnet50.")
    return load_state(path, options.arch, find_state(content, path), options)


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
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, OSError and more, by version.
        raise LoadError(f"{path} is not a safetensors file, or a damaged one: {first_line(error)}") from error


def _read_pickle(path: Path, trust_pickle: bool) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What is odd about a file is said once, in the error.
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:  # torch.load raises whatever the pickle machinery does.
        if "Weights only load failed" in str(error) and "Unsupported" in str(error) and _may_be_pickle(path):
            raise LoadError(
                f"{path} holds a pickled Python object, which can run code when it is opened.\n"
                "Save a state dict instead (torch.save(model.state_dict(), ...)) and name its architecture\n"
                "with --arch, or pass --trust-pickle if you trust this file."
            ) from error
        raise LoadError(f"{path} is not a PyTorch file, or a damaged one.") from error


def _may_be_pickle(path: Path) -> bool:
    """By how the file begins: an archive, or a pickle as PyTorch writes it. Others torch takes for one, too."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _read_exported(path: Path, trust_pickle: bool) -> object:
    if not trust_pickle:
        raise LoadError(
            f"{path} is a torch.export archive, which may hold pickled objects: pass --trust-pickle if you trust it."
        )
    try:
        return torch.export.load(path).module()
    except Exception as error:
        raise LoadError(f"{path} is not a torch.export archive this torch reads: {first_line(error)}") from error
