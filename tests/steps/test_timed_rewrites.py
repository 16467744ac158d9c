"""Rewrites that pay on some devices only are made where the clock says so, and as a saved plan says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Command
from models import build, run

from trp_export import Benchmark, Calibration, Options, Rank, Report, compress
from trp_export.errors import LoadError
from trp_export.graph.exact import PARAMETRIC_RELUS
from trp_export.latency import network as latency
from trp_export.rules import SavedPlan

TEXT = """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 3, 12, 12] x) => (float[1, 8, 12, 12] z)
<float[8, 3, 3, 3] w, float[8, 1, 1] a, float[8, 8, 3, 3] v>
{ c = Conv <pads = [1, 1, 1, 1]> (x, w)  y = PRelu (c, a)  z = Conv <pads = [1, 1, 1, 1]> (y, v) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(build(TEXT), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def gains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gain: float) -> None:
    monkeypatch.setattr(latency, "speedup_of", lambda device, original, file: gain)
    monkeypatch.setenv("TRP_BENCH_CACHE", str(tmp_path / "cache"))


def export(model: Path, rule: object = None, run: bool = True, name: str = "small.onnx") -> Report:
    benchmark = Benchmark(run=run, budget_s=0.1, keep_slow_pairs=True)
    output = model.with_name(name)
    return compress(
        model,
        Options(rule, calibration=Calibration("none"), benchmark=benchmark, output=output),  # type: ignore[arg-type]
    )


def operators(model: Path) -> list[str]:
    return [node.op_type for node in onnx.load(model).graph.node]


@pytest.mark.parametrize("rule", [None, pytest.param(Rank(3), marks=pytest.mark.slow)])
def test_a_faster_rewrite_is_made_whatever_the_rule(
    rule: object, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gains(monkeypatch, tmp_path, 1.5)
    report = export(model, rule)
    assert report.plan.rewrites == (PARAMETRIC_RELUS,)
    assert "PRelu" not in operators(tmp_path / "small.onnx")
    assert f"{PARAMETRIC_RELUS} make the network 1.50 times as fast, at no loss" in report.notes
    if rule is None:
        x = {"x": np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)}
        np.testing.assert_allclose(run(tmp_path / "small.onnx", x)[0], run(model, x)[0], atol=1e-5)
        assert report.before.macs == (report.after and report.after.macs)


def test_a_rewrite_that_is_not_faster_is_not_made(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gains(monkeypatch, tmp_path, 1.02)
    assert export(model, Rank(3)).plan.rewrites == ()
    assert "PRelu" in operators(tmp_path / "small.onnx")


def test_without_the_clock_none_is_made(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gains(monkeypatch, tmp_path, 1.5)
    assert export(model, Rank(3), run=False).plan.rewrites == ()


@pytest.mark.slow
def test_a_saved_plan_repeats_the_rewrites(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gains(monkeypatch, tmp_path, 1.5)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(export(model, Rank(3)).plan.to_json()))
    gains(monkeypatch, tmp_path, 1.0)
    report = export(model, SavedPlan(plan), run=False, name="again.onnx")
    assert report.plan.rewrites == (PARAMETRIC_RELUS,)
    assert operators(tmp_path / "again.onnx") == operators(tmp_path / "small.onnx")


@pytest.mark.parametrize(
    ("rewrites", "message"), [(["magic"], "unknown rewrite 'magic'"), ("x", "must be a list"), ([1], "must be a list")]
)
def test_unknown_rewrites_of_a_plan_are_refused(model: Path, tmp_path: Path, rewrites: object, message: str) -> None:
    plan = {"format": "trp-plan", "version": 4, "rule": "", "layers": [], "rewrites": rewrites}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(LoadError, match=message):
        export(model, SavedPlan(tmp_path / "plan.json"), run=False)


def test_the_command_says_what_it_rewrote(
    trp: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gains(monkeypatch, tmp_path, 1.5)
    outcome = trp("net.onnx", "--calib", "none", "--budget", "0.1", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert f"note: rewritten without loss: 1 {PARAMETRIC_RELUS}" in outcome.out
