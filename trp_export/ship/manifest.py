"""The manifest of a bundle: a value, written as JSON and read back without trusting the file.

Fields: docs/reference/bundle.md.

The JSON is canonical: sorted keys, two spaces, one newline at the end. Its sha256 is the bundle's digest.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trp_export.errors import LoadError, OptionError
from trp_export.inputs.preprocessing import SCALE, Preprocessing, Resize, parse_resize
from trp_export.system.json_fields import Fields, parse_json

NAME = "manifest.json"
FORMAT = "trp-bundle"
VERSION = 1
PRECISIONS = ("fp32", "fp16", "int8")
TARGETS = ("arm", "x86")
CHANNELS = {"rgb": "RGB", "bgr": "BGR", "grey": "L"}
LAYOUTS = ("NCHW", "NHWC", "CHW", "HWC")
PROVENANCE = ("source", "options", "plan", "versions", "licence")
EVIDENCE = ("parity", "accuracy", "latency", "precision", "cost", "notes")

MOST_BYTES = 8 * 2**20
MOST_FILES = 256
MOST_TOTAL_BYTES = 8 * 2**30
MOST_TENSORS = 1024
MOST_AXES = 32
MOST_CLASSES = 100_000
LONGEST_PATH = 255
LONGEST_TEXT = 4096

_HEX = re.compile(r"[0-9a-f]{64}")
# Windows reserves these names for devices, with any suffix.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class File:
    """One file's sha256, in lower-case hex, and size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output; None in the shape is an extent left open. `type` is ONNX's name, such as float32."""

    name: str
    shape: tuple[int | None, ...]
    type: str


@dataclass(frozen=True, slots=True)
class ManifestPreprocessing:
    """How 8-bit pixels become the input, with every choice spelled out: resize, cut the centre, order the colours,
    times `scale`, minus mean, divided by std, to `layout`.

    `resize` is the length of the shorter side; "cover" scales until `crop` is just covered; any other text is that of
    --resize; None keeps the size. `crop` is (height, width) or None. Mean and std have one number per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | str | None
    crop: tuple[int, int] | None
    channels: str = "RGB"
    layout: str = "NCHW"
    scale: float = 1 / 255
    interpolation: str = "bilinear"

    @classmethod
    def of(cls, steps: Preprocessing, layout: str) -> ManifestPreprocessing:
        """From steps that are complete."""
        resize, crop = steps.resize, steps.crop
        covers = isinstance(resize, Resize) and resize.mode == "cover" and crop is None
        if isinstance(resize, Resize) and covers:
            crop = resize.height, resize.width
        return cls(
            mean=steps.mean or (),
            std=steps.std or (),
            resize="cover" if covers else str(resize) if isinstance(resize, Resize) else resize,
            crop=crop,
            channels=CHANNELS[steps.colour or "rgb"],
            layout=layout,
            scale=steps.scale or SCALE,
        )


@dataclass(frozen=True, slots=True)
class Ort:
    """The same model in ORT format, which is tied to one version of onnxruntime and one kind of processor."""

    model: str
    operators: str
    target: str
    onnxruntime: str
    max_abs: float
    relative_l2: float
    usability: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle holds and where it comes from. Paths are relative, with forward slashes.

    `provenance` and `evidence` hold plain JSON with the keys PROVENANCE and EVIDENCE, see docs/reference/bundle.md.
    """

    model: str
    files: Mapping[str, File]
    opset: Mapping[str, int]
    ir_version: int
    precision: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    provenance: Mapping[str, Any]
    evidence: Mapping[str, Any]
    preprocessing: ManifestPreprocessing | None = None
    classes: tuple[str, ...] | None = None
    ort: Ort | None = None

    def to_bytes(self) -> bytes:
        """The canonical JSON. Raises LoadError for whatever `parse_manifest` refuses."""
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        try:
            written = text.encode() + b"\n"
        except UnicodeEncodeError as error:
            raise LoadError(f"{NAME} cannot hold half a character: {text[error.start - 20 : error.end]!r}.") from None
        parse_manifest(written)
        return written


def digest(written: bytes) -> str:
    """The sha256 of a manifest's bytes, which identifies the whole bundle."""
    return hashlib.sha256(written).hexdigest()


def is_digest(text: str) -> bool:
    """True if a text is a sha256 in lower-case hex."""
    return _HEX.fullmatch(text) is not None


def parse_manifest(written: bytes) -> Manifest:
    """Raises LoadError, naming the field, for anything but a manifest within bounds."""
    if len(written) > MOST_BYTES:
        raise LoadError(f"{NAME} has {len(written):,} bytes; at most {MOST_BYTES:,} are read.")
    fields = Fields(parse_json(written, NAME, LONGEST_TEXT), NAME)
    if fields.text("format") != FORMAT:
        raise LoadError(f'{NAME} is not a bundle\'s: "format" is not "{FORMAT}".')
    if fields.whole("version") != VERSION:
        raise LoadError(f"{NAME}: this program reads version {VERSION} only.")
    files = {path: _file(one) for path, one in fields.named("files", MOST_FILES)}
    for path in files:
        require_inside(path)
    require_distinct(files)
    total = sum(file.bytes for file in files.values())
    if total > MOST_TOTAL_BYTES:
        raise LoadError(f"{NAME} lists {total:,} bytes of files; a bundle has at most {MOST_TOTAL_BYTES:,}.")
    opset = fields.inner("opset")
    manifest = Manifest(
        model=fields.text("model"),
        files=files,
        opset={domain: opset.whole(domain) for domain in opset.values},
        ir_version=fields.whole("ir_version"),
        precision=fields.one_of("precision", PRECISIONS),
        inputs=tuple(_tensor(one) for one in fields.listed("inputs", MOST_TENSORS)),
        outputs=tuple(_tensor(one) for one in fields.listed("outputs", MOST_TENSORS)),
        preprocessing=_preprocessing(fields.inner("preprocessing")) if fields.has("preprocessing") else None,
        classes=fields.texts("classes", MOST_CLASSES) if fields.has("classes") else None,
        ort=_ort(fields.inner("ort")) if fields.has("ort") else None,
        provenance=fields.holding("provenance", PROVENANCE),
        evidence=fields.holding("evidence", EVIDENCE),
    )
    fields.nothing_more()
    named = (manifest.model, *((manifest.ort.model, manifest.ort.operators) if manifest.ort else ()))
    for path in named:
        if path not in files:
            raise LoadError(f"{NAME} names {path!r} but does not list it under files.")
    return manifest


def require_inside(path: str) -> None:
    """Raises LoadError for a path that could lead outside the folder, or mean something else, on any system."""
    parts = path.split("/")
    odd = (
        not path
        or len(path) > LONGEST_PATH
        or not path.isprintable()
        or path == NAME
        or "\\" in path
        or ":" in path
        or any(part in ("", ".", "..") or part != part.strip() or part.endswith(".") for part in parts)
        or any(_DEVICES.fullmatch(part) for part in parts)
    )
    if odd:
        raise LoadError(f"{NAME} lists {path[:80]!r}, which is not a plain path inside the bundle.")


def require_distinct(paths: Iterable[str]) -> None:
    """Raises LoadError for two names that are one name on some system, and for a name of both a file and a folder.

    macOS ignores how accents are composed (NFC and NFD), macOS and Windows ignore upper and lower case.
    """
    spelling = {_folded(NAME): NAME}
    files = {_folded(NAME)}
    for path in paths:
        for name in (*folders_of(path), path):
            other = spelling.setdefault(_folded(name), name)
            if other != name:
                raise LoadError(f"{NAME} lists {other[:80]!r} and {name[:80]!r}, which are one name on some systems.")
        files.add(_folded(path))
    for path in files:
        for name in folders_of(path):
            if name in files:
                raise LoadError(f"{NAME} lists {spelling[name][:80]!r} both as a file and as a folder.")


def folders_of(path: str) -> tuple[str, ...]:
    """All folders that a path lies in: `a` and `a/b` for `a/b/c`."""
    return tuple(path[:index] for index, char in enumerate(path) if char == "/")


def _folded(path: str) -> str:
    """Equal for paths that some file system takes for one."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())


def _file(fields: Fields) -> File:
    file = File(fields.text("sha256"), fields.whole("bytes"))
    if not is_digest(file.sha256):
        raise LoadError(f"{fields.where}: 'sha256' must be 64 digits in lower-case hex.")
    fields.nothing_more()
    return file


def _tensor(fields: Fields) -> Tensor:
    shape = fields.values_of("shape", MOST_AXES)
    if not all(extent is None or (type(extent) is int and extent >= 0) for extent in shape):
        raise LoadError(f"{fields.where}: 'shape' must hold whole numbers and nulls.")
    tensor = Tensor(fields.text("name"), tuple(shape), fields.text("type"))
    fields.nothing_more()
    return tensor


def _preprocessing(fields: Fields) -> ManifestPreprocessing:
    crop = fields.values_of("crop", 2) if fields.has("crop") else None
    if crop is not None and not (len(crop) == 2 and all(type(side) is int and side > 0 for side in crop)):
        raise LoadError(f"{fields.where}: 'crop' must be a height and a width, or null.")
    steps = ManifestPreprocessing(
        mean=fields.numbers("mean", MOST_AXES),
        std=fields.numbers("std", MOST_AXES),
        resize=_resize(fields) if fields.has("resize") else None,
        crop=(crop[0], crop[1]) if crop else None,
        channels=fields.one_of("channels", tuple(CHANNELS.values())),
        layout=fields.one_of("layout", LAYOUTS),
        scale=fields.number("scale"),
        interpolation=fields.one_of("interpolation", ("bilinear",)),
    )
    if len(steps.mean) != len(steps.channels) or len(steps.std) != len(steps.channels) or min(steps.std) <= 0:
        raise LoadError(f"{fields.where}: mean and std need a number per channel, std above 0.")
    if steps.scale <= 0:
        raise LoadError(f"{fields.where}: 'scale' must be above 0.")
    if steps.resize == "cover" and crop is None:
        raise LoadError(f"{fields.where}: 'resize' cannot cover without 'crop'.")
    fields.nothing_more()
    return steps


def _resize(fields: Fields) -> int | str:
    value = fields.values["resize"]
    if not isinstance(value, str):
        return fields.whole("resize")
    if value != "cover":
        try:
            parse_resize(value)
        except (ValueError, OptionError):
            raise LoadError(f"{fields.where}: 'resize' must be a whole number, \"cover\" or a size.") from None
    return value


def _ort(fields: Fields) -> Ort:
    made = Ort(
        model=fields.text("model"),
        operators=fields.text("operators"),
        target=fields.one_of("target", TARGETS),
        onnxruntime=fields.text("onnxruntime"),
        max_abs=fields.number("max_abs"),
        relative_l2=fields.number("relative_l2"),
        usability=fields.text("usability"),
    )
    fields.nothing_more()
    return made
