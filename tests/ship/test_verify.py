"""verify_bundle accepts a bundle as it was written and refuses everything else."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import CONTENTS, document, make_bundle, rewrite
from hypothesis import given
from hypothesis import strategies as st

from trp_export.errors import LoadError, OptionError, TrpError
from trp_export.ship.manifest import MOST_BYTES
from trp_export.ship.verify import verify_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_verify_reports_integrity_and_origin(tmp_path: Path) -> None:
    digest = make_bundle(tmp_path)
    without, with_digest = verify_bundle(tmp_path), verify_bundle(tmp_path, digest=digest.upper())
    assert (without.origin, with_digest.origin) == (False, True)
    assert without.digest == with_digest.digest == digest
    assert with_digest.bytes == sum(map(len, CONTENTS.values()))


def test_verify_refuses_another_intact_bundle_by_its_digest(bundle: Path, tmp_path: Path) -> None:
    expected = verify_bundle(bundle).digest
    make_bundle(tmp_path / "other", {**CONTENTS, "load.py": b"import os\n"})
    assert not verify_bundle(tmp_path / "other").origin
    with pytest.raises(LoadError, match="not the expected one"):
        verify_bundle(tmp_path / "other", expected)


@pytest.mark.parametrize("name", CONTENTS)
def test_verify_refuses_a_changed_size(bundle: Path, name: str) -> None:
    with (bundle / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(LoadError, match=r"bytes, not"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", CONTENTS)
def test_verify_refuses_a_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(LoadError, match="is missing"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", ["extra", ".hidden", "notes/b.txt", "deep/er/c.txt", "manifest.json.bak"])
def test_verify_refuses_an_extra_file(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(b"")
    with pytest.raises(LoadError, match="is not in the manifest"):
        verify_bundle(bundle)


def test_verify_refuses_an_extra_folder(bundle: Path) -> None:
    (bundle / "empty").mkdir()
    with pytest.raises(LoadError, match="'empty' is not in the manifest"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_verify_refuses_a_symbolic_link(bundle: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(bundle / name, tmp_path / "same")
    (bundle / name).unlink()
    (bundle / name).symlink_to(tmp_path / "same")
    with pytest.raises(LoadError, match=r"is a link|not a plain file"):
        verify_bundle(bundle)


def test_verify_refuses_a_linked_folder(bundle: Path, tmp_path: Path) -> None:
    (bundle / "notes").rename(tmp_path / "notes")
    (bundle / "notes").symlink_to(tmp_path / "notes")
    with pytest.raises(LoadError, match="is a link"):
        verify_bundle(bundle)
    (tmp_path / "alias").symlink_to(bundle)
    with pytest.raises(LoadError, match="is a link; name the folder"):
        verify_bundle(tmp_path / "alias")


def test_verify_does_not_read_a_pipe(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    os.mkfifo(bundle / "model.onnx")
    with pytest.raises(LoadError, match="not a plain file"):
        verify_bundle(bundle)


def test_verify_refuses_a_folder_in_place_of_a_file(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").mkdir()
    with pytest.raises(LoadError):
        verify_bundle(bundle)


def test_verify_refuses_a_path_outside_the_folder(bundle: Path, tmp_path: Path) -> None:
    (bundle / "load.py").rename(tmp_path / "load.py")
    values = document()
    values["files"]["../load.py"] = values["files"].pop("load.py")
    rewrite(bundle, values)
    with pytest.raises(LoadError, match="not a plain path"):
        verify_bundle(bundle)


def test_verify_compares_sizes_before_it_reads(bundle: Path) -> None:
    """The file has a terabyte and takes no space on disk: to read it would take an hour."""
    with (bundle / "model.onnx").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(LoadError, match="bytes, not"):
        verify_bundle(bundle)
    with (bundle / "manifest.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(LoadError, match="larger than"):
        verify_bundle(bundle)


def test_verify_bounds_the_bytes_that_a_manifest_lists(bundle: Path) -> None:
    """The size matches, so nothing but the bound keeps the check from reading four terabytes."""
    values = document()
    values["files"]["model.onnx"]["bytes"] = 2**42
    rewrite(bundle, values)
    with (bundle / "model.onnx").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(LoadError, match="a bundle has at most"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", [*CONTENTS, "manifest.json"])
def test_verify_refuses_a_hard_link(bundle: Path, tmp_path: Path, name: str) -> None:
    os.link(bundle / name, tmp_path / "other name")
    with pytest.raises(LoadError, match="is a hard link"):
        verify_bundle(bundle)


def test_verify_refuses_what_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="is not a folder"):
        verify_bundle(tmp_path / "nowhere")
    with pytest.raises(LoadError, match="has no manifest"):
        verify_bundle(tmp_path)
    with pytest.raises(OptionError, match="64 digits"):
        verify_bundle(tmp_path, "abc")


@pytest.fixture(scope="module")
def intact() -> Iterator[tuple[Path, str]]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bundle"
        yield folder, make_bundle(folder)


@given(st.data())
def test_verify_refuses_any_flipped_bit(intact: tuple[Path, str], data: st.DataObject) -> None:
    """In the manifest, only the digest shows every change; without it there is no other error than a refusal."""
    folder, digest = intact
    name = data.draw(st.sampled_from(["manifest.json", "model.onnx", "load.py"]))
    whole = (folder / name).read_bytes()
    place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(whole)
    changed[place] ^= 1 << bit
    (folder / name).write_bytes(changed)
    try:
        with pytest.raises(TrpError):
            verify_bundle(folder, digest)
        try:
            verify_bundle(folder)
            assert name == "manifest.json"
        except TrpError:
            pass
    finally:
        (folder / name).write_bytes(whole)


@given(st.dictionaries(st.text(st.characters(), min_size=1, max_size=12), st.just({"sha256": "0" * 64, "bytes": 0})))
def test_verify_refuses_any_added_names(intact: tuple[Path, str], names: dict[str, object]) -> None:
    folder, _ = intact
    whole = (folder / "manifest.json").read_bytes()
    values = document()
    values["files"].update(names)
    rewrite(folder, values)
    try:
        if set(names) - set(CONTENTS):
            with pytest.raises(LoadError):
                verify_bundle(folder)
    finally:
        (folder / "manifest.json").write_bytes(whole)
