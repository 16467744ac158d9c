"""The manifest is read back as it was written, and anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from bundles import document, manifest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.errors import LoadError
from trp_export.ship.manifest import (
    LONGEST_TEXT,
    MOST_BYTES,
    MOST_FILES,
    File,
    digest,
    parse_manifest,
    require_distinct,
    require_inside,
)

HEX = "0" * 64


def test_parse_manifest_reads_what_to_bytes_wrote() -> None:
    written = manifest().to_bytes()
    assert parse_manifest(written) == manifest()
    assert parse_manifest(written).to_bytes() == written
    assert len(digest(written)) == 64


def test_to_bytes_does_not_depend_on_the_order_of_fields() -> None:
    files = manifest().files
    again = parse_manifest(json.dumps(document(), sort_keys=False).encode())
    assert again.to_bytes() == manifest().to_bytes()
    assert list(files) != sorted(files), "the test needs files in another order"


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
def test_parse_manifest_requires_every_field(name: str) -> None:
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
        (spoil("files", "LOAD.PY", value={"sha256": HEX, "bytes": 1}), "one name on some systems"),
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
        (spoil("preprocessing", "resize", value="letterbox:0x5"), "'resize' must be a whole number"),
        (spoil("preprocessing", "resize", value=1.5), "'resize' must be a whole number"),
        (spoil("preprocessing", "scale", value=0), "'scale' must be above 0"),
        (spoil("preprocessing", "channels", value="RGBA"), "one of RGB, BGR, L"),
        (spoil("preprocessing", "layout", value="NCHW8"), "one of NCHW, NHWC, CHW, HWC"),
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
def test_parse_manifest_names_what_is_wrong(change: Callable[[dict[str, Any]], None], message: str) -> None:
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
def test_parse_manifest_refuses_other_bytes(written: bytes) -> None:
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
def test_require_inside_refuses_paths_with_another_meaning(path: str) -> None:
    with pytest.raises(LoadError, match="not a plain path"):
        require_inside(path)
    with pytest.raises(LoadError):
        parse_manifest(spoilt(spoil("files", path, value={"sha256": HEX, "bytes": 1})))


def test_to_bytes_refuses_what_parse_manifest_refuses() -> None:
    made = replace(manifest(), files={"../model.onnx": File(HEX, 1)})
    with pytest.raises(LoadError, match="not a plain path"):
        made.to_bytes()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("caf\u00e9.txt", "cafe\u0301.txt"),
        ("model.onnx", "Model.onnx"),
        ("stra\u00dfe", "STRASSE"),
        ("Sub/x", "sub/y"),
        ("a/Sub/x", "a/sub/x"),
        ("sub", "sub/x"),
        ("SUB", "sub/x"),
        ("a/b", "a/b/c/d"),
        ("caf\u00e9/x", "cafe\u0301/y"),
    ],
)
def test_require_distinct_refuses_names_that_some_system_takes_for_one(first: str, second: str) -> None:
    for names in ((first, second), (second, first)):
        with pytest.raises(LoadError, match=r"one name on some systems|both as a file and as a folder"):
            require_distinct(names)


@pytest.mark.parametrize("name", ["Manifest.json", "MANIFEST.JSON", "manifest.json/x"])
def test_require_distinct_refuses_the_name_of_the_manifest(name: str) -> None:
    with pytest.raises(LoadError):
        require_distinct([name])


def test_require_distinct_accepts_different_names() -> None:
    require_distinct(["a", "b/a", "b/b", "ab", "b/c/a", "B.txt"])


def test_to_bytes_refuses_half_a_character() -> None:
    with pytest.raises(LoadError, match="half a character"):
        replace(manifest(), classes=("cat", "d\ud800g")).to_bytes()


@given(st.integers(0, len(manifest().to_bytes()) - 2))
def test_parse_manifest_refuses_a_truncated_manifest(length: int) -> None:
    with pytest.raises(LoadError):
        parse_manifest(manifest().to_bytes()[:length])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.sampled_from(sorted(document())), JSON)
def test_parse_manifest_reads_or_refuses_any_value(name: str, value: object) -> None:
    values = {**document(), name: value}
    try:
        made = parse_manifest(json.dumps(values).encode())
    except LoadError:
        return
    assert parse_manifest(made.to_bytes()) == made


@given(st.binary(max_size=200))
def test_parse_manifest_refuses_any_bytes(written: bytes) -> None:
    with pytest.raises(LoadError):
        parse_manifest(written)
