"""What is printed: ratios that hold for two runs too, and layers that took no time."""

from __future__ import annotations

import pytest

from trp_export.bench import Comparison, Environment, Measurement, Process, stats
from trp_export.bench.profile import Profile, ProfiledLayer
from trp_export.bench.report import document, print_tables

TIMED = Environment("local", "CPU", "x86_64", "Linux", 2, "", (0,), 1, "CPUExecutionProvider", "1.32", "float32[1]")
COUNTED = Environment(
    "arm", "A76", "aarch64", "qemu", 1, "", (), 1, "CPUExecutionProvider", "1.32", "x", "instructions"
)


def measured(model: str, value: int, *rounds: int, counts: dict[str, int] | None = None) -> Measurement:
    processes = tuple(Process(number, 1.0, 2, 3, (value, value + number)) for number in rounds)
    return Measurement(model, "00", 5, processes, None, counts or {})


@pytest.mark.parametrize("environment", [TIMED, COUNTED])
def test_an_earlier_run_needs_no_rounds_in_common(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    """It may have been stopped early, or have had fewer of them."""
    counts = {"instructions": 5} if environment is COUNTED else None
    one, other = measured("one", 2000, 0, 1, counts=counts), measured("other", 1000, 2, 3, counts=counts)
    found = Comparison(environment, (one, other), (), 1.0)
    print_tables(found, (), paired=False)
    assert "2.00x" in capsys.readouterr().out
    assert document(found, (), paired=False)["models"][1]["ratio"]["value"] == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("paired", [True, False])
def test_each_ratio_is_found_once(paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its interval takes 20,000 resamples."""
    asked = []
    ratio = stats.ratio

    def counting(one: Measurement, other: Measurement, *, paired: bool) -> stats.Ratio:
        asked.append((other.model, paired))
        return ratio(one, other, paired=paired)

    monkeypatch.setattr(stats, "ratio", counting)
    models = tuple(measured(name, 1000, 0, 1) for name in "abc")
    document(Comparison(TIMED, models, (), 1.0), (), paired=paired)
    assert asked == [("b", paired), ("c", paired)]


def test_layers_that_took_no_time_have_no_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    """onnxruntime's profile counts whole microseconds."""
    slow, quick = (Profile("m", (ProfiledLayer("conv", "Conv", ms, 1000, 1),), {}, 1) for ms in (0.5, 0.0))
    models = tuple(measured(name, 1000, 0, 1) for name in "ab")
    print_tables(Comparison(TIMED, models, (), 1.0), (slow, quick))
    rows = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()}
    assert rows["conv"] == rows["all"] == "-"
