"""Arrays in files: what is read, and that nothing is allocated or run on the word of a file."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trp_export.errors import LoadError
from trp_export.inputs.arrays import read_arrays, read_input_file, require_plain_file

TYPES = st.sampled_from([np.uint8, np.int64, np.float16, np.float32, np.float64, np.bool_])
ARRAYS = TYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)))
NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=4), compressed=st.booleans())
def test_read_arrays_returns_what_numpy_saved(
    arrays: dict[str, np.ndarray], compressed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    save = np.savez_compressed if compressed else np.savez
    with path.open("wb") as file:
        save(file, **{f"x{name}": array for name, array in arrays.items()})
    read = read_arrays(path)
    assert list(read) == [f"x{name}" for name in arrays]
    for name, array in arrays.items():
        assert read[f"x{name}"].dtype == array.dtype
        np.testing.assert_array_equal(read[f"x{name}"], array)


@given(damage=st.data())
def test_damaged_archives_end_in_a_load_error(damage: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=np.arange(60, dtype=np.float32).reshape(3, 20), labels=np.arange(3))
    content = bytearray(buffer.getvalue())
    for _ in range(damage.draw(st.integers(1, 5))):
        content[damage.draw(st.integers(0, len(content) - 1))] = damage.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a.npz"
    path.write_bytes(content[: damage.draw(st.integers(0, len(content)))])
    with suppress(LoadError):
        assert all(array.nbytes < 10_000 for array in read_arrays(path).values())


def header_only(shape: tuple[int, ...]) -> bytes:
    """An .npy whose header claims float64 values that are not there."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def test_header_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(header_only((10**6, 10**6)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", header_only((10**6, 10**6)))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(LoadError, match="its header claims 8,000,000,000,000 bytes"):
            read_arrays(tmp_path / name)


def test_archive_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", zeros=np.zeros(10_000_000), images=np.zeros(3))
    assert (tmp_path / "a.npz").stat().st_size < 200_000
    with pytest.raises(LoadError, match=r"would take 0\.1 GB of memory"):
        read_arrays(tmp_path / "a.npz", most_bytes=50_000_000)
    assert list(read_arrays(tmp_path / "a.npz", only=("images",), most_bytes=50_000_000)) == ["images"]


def test_python_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(LoadError, match="holds Python objects"):
        read_arrays(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("a.npy", pickle.dumps(3))
    with pytest.raises(LoadError, match=r"b\.npz is not an \.npy or \.npz file"):
        read_arrays(tmp_path / "b.npz")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "link to a device", "missing", "text"])
def test_other_than_plain_files_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npz"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
        case "folder":
            path.mkdir()
        case "link to a device":
            path.symlink_to("/dev/zero")
        case "text":
            path.write_text("plain text")
    with pytest.raises(LoadError, match=str(path)):
        read_arrays(path)


def test_link_to_a_plain_file_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    (tmp_path / "b.npy").symlink_to(tmp_path / "a.npy")
    assert read_arrays(tmp_path / "b.npy")[""].tolist() == [0, 1, 2]
    assert require_plain_file(tmp_path / "b.npy") == (tmp_path / "a.npy").stat().st_size


def test_input_file_without_values_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz")
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 3)))
    for name, message in (("none", "holds no array"), ("empty", "array 'x' is empty")):
        with pytest.raises(LoadError, match=message):
            read_input_file(tmp_path / f"{name}.npz")
