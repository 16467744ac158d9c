"""Saved measurements come from anywhere: what --save did not write is refused with a LoadError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.bench import Comparison, Environment, Measurement, OutputDeviation, Process
from trp_export.bench.saved import from_json, load, save, to_json
from trp_export.errors import LoadError

from .test_hostile_devices import VALUES, paths, replaced

HERE = Environment("local", "CPU", "x86_64", "Linux", 4, "", (3,), 1, "CPUExecutionProvider", "1.31", "float32[1]")
MEASURED = Comparison(
    HERE,
    (
        Measurement("a", "00", 5, (Process(0, 1.0, 2, 3, (4, 5)),), OutputDeviation(0.0, 0.0, 1e-4), {}),
        Measurement("b", "01", 5, (Process(0, 1.0, 2, 3, (6, 7)),), None, {"macs": 3}),
    ),
    ("noise",),
    1.5,
)
DOCUMENT = json.loads(json.dumps(to_json(MEASURED)))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(MEASURED, tmp_path / "s.json")
    assert load(tmp_path / "s.json") == MEASURED


@given(st.data())
def test_any_other_value_is_read_or_refused(data: st.DataObject) -> None:
    spoiled = replaced(DOCUMENT, data.draw(st.sampled_from(paths(DOCUMENT))), data.draw(VALUES))
    try:
        found = from_json(spoiled, "x")
    except LoadError:
        return
    to_json(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"models": []},
        {"models": [{**DOCUMENT["models"][0], "processes": []}]},
        {"models": [{**DOCUMENT["models"][0], "processes": [{**DOCUMENT["models"][0]["processes"][0], "round": {}}]}]},
        {
            "models": [
                {**DOCUMENT["models"][0], "processes": [{**DOCUMENT["models"][0]["processes"][0], "samples": []}]}
            ]
        },
        {
            "models": [
                {**DOCUMENT["models"][0], "processes": [{**DOCUMENT["models"][0]["processes"][0], "samples": [-5]}]}
            ]
        },
        {"environment": {**DOCUMENT["environment"], "other": 1}},
    ],
)
def test_a_comparison_that_cannot_be_used_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LoadError):
        from_json({**DOCUMENT, **changes}, "x")


@pytest.mark.parametrize("content", ["", "{}", "[]", "[" * 100_000, '{"schema": 1' + "0" * 500 + "}", "null"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(LoadError, match=r"s\.json, which should be a file of trp-bench --save"):
        load(tmp_path / "s.json")
