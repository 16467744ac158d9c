"""The table on disk: what goes in comes out, files of others are not trusted, other devices are told apart."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.errors import EnvironmentMismatchError, LoadError, OutputError
from trp_export.latency.table import Table, cache_file, load_costs, merged, save_costs

from .fake import CONDITIONS

COSTS = st.floats(min_value=0, max_value=1e9, allow_nan=False)
TABLES = st.dictionaries(st.text(min_size=1, max_size=20), st.lists(COSTS, min_size=1, max_size=5), max_size=8)


@given(TABLES)
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, costs: dict[str, list[float]]) -> None:
    path = tmp_path_factory.mktemp("table") / "t.json"
    save_costs(path, CONDITIONS, costs)
    assert load_costs(path) == (CONDITIONS, costs)


@given(TABLES, TABLES)
def test_merged_tables_hold_all_values_of_both(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, list[float]], other: dict[str, list[float]]
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    for name, costs in (("one", one), ("other", other)):
        save_costs(folder / name, CONDITIONS, costs)
    total = merged([folder / "one", folder / "other"], CONDITIONS)
    assert total == {key: one.get(key, []) + other.get(key, []) for key in {*one, *other}}
    table = Table(CONDITIONS, None, total)
    for key, values in total.items():
        assert table.get(key) == statistics.median(values)


def test_what_is_measured_is_on_disk_at_once_and_never_changes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.json"
    Table(CONDITIONS, path).add({"a": 1.0})
    again = Table(CONDITIONS, path)
    again.add({"a": 2.0, "b": 3.0})
    assert Table(CONDITIONS, path).get("a") == 1.0
    assert Table(CONDITIONS, path).get("b") == 3.0
    assert Table(CONDITIONS, path).get("c") is None
    assert [file.name for file in path.parent.iterdir()] == ["table.json"]


def test_what_is_known_is_not_measured_again() -> None:
    table, measured = Table(CONDITIONS, None, {"given": [2.0, 4.0]}), iter((0.0, 1.0))
    assert [table.once(key, lambda: next(measured)) for key in ("given", "new", "new")] == [3.0, 0.0, 0.0]
    assert next(measured) == 1.0


def test_two_programs_add_to_one_cache(tmp_path: Path) -> None:
    one, other = (Table(CONDITIONS, tmp_path / "t.json") for _ in range(2))
    one.add({"a": 1.0})
    other.add({"b": 2.0})
    one.add({"c": 3.0})
    assert load_costs(tmp_path / "t.json")[1] == {"a": [1.0], "b": [2.0], "c": [3.0]}


def test_given_tables_are_believed_before_the_cache(tmp_path: Path) -> None:
    Table(CONDITIONS, tmp_path / "t.json").add({"a": 1.0, "b": 5.0})
    table = Table(CONDITIONS, tmp_path / "t.json", {"a": [9.0]})
    assert (table.get("a"), table.get("b")) == (9.0, 5.0)
    table.save(tmp_path / "all.json")
    assert load_costs(tmp_path / "all.json")[1] == {"a": [9.0], "b": [5.0]}


def test_a_damaged_cache_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"format": "trp-lat')
    table = Table(CONDITIONS, path)
    assert "a" not in table
    table.add({"a": 1.0})
    assert Table(CONDITIONS, path).get("a") == 1.0


def test_a_cache_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"latency table .* cannot be written"):
        Table(CONDITIONS, tmp_path / "file" / "t.json").add({"a": 1.0})


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CONDITIONS)])
def test_every_condition_tells_tables_apart(tmp_path: Path, field: str) -> None:
    value = getattr(CONDITIONS, field)
    other = dataclasses.replace(CONDITIONS, **{field: (7,) if isinstance(value, tuple) else type(value)("7")})
    assert cache_file(tmp_path, other) != cache_file(tmp_path, CONDITIONS)
    save_costs(tmp_path / "t.json", other, {"a": [1.0]})
    with pytest.raises(EnvironmentMismatchError, match=rf"t.json is of another device: {field} .*7.* there"):
        merged([tmp_path / "t.json"], CONDITIONS)


def document(**changes: object) -> str:
    return json.dumps(
        {"format": "trp-latency", "version": 2, "conditions": CONDITIONS.to_json(), "costs": {"a": [1.0]}, **changes}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "nested deeper"),
        ("[]", "is not a latency table"),
        (document(version=1), "table version 1 is unknown"),
        (document(conditions={}), "conditions"),
        (document(conditions={**CONDITIONS.to_json(), "threads": "2"}), "'threads' must be a whole number"),
        (document(conditions={**CONDITIONS.to_json(), "cores": [True]}), "'cores' must be a whole number"),
        (document(costs=[]), "costs"),
        (document(costs={"a": []}), "'a' must have at least one cost"),
        (document(costs={"a": [1.0] * 2000}), "'a' must be a list of at most 1000 values"),
        (document(costs={"a": ["1"]}), "'a' must be a number"),
        (document(costs={"a": [True]}), "'a' must be a number"),
        (document(costs={"a": [1e300]}), "must be below 1e\\+12"),
        (document().replace("[1.0]", "[NaN]"), "holds NaN"),
        (document().replace("[1.0]", "[1e999]"), "not finite"),
        (document(costs={"a" * 5000: [1.0]}), "5,000 characters"),
        (document(costs={"a": [10**400]}), "too many digits"),
        (document(other=1), "the field 'other' is unknown"),
    ],
)
def test_files_of_others_are_checked(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(LoadError, match=message) as caught:
        load_costs(path)
    assert len(str(caught.value)) < 400


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "t.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(LoadError, match="larger than 16 MiB"):
        load_costs(tmp_path / "t.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none\.json cannot be read"):
        load_costs(tmp_path / "none.json")
