"""Open the model of this bundle, after checking that it is the expected one.

    session, manifest = load("path/to/bundle", digest="...")      # trp-export printed it; keep it in your source
    outputs = session.run(None, {manifest["inputs"][0]["name"]: prepare(image, manifest)[None]})

Needs numpy and onnxruntime 1.20, and Pillow to scale images. Try it: `python load.py DIR DIGEST [IMAGE]`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

MOST_MANIFEST_BYTES = 8 * 2**20
# No format that starts another program, as EPS does.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")


def load(folder: str | Path, digest: str) -> tuple[Any, dict[str, Any]]:
    """An onnxruntime session and the manifest. Raises ValueError if any byte of either was changed.

    onnxruntime gets the bytes that were checked, not paths: a file that changes afterwards does not matter.
    Warns where onnxruntime is not of the version that the bundle was measured with.
    """
    import onnxruntime

    manifest = read_manifest(Path(folder), digest)
    _warn_of_other_version(manifest, onnxruntime.__version__)
    model = _checked(Path(folder), manifest, manifest["model"])
    options = onnxruntime.SessionOptions()
    data = f"{manifest['model']}.data"
    if data in manifest["files"]:  # Weights above 2 GB are in a separate file.
        weights = _checked(Path(folder), manifest, data)
        options.add_external_initializers_from_files_in_memory([data], [weights], [len(weights)])
    return onnxruntime.InferenceSession(model, options), manifest


def read_manifest(folder: Path, digest: str) -> dict[str, Any]:
    """The manifest. Raises ValueError unless its sha256 is `digest`."""
    with (folder / "manifest.json").open("rb") as file:
        written = file.read(MOST_MANIFEST_BYTES + 1)
    if hashlib.sha256(written).hexdigest() != digest.strip().lower():
        raise ValueError(f"{folder}: manifest.json does not have this digest")
    manifest: dict[str, Any] = json.loads(written)
    if manifest.get("format") != "trp-bundle" or manifest.get("version") != 1:
        raise ValueError(f"{folder}: not a bundle of version 1")
    return manifest


def measured_with(manifest: dict[str, Any]) -> str | None:
    """The version of onnxruntime that the bundle's latency was measured with, or else all other figures."""
    latency = manifest["evidence"]["latency"]
    measured = latency["environment"] if latency else manifest["provenance"]["versions"]
    return str(measured["onnxruntime"]) if measured and "onnxruntime" in measured else None


def _warn_of_other_version(manifest: dict[str, Any], version: str) -> None:
    measured = measured_with(manifest)
    if measured is not None and measured.split(".")[:2] != version.split(".")[:2]:
        warnings.warn(
            f"this bundle was measured with onnxruntime {measured}; this is {version}, which may differ in speed "
            "and rounding",
            stacklevel=3,
        )


def prepare(image: Any, manifest: dict[str, Any]) -> Any:
    """One image as the model's input without batch axis, from a Pillow image or uint8 pixels (H, W, C).

    Pixels are taken in the model's size and in the order red, green, blue.
    """
    import numpy as np

    steps = manifest["preprocessing"]
    if steps is None:
        raise ValueError("this bundle does not say how images are prepared")
    if hasattr(image, "convert"):
        image = image.convert("L" if steps["channels"] == "L" else "RGB")
        image = _cut(_resized(image, steps["resize"], steps["crop"]), steps["crop"])
    pixels = np.asarray(image, dtype=np.uint8).reshape(*np.shape(image)[:2], -1)
    if steps["channels"] == "BGR":
        pixels = pixels[:, :, ::-1]
    scale = np.float32(steps["scale"])
    values = pixels.astype(np.float32)
    values = values / np.float32(255) if abs(255 * steps["scale"] - 1) < 1e-9 else values * scale
    normal = (values - np.array(steps["mean"], np.float32)) / np.array(steps["std"], np.float32)
    if steps["layout"].endswith("CHW"):
        normal = normal.transpose(2, 0, 1)
    kind = np.dtype(manifest["inputs"][0]["type"])
    return np.ascontiguousarray((np.rint(normal) if kind.kind in "iu" else normal).astype(kind))


def _resized(image: Any, resize: int | str | None, crop: list[int] | None) -> Any:
    """`resize` is the shorter side, "cover", or WxH, cover:WxH, letterbox:WxH[:PAD][:corner], multiple:N."""
    if resize is None:
        return image
    if resize == "cover":
        assert crop is not None
        return _scaled(image, max(crop[0] / image.height, crop[1] / image.width))
    if not isinstance(resize, str):
        return _scaled(image, resize / min(image.height, image.width))
    mode, *rest = resize.split(":") if ":" in resize else ("stretch", resize)
    if mode == "multiple":
        return _stretched(image, *(max(1, round(side / int(rest[0]))) * int(rest[0]) for side in image.size))
    width, height = map(int, rest[0].split("x"))
    if mode == "stretch":
        return _stretched(image, width, height)
    if mode == "cover":
        return _cut(_scaled(image, max(height / image.height, width / image.width)), [height, width])
    scale = min(height / image.height, width / image.width)
    inside = _stretched(
        image, min(width, max(1, round(image.width * scale))), min(height, max(1, round(image.height * scale)))
    )
    pad = int(rest[1]) if len(rest) > 1 and rest[1] != "corner" else 0
    box = image.copy().resize((width, height))
    box.paste((pad,) * len(image.getbands()), (0, 0, width, height))
    corner = rest[-1] == "corner"
    box.paste(inside, (0, 0) if corner else ((width - inside.width) // 2, (height - inside.height) // 2))
    return box


def _scaled(image: Any, scale: float) -> Any:
    return _stretched(image, max(1, round(image.width * scale)), max(1, round(image.height * scale)))


def _stretched(image: Any, width: int, height: int) -> Any:
    return image if (width, height) == image.size else image.resize((width, height), 2)  # bilinear


def _cut(image: Any, crop: list[int] | None) -> Any:
    if crop is None:
        return image
    top, left = (image.height - crop[0]) // 2, (image.width - crop[1]) // 2
    return image.crop((left, top, left + crop[1], top + crop[0]))


def _checked(folder: Path, manifest: dict[str, Any], name: str) -> bytes:
    """The bytes of a listed file. Raises ValueError unless they are the ones that the manifest describes."""
    if Path(name).name != name:
        raise ValueError(f"{name} leaves the bundle")
    listed, path = manifest["files"][name], folder / name
    with path.open("rb") as file:
        content = file.read(listed["bytes"] + 1)
    if len(content) != listed["bytes"] or hashlib.sha256(content).hexdigest() != listed["sha256"]:
        raise ValueError(f"{path} is not the file that the manifest describes")
    return content


if __name__ == "__main__":
    session, manifest = load(sys.argv[1], sys.argv[2])
    print(f"{manifest['model']}: inputs {', '.join(one['name'] for one in manifest['inputs'])}; the digest matches")
    if len(sys.argv) > 3:
        from PIL import Image, ImageOps

        inputs = prepare(ImageOps.exif_transpose(Image.open(sys.argv[3], formats=IMAGE_FORMATS)), manifest)
        inputs = inputs[None] if manifest["preprocessing"]["layout"].startswith("N") else inputs
        best = int(session.run(None, {manifest["inputs"][0]["name"]: inputs})[0].argmax())
        print(manifest["classes"][best] if manifest["classes"] else best)
