"""Options written once: parsing, the command line that repeats them, and errors for both kinds of user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.cli.export import command
from trp_export.errors import OptionError
from trp_export.flags import arguments, build_value, entries, flags_of
from trp_export.options import Benchmark, Calibration, Images, Options, Selection, Tuning
from trp_export.rules import Energy, Macs, MaxDrop, Rank, Rule, Threshold

names = st.text("abc-_* '$;é", min_size=1).filter(lambda text: not text.startswith("-"))
files = names.map(Path)
rules: st.SearchStrategy[Rule | None] = st.one_of(
    st.none(),
    st.floats(1e-9, 1).map(Energy),
    st.floats(1e-9, 1).map(Threshold),
    st.integers(1, 10**6).map(Rank),
    st.floats(1.001, 1e9).map(Macs),
)
tunings = st.one_of(st.none(), st.integers(1, 10**6).map(lambda steps: Tuning(steps=steps)))
calibrations = st.one_of(
    st.none(),
    st.builds(Calibration, files, count=st.integers(1, 10**6), seed=st.integers(0, 2**40), recover=st.booleans()),
    st.builds(Calibration, st.just("synthetic"), tune=tunings),
)
selections = st.builds(Selection, st.sampled_from(["auto", "spatial"]), st.lists(names, max_size=2).map(tuple))
benchmarks = st.builds(Benchmark, threads=st.integers(1, 99), budget_s=st.sampled_from([20.0, 0.5, 3.25]))


@given(
    st.builds(
        Options,
        rules,
        calibrations,
        st.one_of(st.none(), files.map(Images)),
        output=st.one_of(st.none(), files),
        selection=selections,
        benchmark=benchmarks,
    )
)
def test_the_arguments_of_options_parse_to_the_same_options(options: Options) -> None:
    context = command.make_context("trp-export", ["model.onnx", *arguments(options)])
    assert build_value(Options, context.params) == _by_name_only(options)


def _by_name_only(value: Any) -> Any:
    """Options as a command line repeats them: files without their folders."""
    from dataclasses import fields, is_dataclass, replace

    if isinstance(value, Path):
        return Path(value.name)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{one.name: _by_name_only(getattr(value, one.name)) for one in fields(value)})


def test_every_option_has_a_flag_of_its_own() -> None:
    flags = [name for entry in entries(Options) for name in entry.flag.names]
    assert len(flags) == len(set(flags))
    assert all(entry.flag.help.endswith(".") or entry.flag.help.endswith("file's") for entry in entries(Options))


@pytest.mark.parametrize(
    ("make", "in_python", "on_the_command_line"),
    [
        (lambda: Macs(0.5), "ratio must be a number above 1", "--macs must be a number above 1"),
        (lambda: MaxDrop(-1), "points must lie between", "--max-drop must lie between"),
        (lambda: Selection(scheme="foo"), "scheme must be one of", "--scheme must be one of"),
        (
            lambda: Benchmark(run=False, require=True),
            "require needs the benchmark; leave run out",
            "--require-speedup needs the benchmark; leave --no-bench out",
        ),
        (lambda: Options(precision="int8"), "give calibration PATH", "give --calib PATH"),
    ],
)
def test_errors_name_fields_in_python_and_flags_on_the_command_line(
    make: Any, in_python: str, on_the_command_line: str
) -> None:
    with pytest.raises(OptionError) as error:
        make()
    assert in_python in str(error.value)
    kinds = (Macs, MaxDrop, Selection, Benchmark, Options)
    translated = [str(error.value.with_flags(flags_of(kind))) for kind in kinds]  # type: ignore[attr-defined]
    assert any(on_the_command_line in message for message in translated)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"macs": 2.0, "energy": 0.9}, "--macs and --energy contradict each other"),
        ({"seed": 3}, "--seed needs --calib PATH"),
        ({"ort": "arm"}, "--ort needs --bundle DIR"),
        ({"dry_run": True, "report": Path("page.html")}, "--dry-run writes nothing; leave --bundle and --report out"),
        ({"macs": 0.5}, "--macs must be a number above 1, not 0.5"),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_their_flags(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_value(Options, given)
