"""Turn an exported model into a bundle: add the loaders, the model card and the manifest that lists every file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trp_export.graph.model_files import model_files
from trp_export.graph.precision_of import precision_of
from trp_export.inputs.images import ImageSet, load_images
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.inputs.spec import InputSpec
from trp_export.options import Options
from trp_export.report.document import Report
from trp_export.ship.card import make_card
from trp_export.ship.manifest import NAME, File, Manifest, ManifestPreprocessing, Tensor, digest
from trp_export.ship.verify import hash_file

LOADERS = ("load.py", "load.mjs", "Load.kt")
_LONGEST = 2000


def write_bundle(
    folder: Path,
    model: Path,
    report: Report,
    source: Sequence[Path],
    licence: str | None,
    inputs: Sequence[InputSpec],
) -> str:
    """Complete the bundle in `folder`, which holds the model and the page already. Returns its digest.

    `source` are the files that the model was read from, `inputs` describe what the model is fed. Raises LoadError if
    the manifest would be invalid, such as for class names that are not valid text.
    """
    for name in LOADERS:
        text = files("trp_export.ship").joinpath("loaders", name).read_text(encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    manifest = describe(model, report, source, licence, inputs)
    (folder / "README.md").write_text(make_card(manifest, report), encoding="utf-8", newline="\n")
    written = replace(manifest, files=list_files(folder)).to_bytes()
    (folder / NAME).write_bytes(written)
    return digest(written)


def source_files(model: Path) -> tuple[Path, ...]:
    """The files that a model was read from: itself, and external data beside it."""
    return model_files(model) if model.suffix.lower() == ".onnx" else (model,)


def list_files(folder: Path) -> dict[str, File]:
    """Every file in the folder except the manifest, by its path."""
    found = (path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in sorted(found)}


def describe(
    model: Path, report: Report, source: Sequence[Path], licence: str | None, described: Sequence[InputSpec]
) -> Manifest:
    """The manifest without its list of files."""
    proto = onnx.load(model, load_external_data=False)
    inputs, outputs = (tuple(map(_tensor, values)) for values in (proto.graph.input, proto.graph.output))
    spec = described[0] if len(described) == 1 and described[0].is_image else None
    images = _image_set(report.options, spec)
    document = report.to_json()
    return Manifest(
        model=model.name,
        files={},
        opset={one.domain: one.version for one in proto.opset_import},
        ir_version=proto.ir_version,
        precision=precision_of(proto),
        inputs=inputs,
        outputs=outputs,
        preprocessing=_preprocessing(report, spec, images),
        classes=_classes(report, outputs, images),
        ort=report.ort,
        provenance=_writable(
            {
                "source": {
                    "name": report.source.name,
                    "arch": report.source.arch,
                    "files": {path.name: asdict(hash_file(path)) for path in source},
                },
                "options": {key: value for key, value in document["options"].items() if key not in _PLACES},
                "plan": document["plan"],
                "versions": document["versions"],
                "licence": licence,
            },
        ),
        evidence=_writable(
            {
                "parity": _without(document["deviation"], "score"),
                "accuracy": (document["deviation"] or {}).get("score"),
                "latency": document["latency"],
                "precision": document["variants"] or None,
                "cost": {"before": document["before"], "after": document["after"]},
                "notes": document["notes"],
            },
            _LONGEST,
        ),
    )


# Output paths are left out, so that the same export into another folder gives the same bundle.
_PLACES = ("output", "report", "bundle", "dry_run")


def _without(values: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    return None if values is None else {key: value for key, value in values.items() if key != name}


def _writable(value: Any, longest: int | None = None) -> Any:
    """The same JSON value with valid texts of at most `longest` characters.

    File names may hold bytes that are not UTF-8, which Python represents by halves of characters.
    """
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()
        return text if longest is None or len(text) <= longest else text[:longest] + "..."
    if isinstance(value, dict):
        return {_writable(key): _writable(inner, longest) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(inner, longest) for inner in value]
    return value


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    if not value.type.HasField("tensor_type"):
        return Tensor(value.name, shape, "other")
    if kind.elem_type == onnx.TensorProto.STRING:
        return Tensor(value.name, shape, "string")
    return Tensor(value.name, shape, str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name))


def _image_set(options: Options, spec: InputSpec | None) -> ImageSet | None:
    """The images that the export used, if any."""
    used = options.images_for_report
    if used is None or spec is None:
        return None
    return load_images(Path(used.path), options.preprocessing, spec=spec)


def _preprocessing(report: Report, spec: InputSpec | None, images: ImageSet | None) -> ManifestPreprocessing | None:
    """How an image becomes the input. None if that is unknown, or if the input is not an image of 1 or 3 channels."""
    steps = report.options.preprocessing.or_else(report.source.mean, report.source.std)
    if spec is None or spec.channels not in (1, 3):
        return None
    if images is not None and (
        images.as_is or (isinstance(images.pixels, np.ndarray) and images.pixels.dtype != np.uint8)
    ):
        return None  # Such images are fed as they are; how they were prepared is unknown.
    if images is None and steps == Preprocessing():
        return None
    declared = replace(spec, shape=spec.declared)  # A size that is open stays open in the app.
    complete = steps.complete(spec.channels, declared.size, integer=spec.is_integer, takes_pixels=spec.takes_pixels)
    return ManifestPreprocessing.of(complete, spec.layout)


def _classes(report: Report, outputs: Sequence[Tensor], images: ImageSet | None) -> tuple[str, ...] | None:
    """Class names in the order of the outputs: from the checkpoint, or the image folders if there is one per class."""
    count = outputs[0].shape[1] if outputs and len(outputs[0].shape) > 1 else None
    names = report.source.classes or (images.classes if images is not None else ())
    return tuple(names) if names and len(names) == count else None
