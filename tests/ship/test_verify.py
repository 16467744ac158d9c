"""The checker: a bundle as it was made passes, and whatever else lies there is refused."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.errors import LoadError, OptionError, TrpError
from trp_export.ship.manifest import MOST_BYTES
from trp_export.ship.verify import verify

from .bundles import CONTENTS, document, make_bundle, rewrite


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_integrity_and_origin(tmp_path: Path) -> None:
    digest = make_bundle(tmp_path)
    without, with_digest = verify(tmp_path), verify(tmp_path, digest=digest.upper())
    assert (without.origin, with_digest.origin) == (False, True)
    assert without.digest == with_digest.digest == digest
    assert with_digest.bytes == sum(map(len, CONTENTS.values()))


def test_another_bundle_is_sound_but_not_the_one_that_was_meant(bundle: Path, tmp_path: Path) -> None:
    meant = verify(bundle).digest
    make_bundle(tmp_path / "other", {**CONTENTS, "load.py": b"import os\n"})
    assert not verify(tmp_path / "other").origin
    with pytest.raises(LoadError, match="not the one expected"):
        verify(tmp_path / "other", meant)


@pytest.mark.parametrize("name", CONTENTS)
def test_any_change_of_size_is_refused(bundle: Path, name: str) -> None:
    with (bundle / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(LoadError, match=r"bytes, not"):
        verify(bundle)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_missing_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(LoadError, match="is missing"):
        verify(bundle)


@pytest.mark.parametrize("name", ["extra", ".hidden", "notes/b.txt", "deep/er/c.txt", "manifest.json.bak"])
def test_an_extra_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(b"")
    with pytest.raises(LoadError, match="is not in the manifest"):
        verify(bundle)


def test_an_extra_folder_is_refused(bundle: Path) -> None:
    (bundle / "empty").mkdir()
    with pytest.raises(LoadError, match="'empty' is not in the manifest"):
        verify(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_link_is_refused_wherever_it_leads(bundle: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(bundle / name, tmp_path / "same")
    (bundle / name).unlink()
    (bundle / name).symlink_to(tmp_path / "same")
    with pytest.raises(LoadError, match=r"is a link|not a plain file"):
        verify(bundle)


def test_a_linked_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "notes").rename(tmp_path / "notes")
    (bundle / "notes").symlink_to(tmp_path / "notes")
    with pytest.raises(LoadError, match="is a link"):
        verify(bundle)
    (tmp_path / "alias").symlink_to(bundle)
    with pytest.raises(LoadError, match="is not a folder"):
        verify(tmp_path / "alias")


def test_a_pipe_in_a_files_place_is_not_read(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    os.mkfifo(bundle / "model.onnx")
    with pytest.raises(LoadError, match="not a plain file"):
        verify(bundle)


def test_a_folder_in_a_files_place(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").mkdir()
    with pytest.raises(LoadError):
        verify(bundle)


def test_a_path_that_leaves_the_folder_is_refused_even_where_it_fits(bundle: Path, tmp_path: Path) -> None:
    (bundle / "load.py").rename(tmp_path / "load.py")
    values = document()
    values["files"]["../load.py"] = values["files"].pop("load.py")
    rewrite(bundle, values)
    with pytest.raises(LoadError, match="not a plain path"):
        verify(bundle)


def test_sizes_are_compared_before_anything_is_read(bundle: Path) -> None:
    """A file of a terabyte that takes no room: reading it would take an hour."""
    with (bundle / "model.onnx").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(LoadError, match="bytes, not"):
        verify(bundle)
    with (bundle / "manifest.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(LoadError, match="at most"):
        verify(bundle)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="is not a folder"):
        verify(tmp_path / "nowhere")
    with pytest.raises(LoadError, match="holds no manifest"):
        verify(tmp_path)
    with pytest.raises(OptionError, match="64 digits"):
        verify(tmp_path, "abc")


@pytest.fixture(scope="module")
def sound() -> Iterator[tuple[Path, str]]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bundle"
        yield folder, make_bundle(folder)


@given(st.data())
def test_a_flipped_bit_anywhere_is_refused(sound: tuple[Path, str], data: st.DataObject) -> None:
    """In listed files always; in the manifest always with the digest, and without it never with another error."""
    folder, digest = sound
    name = data.draw(st.sampled_from(["manifest.json", "model.onnx", "load.py"]))
    whole = (folder / name).read_bytes()
    place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(whole)
    changed[place] ^= 1 << bit
    (folder / name).write_bytes(changed)
    try:
        with pytest.raises(TrpError):
            verify(folder, digest)
        try:
            verify(folder)
            assert name == "manifest.json"
        except TrpError:
            pass
    finally:
        (folder / name).write_bytes(whole)


@given(st.dictionaries(st.text(st.characters(), min_size=1, max_size=12), st.just({"sha256": "0" * 64, "bytes": 0})))
def test_any_names_in_the_manifest_end_in_a_plain_refusal(sound: tuple[Path, str], names: dict[str, object]) -> None:
    folder, _ = sound
    whole = (folder / "manifest.json").read_bytes()
    values = document()
    values["files"].update(names)
    rewrite(folder, values)
    try:
        if set(names) - set(CONTENTS):
            with pytest.raises(LoadError):
                verify(folder)
    finally:
        (folder / "manifest.json").write_bytes(whole)
