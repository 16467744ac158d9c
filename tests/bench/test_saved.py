"""Saved measurements come from anywhere: what --save did not write is refused with a LoadError."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.bench import Comparison, Environment, Measurement, OutputDeviation, Process, saved
from trp_export.bench.saved import from_json, load, save, to_json
from trp_export.errors import LoadError

from .test_hostile_devices import VALUES, paths, replaced

HERE = Environment(
    "local", "CPU", "x86_64", "Linux", 4, "", (3,), 1, "CPUExecutionProvider", "1.31", "float32[1]", "ns", "1a"
)
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


def test_a_file_of_an_earlier_version_is_loaded() -> None:
    environment = {name: value for name, value in DOCUMENT["environment"].items() if name != "input_values"}
    assert from_json({**DOCUMENT, "environment": environment}, "x").environment == replace(HERE, input_values="")


@pytest.mark.parametrize("samples", [1000, 1001, 5000, 5003])
def test_what_is_saved_is_never_too_much_to_be_loaded(
    samples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All samples where they fit, else one in so many; the statistics are of all."""
    monkeypatch.setattr(saved, "_MOST_SAMPLES", 1000)
    monkeypatch.setattr(saved, "_MOST_BYTES", 14_000)
    taken = tuple(range(10**9, 10**9 + samples // 2))
    one, other = (replace(MEASURED.measurements[0], processes=(Process(0, 1.0, 2, 3, taken),)) for _ in range(2))
    save(replace(MEASURED, measurements=(one, other)), tmp_path / "s.json")
    found = load(tmp_path / "s.json").measurements[1].samples
    assert found == taken[:: -(-len(taken) // 500)]
    summary = json.loads((tmp_path / "s.json").read_text())["models"][1]["summary"]
    assert summary["n"] == len(taken)
    assert float(np.median(found)) == pytest.approx(np.median(taken), rel=1e-8)


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
