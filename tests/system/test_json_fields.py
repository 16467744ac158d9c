"""JSON from untrusted files: equal to json.loads on what is allowed, refused with a TrpError otherwise."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.errors import DeviceError, LoadError
from trp_export.system.json_fields import Fields, parse_json, read_json

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_parse_json_reads_what_json_writes(value: Any) -> None:
    assert parse_json(json.dumps(value).encode(), "x") == value


@given(st.binary(max_size=60) | st.text('[]{}",:0123456789.eE+-truefalsn \\uD8', max_size=60).map(str.encode))
def test_parse_json_refuses_in_one_way(content: bytes) -> None:
    try:
        value = parse_json(content, "x")
    except LoadError:
        return
    assert value == json.loads(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "has the field 'a' twice"),
        (b'[{"a": [{"b": 1, "b": 1}]}]', "has the field 'b' twice"),
        (b"[" * 10**6, "nested deeper"),
        (b"[" * 50 + b"]" * 50, "nested deeper"),
        (b'{"a":' * 10**5, "nested deeper"),
        (b"1" * 5000, "too many digits"),
        (b"-" + b"1" * 400, "too many digits"),
        (b"[1e400]", "not finite"),
        (b"1.5e999999", "not finite"),
        (b"NaN", "holds NaN"),
        (b"[-Infinity]", "holds -Infinity"),
        (b'"\\ud800"', "half a character"),
        (b'{"\\udc00": 1}', "half a character"),
        (b'"' + b"x" * 200_000 + b'"', "200,000 characters"),
        (b'{"' + b"x" * 200_000 + b'": 1}', "200,000 characters"),
        (b"\xff\xfe", "not JSON in UTF-8"),
        (b"", "not JSON in UTF-8"),
    ],
)
def test_parse_json_refuses_what_could_harm(content: bytes, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        parse_json(content, "x")
    with pytest.raises(DeviceError, match=message):
        parse_json(content, "x", error=DeviceError)


def test_parse_json_takes_linear_time() -> None:
    """Half a million keys, the last one twice: comparing each with each would not end."""
    keys = ",".join(f'"{index}":0' for index in range(500_000))
    with pytest.raises(LoadError, match="has the field '499999' twice"):
        parse_json(f'{{{keys},"499999":0}}'.encode(), "x")


def test_read_json_bounds_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}')
    assert read_json(file, 8) == {"a": 1}
    with pytest.raises(LoadError, match="larger than 7 bytes"):
        read_json(file, 7)


SOUND: dict[str, Any] = {
    "text": "a",
    "whole": 3,
    "number": 1.5,
    "flag": True,
    "texts": ["a", "b"],
    "wholes": [1, 2],
    "numbers": [1, 2.5],
    "one_of": "fp32",
}
ASKED: dict[str, tuple[Any, ...]] = {
    "text": (),
    "whole": (10,),
    "number": (),
    "flag": (),
    "texts": (2,),
    "wholes": (2, 10),
    "numbers": (2,),
    "one_of": (("fp32", "fp16"),),
}


@pytest.mark.parametrize("kind", ASKED)
def test_fields_return_sound_values(kind: str) -> None:
    value = getattr(Fields(SOUND, "x"), kind)(kind, *ASKED[kind])
    assert value == (tuple(SOUND[kind]) if isinstance(SOUND[kind], list) else SOUND[kind])


@given(st.sampled_from(sorted(ASKED)), VALUES)
def test_fields_return_the_asked_type_or_refuse(kind: str, value: Any) -> None:
    fields = Fields({kind: value}, "x", DeviceError)
    try:
        found = getattr(fields, kind)(kind, *ASKED[kind])
    except DeviceError:
        return
    wanted = SOUND[kind]
    assert isinstance(found, tuple if isinstance(wanted, list) else type(wanted))
    if kind == "whole":
        assert 0 <= found <= 10


def test_fields_know_what_is_missing_and_what_is_unknown() -> None:
    fields = Fields({"a": 1, "zz": 2, "z": 3}, "x")
    with pytest.raises(LoadError, match="the field 'b' is missing"):
        fields.whole("b")
    assert fields.whole("a") == 1
    with pytest.raises(LoadError, match="the field 'z' is unknown"):
        fields.nothing_more()
    with pytest.raises(DeviceError, match="must be an object"):
        Fields([1], "x", DeviceError)


def test_fields_read_objects_within() -> None:
    fields = Fields({"one": {"a": 1}, "many": {"p": {"a": 1}, "q": {"a": 2}}, "list": [{"a": 3}]}, "x", DeviceError)
    assert fields.inner("one").whole("a") == 1
    assert [(name, inner.whole("a")) for name, inner in fields.named("many", 2)] == [("p", 1), ("q", 2)]
    assert [inner.whole("a") for inner in fields.listed("list", 1)] == [3]
    assert fields.holding("one", ["a"]) == {"a": 1}
    with pytest.raises(DeviceError, match="x: one: 'a' must be a text"):
        fields.inner("one").text("a")
    with pytest.raises(DeviceError, match="'many' must be at most 1"):
        list(fields.named("many", 1))
    with pytest.raises(DeviceError, match="a list of at most 0 values"):
        list(fields.listed("list", 0))


def test_recursion_is_not_the_limit() -> None:
    """Deep documents end in a refusal even if little of Python's stack is left."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(250)
    try:
        with pytest.raises(LoadError, match="nested deeper"):
            parse_json(b"[" * 10**5, "x")
    finally:
        sys.setrecursionlimit(limit)
