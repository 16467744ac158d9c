"""The tables: complete at 80 columns, separate from messages, and safe against hostile names."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from reports import HOSTILE, LAYERS, bare, make_comparison, make_forms, make_frontier, make_layer, make_report
from rich.console import Console

from trp_export.report.document import Report
from trp_export.report.terminal import print_report

LONG = tuple(make_layer(f"backbone/stage{i}/block_{i}/residual/conv/Conv", i) for i in range(3))

TABLES = """\
net: energy 0.9
layer  kernel     becomes     rank  energy    MACs
conv1  16x16x3x3  channel     7/16  0.5793   2.06x
conv2  16x16x3x3  spatial    11/48  0.5849   2.18x
conv3  16x16x3x3  kept: rank 20 is not below break-even 15
head   16x16x3x3  kept: depthwise

                                before       after               ratio
parameters                     100,000      60,000               1.67x
MACs                        20,000,000  12,000,000               1.67x
file, bytes                  1,130,000     700,000               1.61x
latency, ms (1 thread)           1.998       1.335  1.50x [1.49, 1.51]
latency, vs cleaned up           1.997       1.335  1.49x [1.48, 1.51]
peak memory                    50.0 MB     50.0 MB               1.00x
top-1 accuracy, 500 images      91.70%      90.90%     -0.80 ± 0.63 pp
top-5                           99.00%      98.80%            -0.20 pp

The rewrite is exact to 3.0e-07 relative L2 (whole model).
Outputs moved by 4% relative L2 (noise).
7 of 500 images were right and are wrong now, 3 the reverse; ± is the standard
error of the change.
note: the images have one channel
net is 1.61 times smaller and 1.50 times as fast here (99% confidence: 1.49 to
1.51); its top-1 accuracy changes from 91.70% to 90.90% on 500 images.
"""


SEARCH = """\
tried: at most 1 pp below 91.70%  times fewer MACs  accuracy, 500 images           change
holds                                        1.51x                91.50%  -0.20 ± 0.30 pp
chosen                                       2.02x                90.90%  -0.80 ± 0.40 pp
beyond                                       3.05x                87.10%  -4.60 ± 0.80 pp
"""


def _printed(report: Report, width: int = 80, verbose: bool = False) -> tuple[list[str], list[str]]:
    out, messages = io.StringIO(), io.StringIO()
    print_report(report, Console(file=out, width=width, highlight=False), Console(file=messages, width=width), verbose)
    return [line.rstrip() for line in out.getvalue().splitlines()], messages.getvalue().splitlines()


def test_the_tables_at_80_columns() -> None:
    lines, messages = _printed(make_report(LAYERS))
    assert lines == TABLES.splitlines()
    assert messages == ["wrote small.onnx", "wrote small.json"]


def test_a_single_process_gives_a_speed_without_an_interval() -> None:
    lines, _ = _printed(replace(make_report(LAYERS), latency=make_comparison(1.5, processes=1)), 200)
    expected = "times smaller; it ran 1.50 times as fast here (too few processes for a confidence interval);"
    assert expected in lines[-1]
    assert next(line for line in lines if line.startswith("latency, ms")).endswith("1.50x [unknown]")


def test_the_table_lists_every_network_of_a_search() -> None:
    lines, _ = _printed(replace(make_report(LAYERS), frontier=make_frontier()), width=100)
    assert "\n".join(lines).count(SEARCH) == 1


def test_precisions_side_by_side_or_one_below_the_other() -> None:
    report = replace(make_report(LAYERS), forms=make_forms())
    wide, narrow = (_printed(report, width)[0] for width in (140, 100))
    line = "low rank, int8 (shipped)   211 kB       0.1668  11.98x [11.88, 12.07]  1.32x [1.32, 1.32]"
    assert any(one.startswith(line) for one in wide)
    assert any(line.split() == ["vs", "original", "11.98x", "[11.88,", "12.07]"] for line in narrow)


@pytest.mark.parametrize("width", [60, 80, 120, 140, 1000])
def test_no_interval_of_a_precision_is_folded_or_cut(width: int) -> None:
    lines, _ = _printed(replace(bare(make_report(LAYERS)), latency=make_comparison(1.5), forms=make_forms()), width)
    told = [line for line in lines if "x [" in line]
    assert told
    assert all(line.count("[") == line.count("]") for line in told)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("layers", [LAYERS, LONG])
def test_one_line_for_each_layer(width: int, layers: tuple[object, ...]) -> None:
    lines, _ = _printed(make_report(layers), width)  # type: ignore[arg-type]
    table = lines[1 : lines.index("")]
    assert len(table) == 1 + len(layers)
    assert max(map(len, lines)) <= width


def test_long_names_are_cut_in_the_middle() -> None:
    lines, _ = _printed(make_report(LONG), 80)
    assert all("..." in line and "conv/Conv" in line for line in lines[2:5])
    lines, _ = _printed(make_report(LONG), 120)
    assert not [line for line in lines if "..." in line]


def test_names_hold_no_control_characters() -> None:
    layers = tuple(make_layer(name, index) for index, name in enumerate(HOSTILE))
    lines, _ = _printed(replace(make_report(layers, name=HOSTILE[4]), notes=HOSTILE), 200)
    text = "\n".join(lines)
    assert text.replace("±", "").isascii()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold red]markup[/]" in text
    assert len(lines[1 : lines.index("")]) == 1 + len(HOSTILE)


def test_a_dry_run_prints_the_plan() -> None:
    lines, messages = _printed(bare(make_report(LAYERS)))
    assert lines[-1].startswith("2 of 4 layers of net would become factor pairs: 1.0")
    assert messages == []


def test_verbose_prints_disturbances() -> None:
    assert not [line for line in _printed(make_report(LAYERS))[0] if line.startswith("noise:")]
    assert [line for line in _printed(make_report(LAYERS), verbose=True)[0] if line.startswith("noise:")]
