"""Labels come from anywhere: whatever is in them, they are read or refused with a LoadError, never anything else."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trp_export.errors import LoadError
from trp_export.metrics.box_labels import read_boxes
from trp_export.metrics.label_files import by_image, read_rows, texts_of
from trp_export.metrics.pairs import read_pairs
from trp_export.metrics.sequences import read_alphabet

IMAGES = ["a.png", "b.png"]
READERS: list[Callable[[Path], object]] = [
    lambda path: read_boxes(path, IMAGES),
    lambda path: by_image(path, read_rows(path), IMAGES),
    lambda path: read_pairs(path, read_rows(path), IMAGES),
    lambda path: texts_of(path, IMAGES),
    read_alphabet,
]
NUMBERS = st.one_of(st.integers(-(10**25), 10**25), st.floats(), st.integers(0, 9))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=12,
)
FIELDS = st.sampled_from(["images", "annotations", "categories", "a.png", "id", "image_id", "category_id", "bbox"])
COCO = st.fixed_dictionaries(
    {
        "images": st.lists(st.dictionaries(st.sampled_from(["id", "file_name"]), VALUES), max_size=3) | VALUES,
        "annotations": st.lists(st.dictionaries(FIELDS, VALUES), max_size=3) | VALUES,
        "categories": st.lists(st.dictionaries(st.just("id"), VALUES), max_size=3) | VALUES,
    }
)
ROWS = st.lists(st.lists(st.sampled_from(["a.png", "b.png", "1", "0", "same", '"', "", "x\ty", "é"]), max_size=4))


def read_or_refuse(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "labels")
        path.write_bytes(content)
        for reader in READERS:
            refused = ""
            try:
                reader(path)
            except LoadError as error:
                refused = str(error)
            assert not refused or str(path) in refused


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    read_or_refuse(content)


@settings(max_examples=200)
@given(st.one_of(st.dictionaries(FIELDS, VALUES, max_size=4), COCO, VALUES))
def test_any_document_is_read_or_refused(document: object) -> None:
    read_or_refuse(json.dumps(document).encode())


@given(ROWS, st.sampled_from([",", "\t", " "]))
def test_any_table_is_read_or_refused(rows: list[list[str]], apart: str) -> None:
    read_or_refuse("\n".join(apart.join(row) for row in rows).encode())


def test_a_document_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "boxes.json").open("wb") as file:
        file.truncate(2**27 + 1)
    with pytest.raises(LoadError, match="larger than"):
        read_boxes(tmp_path / "boxes.json", IMAGES)


def test_a_table_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="not a plain file"):
        read_rows(tmp_path)
