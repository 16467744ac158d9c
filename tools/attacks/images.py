"""Images whose headers promise what they do not hold, that unpack to much, or that are no images; and odd folders."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from attempt import Attempt, Call
from kit import EXPORT, Kit, in_turn
from PIL import Image

Make = Callable[[Path], object]
# Code for the interpreters that an image library may start.
POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\n(PWNED) (w) file closefile showpage\n%%EOF\n"
)
SCRIPT = b"#!/bin/sh\ntouch PWNED\n"


def attempts(kit: Kit) -> Iterator[Attempt]:
    """Each file beside sound images, as what calibration and what the comparison of accuracy reads; odd folders."""
    for name, content in _files().items():
        for option in ("--calib", "--eval"):
            yield Attempt("images", f"{option} with {name}", partial(_beside, kit, option, content))
    for name, make in _folders().items():
        yield Attempt("images", f"a folder {name}", partial(_folder, kit, make))


def _beside(kit: Kit, option: str, content: bytes, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "images")
    (folder / "images" / "a.png").write_bytes(content)
    return _export(option)


def _folder(kit: Kit, make: Make, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "images")
    make(folder / "images")
    return _export("--calib")


def _export(option: str) -> Call:
    arguments = ["base.onnx", *EXPORT, "-o", "o.onnx", option, "images"]
    return Call("trp-export", arguments, codes=(0, 2, 3), check=lambda ended: _not_run(ended.folder))


def _not_run(folder: Path) -> str | None:
    return "code was run" if list(folder.rglob("PWNED")) else None


def _files() -> dict[str, bytes]:
    sizes = ((0, 0), (1, 2**31 - 1), (65_535, 65_535), (2**31 - 1, 2**31 - 1), (12, 0), (10**6, 1), (20_000, 20_000))
    headers = {f"a PNG of {width} x {height}": _png(width, height) for width, height in sizes}
    zeros = zlib.compress(bytes(5 * 10**7))
    return headers | {
        "a PNG that unpacks to 50 MB of text": _png(12, 12, (b"zTXt", b"k\0\0" + zeros)),
        "a PNG of 500 texts": _png(12, 12, *[(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**6)))] * 500),
        "a PNG with a profile of 50 MB": _png(12, 12, (b"iCCP", b"k\0\0" + zeros)),
        "a PNG with an EXIF of lies": _png(12, 12, (b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)),
        "a PNG with a chunk of 2^31 bytes": _png(12, 12)[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT",
        "a PNG of 100,000 frames": _png(12, 12, (b"acTL", struct.pack(">II", 100_000, 0))),
        "a GIF of 65535 x 65535": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\x80\0\0" + bytes(6) + b",",
        "a GIF of 3,000 frames": _frames("GIF", 3_000),
        "a TIFF of 300 pages": _frames("TIFF", 300),
        "a TIFF whose pages are a loop": _tiff_loop(),
        "a TIFF of 2^32 rows": _tiff(2**32 - 1, 2**32 - 1),
        "a BMP of negative height": _bmp(12, -(2**31)),
        "a BMP of 30000 x 30000": _bmp(30_000, 30_000),
        "a JPEG of 65500 x 65500": _jpeg(65_500, 65_500),
        "a JPEG cut in half": _encoded("JPEG")[:400],
        "a WebP cut in half": _encoded("WEBP")[:60],
        "a WebP of 16383 x 16383": _webp(16_383, 16_383),
        "an icon": _encoded("ICO"),
        "PostScript": POSTSCRIPT,
        "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/Launch/F(touch PWNED)>>>>endobj\n%%EOF",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='12' height='12'><script>alert(1)</script></svg>",
        "a shell script": SCRIPT,
        "a font": b"\0\1\0\0" + bytes(100),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "GRIB": b"GRIB" + bytes(100),
        "FITS": b"SIMPLE  =                    T" + bytes(3000),
        "MPO": _jpeg(12, 12).replace(b"\xff\xd8", b"\xff\xd8\xff\xe2\0\x08MPF\0MM", 1),
        "a 16-bit grey PNG": _encoded("PNG", np.full((12, 12), 40_000, np.uint16)),
        "a palette and transparency": _palette(),
        "floats as TIFF, NaN": _encoded("TIFF", np.full((12, 12), np.nan, np.float32)),
        "a single pixel": _encoded("PNG", np.zeros((1, 1, 3), np.uint8)),
    }


def _folders() -> dict[str, Make]:
    return {
        "with a loop of links": lambda path: (path / "loop").symlink_to("."),
        "with a link to /": lambda path: (path / "root").symlink_to("/"),
        "with a link to /dev/zero": lambda path: (path / "z.png").symlink_to("/dev/zero"),
        "with a pipe": lambda path: os.mkfifo(path / "pipe.png"),
        "with a deep folder": lambda path: (path / "/".join(["d"] * 500)).mkdir(parents=True),
        "with names of control characters": lambda path: (path / "\x1b]0;PWNED\x07.png").write_bytes(b"x"),
        "with names that are not UTF-8": lambda path: (path / os.fsdecode(b"\xff\xfe.png")).write_bytes(_png(12, 12)),
        "with a folder called x.png": lambda path: (path / "x.png").mkdir(),
        "with 20,000 empty files": partial(_many_files, ".png"),
        "with 20,000 other files": partial(_many_files, ".txt"),
        "with an image of 3 TB of nothing": in_turn(
            lambda path: (path / "z.png").touch(),
            lambda path: os.truncate(path / "z.png", 3 * 10**12),
        ),
    }


def _many_files(ending: str, folder: Path) -> None:
    for index in range(20_000):
        (folder / f"{index}{ending}").touch()


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that claims this size; of more than a megapixel it holds no data."""
    rows = bytes(height * (1 + 3 * width)) if width * height < 10**6 else bytes(1000)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _encoded(format: str, array: np.ndarray | None = None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((12, 12, 3), np.uint8) if array is None else array).save(file, format)
    return file.getvalue()


def _palette() -> bytes:
    file = io.BytesIO()
    image = Image.new("P", (12, 12))
    image.save(file, "PNG", transparency=b"\x80" * 256)
    return file.getvalue()


def _frames(format: str, count: int) -> bytes:
    file = io.BytesIO()
    frames = [Image.new("L", (12, 12), index % 256) for index in range(count)]
    frames[0].save(file, format, save_all=True, append_images=frames[1:])
    return file.getvalue()


def _tiff(width: int, height: int, following: int = 0) -> bytes:
    entries = ((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8))
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + struct.pack("<I", following)


def _tiff_loop() -> bytes:
    return _tiff(12, 12, following=8) + bytes(200)


def _bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1000, 0, 0, 54) + header + bytes(1000)


def _jpeg(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    data = _encoded("JPEG")
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def _webp(width: int, height: int) -> bytes:
    size = (width - 1) | (height - 1) << 14
    body = b"WEBPVP8L" + struct.pack("<I", 25) + b"\x2f" + struct.pack("<I", size) + bytes(20)
    return b"RIFF" + struct.pack("<I", len(body)) + body
