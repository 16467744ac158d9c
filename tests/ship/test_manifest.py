"""The manifest: there and back, and nothing else comes through."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.errors import LoadError
from trp_export.ship.manifest import LONGEST_TEXT, MOST_BYTES, MOST_FILES, File, digest, parse_manifest
from trp_export.ship.manifest import require_inside as inside

from .bundles import document, manifest

HEX = "0" * 64


def test_there_and_back() -> None:
    written = manifest().to_bytes()
    assert parse_manifest(written) == manifest()
    assert parse_manifest(written).to_bytes() == written
    assert len(digest(written)) == 64


def test_the_bytes_do_not_depend_on_the_order_of_fields() -> None:
    files = manifest().files
    again = parse_manifest(json.dumps(document(), sort_keys=False).encode())
    assert again.to_bytes() == manifest().to_bytes()
    assert list(files) != sorted(files)  # Else this test shows nothing.


def spoil(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(values: Any) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return apply


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    def apply(values: dict[str, Any]) -> None:
        del values[name]

    return apply


@pytest.mark.parametrize("name", [*document()])
def test_every_field_must_be_there(name: str) -> None:
    with pytest.raises(LoadError):
        parse_manifest(spoilt(drop(name)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("format", value="zip"), "is not a bundle's"),
        (spoil("version", value=2), "reads version 1"),
        (spoil("version", value=True), "'version' must be a whole number"),
        (spoil("version", value=1.0), "'version' must be a whole number"),
        (spoil("more", value=1), "'more' is unknown"),
        (spoil("model", value="other.onnx"), "does not list it"),
        (spoil("model", value=["model.onnx"]), "'model' must be a text"),
        (spoil("files", value=[]), "must be an object"),
        (spoil("files", "load.py", value={"sha256": HEX}), "'bytes' is missing"),
        (spoil("files", "load.py", value={"sha256": HEX, "bytes": -1}), "whole number of at least 0"),
        (spoil("files", "load.py", value={"sha256": HEX, "bytes": "1"}), "whole number of at least 0"),
        (spoil("files", "load.py", value={"sha256": HEX.upper()[:-1] + "G", "bytes": 1}), "64 digits"),
        (spoil("files", "load.py", value={"sha256": HEX, "bytes": 1, "mode": 7}), "'mode' is unknown"),
        (spoil("files", "LOAD.PY", value={"sha256": HEX, "bytes": 1}), "upper and lower case"),
        (spoil("files", value={f"{n}": {"sha256": HEX, "bytes": 1} for n in range(MOST_FILES + 1)}), "at most"),
        (spoil("precision", value="fp8"), "one of fp32, fp16, int8"),
        (spoil("inputs", value={}), "must be a list"),
        (spoil("inputs", 0, "shape", value=[-1]), "whole numbers and nulls"),
        (spoil("inputs", 0, "shape", value=[True]), "whole numbers and nulls"),
        (spoil("inputs", 0, "shape", value=[1] * 33), "must be a list of at most 32 values"),
        (spoil("preprocessing", "mean", value=[0.1]), "a number per channel"),
        (spoil("preprocessing", "mean", value=[None] * 3), "must be a number"),
        (spoil("preprocessing", "std", value=[0, 1, 1]), "std above 0"),
        (spoil("preprocessing", "crop", value=[8]), "a height and a width"),
        (spoil("preprocessing", "crop", value=None), "cannot cover without"),
        (spoil("preprocessing", "resize", value="fill"), "'resize' must be a whole number"),
        (spoil("classes", value=["cat", 2]), "texts only"),
        (spoil("classes", value=["x" * (LONGEST_TEXT + 1)] * 2), f"at most {LONGEST_TEXT:,}"),
        (spoil("ort", value={"model": "model.ort"}), "'operators' is missing"),
        (spoil("opset", "", value="20"), "whole number"),
        (spoil("provenance", value=None), "must be an object"),
        (spoil("evidence", value="good"), "must be an object"),
        (spoil("evidence", "junk", value=1), "evidence: the field 'junk' is unknown"),
        (spoil("provenance", "stray", value=None), "provenance: the field 'stray' is unknown"),
        (spoil("provenance", value={"source": None}), "provenance: the field 'options' is missing"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[dict[str, Any]], None], message: str) -> None:
    with pytest.raises(LoadError, match=message.replace("(", r"\(")):
        parse_manifest(spoilt(change))


def spoilt(change: Callable[[dict[str, Any]], None]) -> bytes:
    values = document()
    change(values)
    return json.dumps(values).encode()


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"format": "trp-bundle", "format": "trp-bundle"}',
        b'{"format": NaN}',
        b'{"format": 1e999}',
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"format": "\\ud800"}',
        b'{"a":' * 100_000,
        b"[" * 500 + b"]" * 500,
        b'{"a":' * 50 + b"1" + b"}" * 50,
        b" " * (MOST_BYTES + 1),
    ],
)
def test_what_is_no_manifest(written: bytes) -> None:
    with pytest.raises(LoadError):
        parse_manifest(written)


@pytest.mark.parametrize(
    "path",
    [
        *("..", "../model.onnx", "a/../../b", "/etc/passwd", "./model.onnx", "a//b", "a/", "", "."),
        *("C:\\model.onnx", "C:model.onnx", "c:/model.onnx", "a\\b", "\\\\host\\share", "model.onnx:stream"),
        *("a\0b", "a\nb", "nul", "COM1.txt", "a/prn", "model.onnx.", "model.onnx ", " a", "\u202eonnx.ledom"),
        *("manifest.json", "x" * 256),
    ],
)
def test_paths_that_leave_the_folder_or_mean_something_else(path: str) -> None:
    with pytest.raises(LoadError, match="not a plain path"):
        inside(path)
    with pytest.raises(LoadError):
        parse_manifest(spoilt(spoil("files", path, value={"sha256": HEX, "bytes": 1})))


def test_a_manifest_that_would_be_refused_is_never_written() -> None:
    made = replace(manifest(), files={"../model.onnx": File(HEX, 1)})
    with pytest.raises(LoadError, match="not a plain path"):
        made.to_bytes()


@given(st.integers(0, len(manifest().to_bytes()) - 2))
def test_a_truncated_manifest_is_refused(length: int) -> None:
    with pytest.raises(LoadError):
        parse_manifest(manifest().to_bytes()[:length])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.sampled_from(sorted(document())), JSON)
def test_any_value_in_any_field_is_read_or_refused(name: str, value: object) -> None:
    values = {**document(), name: value}
    try:
        made = parse_manifest(json.dumps(values).encode())
    except LoadError:
        return
    assert parse_manifest(made.to_bytes()) == made


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(written: bytes) -> None:
    with pytest.raises(LoadError):
        parse_manifest(written)
