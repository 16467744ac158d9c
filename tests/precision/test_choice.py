"""Which form ships, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from trp_export.bench import Measurement, Process
from trp_export.options import Calibration, MaxDrop, Options
from trp_export.precision.convert import Parity, Variant
from trp_export.variants import LEAST_AGREEMENT, MOST_DIVERGENCE, choose, remarks
from trp_export.verify import Score

BEST = Options(rule=None, calibration=Calibration(Path("images")), best=True)
INT8 = Options(rule=None, calibration=Calibration(Path("images")), precision="int8")


def variant(
    precision: str,
    ms: float,
    low_rank: bool = True,
    agreement: float = 1.0,
    drop: float = 0.0,
    refused: str | None = None,
) -> Variant:
    rng = np.random.default_rng(0)
    runs = (Process(i, 1.0, 0, 0, tuple(int(ms * 1e6 * rng.lognormal(0, 0.01)) for _ in range(30))) for i in range(10))
    measurement = Measurement(precision, "0" * 64, 1000, tuple(runs), None, {})
    file = None if refused else Path(f"{precision}.onnx")
    parity = None if precision == "fp32" else Parity(100, agreement, 1e-3)
    return Variant(precision, low_rank, file, 1000, "", parity, refused, Score(0.9, 0.9 - drop), measurement)


def chosen(options: Options, *variants: Variant) -> str:
    forms = choose(variants, options)
    assert forms is not None
    return forms.chosen.name


def test_the_fastest_ships_where_it_is_near_enough() -> None:
    fp32, fp16 = variant("fp32", 2.0), variant("fp16", 5.0)
    assert chosen(BEST, fp32, fp16, variant("int8", 1.0)) == "low rank, int8"
    assert chosen(BEST, fp32, fp16, variant("int8", 1.0, agreement=LEAST_AGREEMENT - 0.01)) == "low rank, fp32"
    assert chosen(BEST, fp32, fp16, variant("int8", 1.0, refused="no")) == "low rank, fp32"
    assert chosen(BEST, fp32, fp16, variant("int8", 2.2)) == "low rank, fp32"
    assert chosen(BEST, fp32, variant("fp16", 0.5), variant("int8", 1.0)) == "low rank, fp16"


def test_without_classes_divergence_decides() -> None:
    fp32, int8 = variant("fp32", 2.0), variant("int8", 1.0)
    assert chosen(BEST, fp32, replace(int8, parity=Parity(100, None, MOST_DIVERGENCE / 2))) == "low rank, int8"
    assert chosen(BEST, fp32, replace(int8, parity=Parity(100, None, MOST_DIVERGENCE * 2))) == "low rank, fp32"


def test_int8_alone_is_measured_and_not_shipped() -> None:
    forms = choose((variant("fp32", 2.0), variant("int8", 1.0), variant("int8", 0.5, low_rank=False)), BEST)
    assert forms is not None
    assert forms.chosen.low_rank
    assert any("ship int8 alone" in remark for remark in remarks(forms))


def test_no_word_against_low_rank_where_it_is_faster() -> None:
    forms = choose((variant("fp32", 2.0), variant("int8", 1.0), variant("int8", 1.5, low_rank=False)), INT8)
    assert forms is not None
    assert list(remarks(forms)) == []


def test_a_slower_variant_is_called_slower() -> None:
    forms = choose((variant("fp32", 2.0), variant("int8", 3.0)), INT8)
    assert forms is not None
    assert forms.chosen.precision == "int8"
    assert any("SLOWER than fp32" in remark for remark in remarks(forms))


def test_the_limit_of_max_drop_holds_for_the_shipped_form() -> None:
    rule = MaxDrop(1.0)
    best = Options(rule=rule, calibration=BEST.calibration, best=True, evaluate=lambda path: 1.0)
    asked = Options(rule=rule, calibration=BEST.calibration, precision="int8", evaluate=lambda path: 1.0)
    fp32, far, near = variant("fp32", 2.0), variant("int8", 1.0, drop=0.011), variant("int8", 1.0, drop=0.009)
    assert chosen(best, fp32, far) == "low rank, fp32"
    assert chosen(best, fp32, near) == "low rank, int8"
    forms = choose((fp32, far), asked)
    assert forms is not None
    assert forms.chosen is fp32
    assert "1.10 pp" in (forms.missed or "")
    assert chosen(asked, fp32, near) == "low rank, int8"


def test_nothing_is_chosen_where_nothing_was_asked_for() -> None:
    assert choose((), Options()) is None
