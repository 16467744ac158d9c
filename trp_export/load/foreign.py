"""Files that are often given in place of a model, named for what they are by their first bytes."""

from __future__ import annotations

import re
from pathlib import Path

from trp_export.errors import LoadError
from trp_export.inputs.arrays import require_plain_file
from trp_export.system.files import LFS_POINTER

_HEAD_BYTES = 4096
_FROM_SOURCE = "Export the network that it was made from to ONNX, and give that file."
_TENSORFLOW = "Convert it with tf2onnx (python -m tf2onnx.convert) and give the .onnx file."

# Where the bytes begin, the bytes, what the file is, and what to do.
_MAGIC = (
    (0, LFS_POINTER, "a Git LFS pointer", "Run `git lfs pull` to fetch the file itself."),
    (4, b"ORTM", "a model in ORT format", "Give the .onnx file that it was made from."),
    (4, b"TFL3", "a TensorFlow Lite model", "Convert it with tf2onnx (--tflite) and give the .onnx file."),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them", _TENSORFLOW),
    (0, b"GGUF", "a GGUF file of a language model", "trp-export works on convolutional networks."),
    (0, b"ftrt", "a TensorRT engine", _FROM_SOURCE),
    (0, b"ptrt", "a TensorRT engine", _FROM_SOURCE),
    (0, b"7767517", "an ncnn model", _FROM_SOURCE),
    (4, b"MNN", "an MNN model", _FROM_SOURCE),
    (0, b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (0, b"7z\xbc\xaf", "a 7z archive", "Unpack it first."),
    (0, b"\xfd7zXZ\0", "an xz archive", "Unpack it first."),
    (0, b"BZh", "a bzip2 archive", "Unpack it first."),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", "Unpack it first."),
    (257, b"ustar", "a tar archive", "Unpack it first."),
    (0, b"\x93NUMPY", "an array of numpy", "Give the model; arrays go to --calib or --input."),
    (0, b"\x89PNG", "an image", "Give the model; images go to --calib or --eval."),
    (0, b"\xff\xd8\xff", "an image", "Give the model; images go to --calib or --eval."),
    (0, b"%PDF", "a PDF", "Give the model's file."),
    (0, b"\x7fELF", "a program or a library", "Give the model's file."),
)
_SUFFIXES = {
    ".pb": ("a TensorFlow graph", _TENSORFLOW),
    ".pbtxt": ("a TensorFlow graph", _TENSORFLOW),
    ".keras": ("a Keras model", _TENSORFLOW),
    ".mlmodel": ("a Core ML model", _FROM_SOURCE),
    ".caffemodel": ("a Caffe model", _FROM_SOURCE),
    ".prototxt": ("a Caffe model", _FROM_SOURCE),
    ".pdmodel": ("a PaddlePaddle model", "Convert it with paddle2onnx and give the .onnx file."),
    ".pdiparams": ("weights of a PaddlePaddle model", "Convert the model with paddle2onnx and give the .onnx file."),
}
_ARCHIVE = b"PK\x03\x04"
# The field of the version of the format, and the field that exporters write next: producer, opset or graph.
_ONNX = re.compile(rb"\x08[\x03-\x20][\x12\x1a\x22\x3a\x42]", re.DOTALL)
_MARKUP = re.compile(rb"\s*(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|net)", re.IGNORECASE)


def require_model_file(path: Path) -> None:
    """Raise LoadError for what cannot be a model of ours: folders, devices, empty files and other formats."""
    if path.is_dir():
        raise LoadError(_folder(path))
    if not require_plain_file(path):
        raise LoadError(f"{path} is empty.")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}.") from error
    found = _name(head, path)
    if found is not None:
        raise LoadError("{} is {}, not a model that can be read. {}".format(path, *found))


def _name(head: bytes, path: Path) -> tuple[str, str] | None:
    """What the file is and what to do, None where it may be ONNX, a PyTorch file or safetensors."""
    for start, magic, what, remedy in _MAGIC:
        if head[start : start + len(magic)] == magic:
            return what, remedy
    markup = _MARKUP.match(head)
    if markup is not None:
        if markup[2].lower() in (b"?xml", b"net"):
            return "an XML file, as OpenVINO writes them", _FROM_SOURCE
        return "a web page", "The download failed or needs a login; fetch the file again."
    return _SUFFIXES.get(path.suffix.lower()) or _misnamed(head, path)


def _misnamed(head: bytes, path: Path) -> tuple[str, str] | None:
    """A PyTorch file or a zip archive named .onnx, or an ONNX file under another name: names decide how one is read."""
    if path.suffix.lower() != ".onnx":
        return ("an ONNX file under another name", f"Rename it to {path.stem}.onnx.") if _ONNX.match(head) else None
    if not head.startswith(_ARCHIVE):
        return None
    if b"/data.pkl" in head or b"/byteorder" in head:
        return "a PyTorch file", f"Rename it to {path.stem}.pt, and name its architecture with --arch."
    return "a zip archive", "Unpack it first."


def _folder(path: Path) -> str:
    if (path / "saved_model.pb").is_file():
        return f"{path} is a TensorFlow SavedModel, not a model that can be read. {_TENSORFLOW}"
    if path.suffix.lower() == ".mlpackage":
        return f"{path} is a Core ML model, not a model that can be read. {_FROM_SOURCE}"
    return f"{path} is a folder; name the model file in it."
