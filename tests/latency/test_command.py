"""--speedup from the command line, on the device whose costs are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Command

from trp_export import bench
from trp_export.bench import Comparison
from trp_export.latency import network
from trp_export.latency.table import load_costs, save_costs

from .fake import CONDITIONS, FakeDevice
from .test_network import EXTENT, WIDTH, chain

SHAPES = {"x": (1, WIDTH, EXTENT, EXTENT)}


class Lab:
    """The fake device in the place of the real one; `slowdown` is what the closing measurement adds to the result."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.device = FakeDevice(dict(SHAPES))
        self.slowdown = 1.0
        self.asked: list[dict[str, object]] = []

    def open(self, specification: str, threads: int, shapes: object, precision: str) -> FakeDevice:
        self.device.specification, self.device.precision = specification, precision
        return self.device

    def compare(self, models: list[Path], **options: object) -> Comparison:
        self.asked.append(options)
        self.device.scale = self.slowdown
        return self.device.compare(models)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    cache = tmp_path_factory.mktemp("cache")
    lab = Lab(cache / "latency")
    monkeypatch.setattr(network, "DeviceUnderTest", lab.open)
    monkeypatch.setattr(bench, "compare", lab.compare)
    monkeypatch.setenv("TRP_BENCH_CACHE", str(cache))
    return lab


def test_the_result_is_as_fast_as_wished_and_the_report_says_what_was_foretold(
    trp: Command, lab: Lab, tmp_path: Path
) -> None:
    outcome = trp(chain(tmp_path), "--speedup", "1.5", "--no-bench", "--report", "page.html", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "small.json").read_text())
    forecast = report["forecast"]
    assert forecast["original"] / forecast["predicted"] == pytest.approx(forecast["measured"], rel=1e-3)
    assert forecast["measured"] == pytest.approx(1.5, rel=0.05)
    assert "The latency table predicted 1.5" in outcome.out
    assert "The latency table predicted 1.5" in (tmp_path / "page.html").read_text()
    assert "--speedup 1.5" in (tmp_path / "page.html").read_text()
    assert report["latency"]["models"][1]["ratio"]["value"] > 1.4
    assert lab.asked[0]["processes"] == 4  # --no-bench leaves out the long comparison alone
    reasons = [layer["reason"] for layer in report["layers"] if layer["scheme"]]
    assert reasons
    assert all(reason.endswith(" ms") for reason in reasons)


def images(folder: Path) -> Path:
    path = folder / "images.npy"
    np.save(path, np.random.default_rng(0).standard_normal((64, WIDTH, EXTENT, EXTENT)).astype(np.float32))
    return path


def test_int8_is_planned_for_with_what_layers_take_in_int8(trp: Command, lab: Lab, tmp_path: Path) -> None:
    wish = ("--speedup", "4", "--calib", images(tmp_path), "--precision", "int8", "--channels", "off", "--no-bench")
    outcome = trp(chain(tmp_path), *wish, "-o", "small.onnx", "--latency-table", "t.json")
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "small.json").read_text())
    assert report["forecast"]["precision"] == "int8"
    assert report["forecast"]["measured"] == pytest.approx(4, rel=0.05)
    assert report["latency"]["models"][1]["ratio"]["value"] == pytest.approx(4, rel=0.05)  # the file that ships
    assert "The latency table for int8 predicted" in outcome.out
    assert {layer["rank"] % 4 for layer in report["layers"] if layer["rank"]} == {0}
    assert load_costs(tmp_path / "t.json")[0].precision == "int8"


@pytest.mark.slow
def test_tables_of_another_precision_are_refused_and_kept_apart(
    trp: Command, refuses: Command, lab: Lab, tmp_path: Path
) -> None:
    model = chain(tmp_path)
    assert trp(model, "--speedup", "1.5", "--no-bench", "-o", "one.onnx", "--latency-table", "t.json").code == 0
    assert len(list(lab.cache.iterdir())) == 1
    wish = ("--speedup", "4", "--calib", images(tmp_path), "--precision", "int8", "--no-bench", "--dry-run")
    error = refuses(9, model, *wish, "--latency-table", "t.json")
    assert "precision fp32 there, int8 here" in error
    assert trp(model, *wish).code == 0
    assert len(list(lab.cache.iterdir())) == 2


def test_an_int8_result_that_is_not_faster_is_refused(refuses: Command, lab: Lab, tmp_path: Path) -> None:
    lab.slowdown = 9.0
    wish = ("--speedup", "4", "--calib", images(tmp_path), "--precision", "int8", "--channels", "off", "--no-bench")
    assert "not faster than the original" in refuses(6, chain(tmp_path), *wish, "-o", "small.onnx")


def test_a_result_that_is_not_faster_is_refused(refuses: Command, lab: Lab, tmp_path: Path) -> None:
    model = chain(tmp_path)
    lab.slowdown = 3.0
    assert "not faster than the original" in refuses(6, model, "--speedup", "1.5", "--no-bench", "-o", "small.onnx")


def test_a_wish_out_of_reach_names_the_best(refuses: Command, lab: Lab, tmp_path: Path) -> None:
    error = refuses(2, chain(tmp_path), "--speedup", "40", "-o", "small.onnx")
    assert "--speedup 40 is out of reach on this device: the fastest plan measured" in error


def test_a_dry_run_tells_what_layers_take_and_saves_the_table(trp: Command, lab: Lab, tmp_path: Path) -> None:
    model = chain(tmp_path)
    outcome = trp(model, "--speedup", "1.5", "--dry-run", "--latency-table", "table.json")
    assert outcome.code == 0, outcome.err
    assert " ms" in outcome.out
    assert lab.asked == []
    conditions, costs = load_costs(tmp_path / "table.json")
    assert conditions == CONDITIONS
    assert any("| dense" in key for key in costs)


def test_the_same_table_gives_the_same_model_bit_for_bit(trp: Command, lab: Lab, tmp_path: Path) -> None:
    model = chain(tmp_path)
    assert trp(model, "--speedup", "1.5", "--no-bench", "-o", "one.onnx", "--latency-table", "t.json").code == 0
    for file in lab.cache.iterdir():
        file.unlink()
    lab.device.profiles = lab.device.dies_after  # Nothing more can be measured layer by layer.
    assert trp(model, "--speedup", "1.5", "--no-bench", "-o", "two.onnx", "--latency-table", "t.json").code == 0
    one, two = (onnx.load(tmp_path / name) for name in ("one.onnx", "two.onnx"))
    assert one.graph.SerializeToString() == two.graph.SerializeToString()


def test_a_table_of_another_device_is_refused(refuses: Command, lab: Lab, tmp_path: Path) -> None:
    from dataclasses import replace

    model = chain(tmp_path)
    save_costs(tmp_path / "t.json", replace(CONDITIONS, cpu="another CPU", threads=2), {"a": [1.0]})
    error = refuses(9, model, "--speedup", "1.5", "--latency-table", "t.json")
    assert "t.json is of another device: cpu another CPU there, test CPU here, threads 2 there, 1 here" in error


def test_what_is_no_table_is_refused(refuses: Command, lab: Lab, tmp_path: Path) -> None:
    model = chain(tmp_path)
    np.save(tmp_path / "t.npy", np.zeros(3))
    assert "t.npy" in refuses(3, model, "--speedup", "1.5", "--latency-table", "t.npy")


def test_a_device_lost_on_the_way_is_an_error_that_goes_on_next_time(
    trp: Command, refuses: Command, lab: Lab, tmp_path: Path
) -> None:
    model = chain(tmp_path)
    lab.device.dies_after = 5
    outcome = trp(model, "--speedup", "1.5", "-o", "small.onnx")
    assert outcome.code == 8
    assert "kept; the same command goes on from there" in outcome.err
    assert not (tmp_path / "small.onnx").exists()
    lab.device.dies_after = 1000
    assert trp(model, "--speedup", "1.5", "--no-bench", "-o", "small.onnx").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--speedup", "1"), "--speedup must be a number above 1, not 1"),
        (("--speedup", "nan"), "--speedup must be a number above 1, not nan"),
        (("--speedup", "1.5", "--macs", "2"), "contradict"),
        (("--macs", "2", "--latency-table", "t.json"), "--latency-table goes with a rule that uses latency"),
        (("--speedup", "2", "--latency-table", "none/t.json"), "--latency-table: there is no folder none"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    refuses: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in refuses(2, chain(tmp_path), *arguments)


def test_an_unknown_device_is_named(refuses: Command, tmp_path: Path) -> None:
    assert "no device 'toaster'" in refuses(8, chain(tmp_path), "--speedup", "1.5", "--device", "toaster")
