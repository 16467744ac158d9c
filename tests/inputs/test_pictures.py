"""Image files: which formats are opened, and what damaged or hostile ones do."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trp_export.errors import LoadError
from trp_export.inputs.images import load_images
from trp_export.inputs.pictures import picture_size, read_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "gif", "tiff", "ppm"])
def test_usual_formats_are_read(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}")
    assert read_picture(tmp_path / f"a.{suffix}").size == (8, 6)
    assert picture_size(tmp_path / f"a.{suffix}") == (6, 8)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_is_turned_once(tmp_path: Path, orientation: int, compression: str) -> None:
    """Pillow turns it itself, and no other format."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(PIXELS).save(tmp_path / "a.tiff", exif=exif, compression=compression)
    wanted, got = (read_picture(tmp_path / name) for name in ("a.png", "a.tiff"))
    np.testing.assert_array_equal(got, wanted)
    assert picture_size(tmp_path / "a.tiff") == (got.height, got.width)


def test_postscript_starts_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "bin" / "gs"
    interpreter.parent.mkdir()
    interpreter.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv("PATH", f"{interpreter.parent}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(PIXELS).save(folder / "a.png")
    (folder / "b.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\nshowpage\n%%EOF\n"
    )
    images = load_images(folder)
    assert len(images) == 1
    assert "b.png" in images.notes[0]
    with pytest.raises(LoadError, match=r"b\.png is not a PNG, JPEG"):
        read_picture(folder / "b.png")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("size", [(50_000, 50_000), (13_000, 13_000), (2**31 - 1, 1)])
def test_image_that_claims_too_many_pixels_is_refused_without_a_warning(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(png_of(*size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LoadError, match=r"a\.png has .*pixels; at most 100,000,000 are read"):
            load_images(tmp_path)


def test_damaged_exif_gives_no_warning(tmp_path: Path) -> None:
    for name, exif in (
        ("a.jpg", b"Exif\0\0" + b"\xff" * 40),
        ("b.jpg", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 30),
    ):
        Image.fromarray(PIXELS).save(tmp_path / name, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with suppress(LoadError):
            assert load_images(tmp_path).inputs.shape == (2, 3, 6, 8)


@given(damage=st.data())
def test_damaged_images_end_in_a_load_error(damage: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    suffix = damage.draw(st.sampled_from(["png", "jpg", "gif", "bmp", "tiff", "webp"]))
    Image.fromarray(PIXELS).save(folder / f"a.{suffix}")
    content = bytearray((folder / f"a.{suffix}").read_bytes())
    for _ in range(damage.draw(st.integers(1, 8))):
        content[damage.draw(st.integers(0, len(content) - 1))] = damage.draw(st.integers(0, 255))
    (folder / f"a.{suffix}").write_bytes(content[: damage.draw(st.integers(1, len(content)))])
    with suppress(LoadError):
        assert read_picture(folder / f"a.{suffix}").mode == "RGB"


def test_fifos_and_devices_in_a_folder_are_not_opened(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    assert len(load_images(tmp_path)) == 1
    with pytest.raises(LoadError, match=r"b\.png is a named pipe"):
        read_picture(tmp_path / "b.png")


def test_each_file_of_a_folder_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(40):
        Image.fromarray(PIXELS).save(tmp_path / f"{index:02}.png")
    opened: list[Path] = []
    original = Image.open

    def counting(path: Path, *arguments: object, **options: object) -> Image.Image:
        opened.append(path)
        return original(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", counting)
    load_images(tmp_path)
    assert len(opened) == 40


def test_images_of_different_sizes_are_cut_alike_where_the_network_takes_any(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    Image.fromarray(PIXELS[:5]).save(tmp_path / "b.png")
    images = load_images(tmp_path, input_shape=(None, 3, None, None))
    assert images.inputs.shape == (2, 3, 224, 224)
    assert "images differ in size" in " ".join(images.notes)
    (tmp_path / "b.png").unlink()
    assert load_images(tmp_path, input_shape=(None, 3, None, None)).inputs.shape == (1, 3, 6, 8)


def test_decoded_images_give_the_same_inputs(tmp_path: Path) -> None:
    from trp_export.inputs.preprocessing import Preprocessing, Resize

    for index in range(3):
        Image.fromarray(np.roll(PIXELS, index)).save(tmp_path / f"{index}.png")
    for colour in ("rgb", "bgr", "grey"):
        steps = Preprocessing(mean=(0.1, 0.2, 0.3), resize=Resize("letterbox", 9, 9, 114), colour=colour)
        images = load_images(tmp_path, steps)
        kept = images.decoded(10**6)
        assert isinstance(kept.pixels, np.ndarray)
        np.testing.assert_array_equal(kept.inputs, images.inputs)
        assert images.decoded(10) is images
