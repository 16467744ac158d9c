"""Files for a runner, under names of our own: nothing that a user or a model calls itself travels to a device."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from trp_export.bench.models import BenchModel
from trp_export.bench.runners.python_runner import ELEMENTS
from trp_export.errors import OutputError
from trp_export.graph.model_files import read_proto, tensors

ELEMENT_OF = {name: element for element, name in ELEMENTS.items()}
MANIFEST = "inputs.txt"


def write_inputs(case: BenchModel, folder: Path) -> list[Path]:
    """The inputs of `case` as raw bytes, and the manifest that describes them. Raises OutputError on a full disk."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, files = [], []
    with _writing("inputs", folder):
        for index, feed in enumerate(case.feeds):
            file = folder / f"input{index}.bin"
            file.write_bytes(np.ascontiguousarray(feed).tobytes())  # `tofile` does not report a full disk.
            lines.append(" ".join([str(ELEMENT_OF[feed.dtype.name]), file.name, *map(str, feed.shape)]))
            files.append(file)
        (folder / MANIFEST).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [folder / MANIFEST, *files]


def portable_files(case: BenchModel, folder: Path) -> Iterator[tuple[Path, str]]:
    """The files of a model as (local file, name on the device), the model itself first.

    A model with external data is rewritten so that it refers to its data by our names; the data is never read here.
    """
    if len(case.files) == 1:
        yield case.path, "model.onnx"
        return
    import onnx

    model = read_proto(case.path)
    names = {file.relative_to(case.path.parent).as_posix(): f"model{i}.data" for i, file in enumerate(case.files[1:])}
    for tensor in tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names[Path(entry.value.replace("\\", "/")).as_posix()]
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    yield folder / "model.onnx", "model.onnx"
    yield from zip(case.files[1:], names.values(), strict=True)


def copy_local(case: BenchModel, folder: Path) -> Path:
    """Copy the files of a model under our names to a local folder. Returns the model's path; raises OutputError.

    No links: onnxruntime refuses data behind a symbolic one, and a hard one makes the user's bundle unsound meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _writing("the model", folder):
        for file, name in portable_files(case, folder):
            if file != folder / name:
                shutil.copyfile(file, folder / name)
    return folder / "model.onnx"


@contextmanager
def _writing(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {what} to {folder}: {error.strerror or error}. Set TMPDIR to a roomier place."
        ) from error
