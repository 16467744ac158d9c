"""A small bundle made by hand: what the checker sees, without an export."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trp_export.ship.manifest import EVIDENCE, PROVENANCE, File, Manifest, ManifestPreprocessing, Tensor, digest

CONTENTS = {"model.onnx": b"not a model, and never opened", "notes/a.txt": b"", "load.py": b"print()\n"}


def make_bundle(folder: Path, contents: dict[str, bytes] = CONTENTS) -> str:
    """Write it; returns its digest."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    written = manifest(contents).to_bytes()
    (folder / "manifest.json").write_bytes(written)
    return digest(written)


def manifest(contents: dict[str, bytes] = CONTENTS) -> Manifest:
    return Manifest(
        model="model.onnx",
        files={name: File(hashlib.sha256(content).hexdigest(), len(content)) for name, content in contents.items()},
        opset={"": 20, "com.example": 1},
        ir_version=10,
        precision="fp32",
        inputs=(Tensor("image", (None, 3, 8, 8), "float32"),),
        outputs=(Tensor("class", (None, 2), "float32"),),
        preprocessing=ManifestPreprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "cover", (8, 8)),
        classes=("cat", "dog"),
        provenance=dict.fromkeys(PROVENANCE) | {"source": {"name": "net", "arch": None, "files": {}}},
        evidence=dict.fromkeys(EVIDENCE) | {"parity": {"relative_l2": 1e-7}},
    )


def document() -> dict[str, Any]:
    """The manifest as JSON values, to be spoilt."""
    values: dict[str, Any] = json.loads(manifest().to_bytes())
    return values


def rewrite(folder: Path, values: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(values))
