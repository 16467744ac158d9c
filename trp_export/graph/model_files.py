"""Write models to files, with their weights inside or beside them."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from trp_export.errors import OutputError

# A protobuf file holds at most 2 GiB; above this, weights go to a file of their own.
_INLINE_BYTES = 1_900_000_000


def save_model(model: ir.Model, path: Path, apart: bool = False) -> None:
    """Write a model. Weights go to `<name>.data` beside it where the file cannot hold them, or with `apart`.

    With `apart` they are written one by one and read back only when used, so that memory never holds a second copy.
    Raises OutputError.
    """
    tensors = (value.const_value for value in model.graph.initializers.values())
    apart = apart or sum(tensor.nbytes for tensor in tensors if tensor is not None) > _INLINE_BYTES
    try:
        if not apart:
            ir.external_data.load_to_model(model)
        ir.save(model, path, external_data=f"{path.name}.data" if apart else None)
    except OSError as error:
        raise OutputError(f"{path.name} cannot be written: {error.strerror or error}.") from error


def size_bytes(path: Path) -> int:
    """Size of a model that `save_model` wrote, with the weights beside it."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)
