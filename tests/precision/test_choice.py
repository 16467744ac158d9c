"""Which form ships, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trp_export.bench import Measurement, Process
from trp_export.metrics.score import Score
from trp_export.options import Calibration, Options
from trp_export.precision.convert import Parity, Variant
from trp_export.precision.forms import Precisions
from trp_export.rules import MaxDrop
from trp_export.steps.precisions import (
    LEAST_AGREEMENT,
    MOST_DIVERGENCE,
    choose_precision,
    judged_precisions,
    outputs_as_shipped,
    precision_remarks,
)

BEST = Options(rule=None, calibration=Calibration(Path("images")), precision="best")
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
    return Variant(
        precision,
        low_rank,
        file,
        1000,
        "",
        parity,
        refused,
        Score("top1", "top-1 accuracy", 0.9, 0.9 - drop),
        measurement,
    )


def chosen(options: Options, *variants: Variant) -> str:
    forms = choose_precision(variants, options)
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
    forms = choose_precision((variant("fp32", 2.0), variant("int8", 1.0), variant("int8", 0.5, low_rank=False)), BEST)
    assert forms is not None
    assert forms.chosen.low_rank
    assert any("ship int8 alone" in remark for remark in precision_remarks(forms))


def test_no_word_against_low_rank_where_it_is_faster() -> None:
    forms = choose_precision((variant("fp32", 2.0), variant("int8", 1.0), variant("int8", 1.5, low_rank=False)), INT8)
    assert forms is not None
    assert list(precision_remarks(forms)) == []


def test_a_slower_variant_is_called_slower() -> None:
    forms = choose_precision((variant("fp32", 2.0), variant("int8", 3.0)), INT8)
    assert forms is not None
    assert forms.chosen.precision == "int8"
    assert any("SLOWER than fp32" in remark for remark in precision_remarks(forms))


def test_nothing_is_said_of_what_a_single_process_cannot_tell() -> None:
    made = (variant("fp32", 2.0), variant("int8", 3.0), variant("int8", 0.5, low_rank=False))
    once = (
        replace(one, latency=replace(one.latency, processes=one.latency.processes[:1])) for one in made if one.latency
    )
    forms = choose_precision(tuple(once), INT8)
    assert forms is not None
    assert list(precision_remarks(forms)) == []


def test_the_limit_of_max_drop_holds_for_the_shipped_form() -> None:
    rule = MaxDrop(1.0)
    best = Options(rule=rule, calibration=BEST.calibration, precision="best", evaluate=lambda path: 1.0)
    asked = Options(rule=rule, calibration=BEST.calibration, precision="int8", evaluate=lambda path: 1.0)
    fp32, far, near = variant("fp32", 2.0), variant("int8", 1.0, drop=0.011), variant("int8", 1.0, drop=0.009)
    assert chosen(best, fp32, far) == "low rank, fp32"
    assert chosen(best, fp32, near) == "low rank, int8"
    forms = choose_precision((fp32, far), asked)
    assert forms is not None
    assert forms.chosen is fp32
    assert "1.1 pp" in (forms.rejected_because or "")
    assert chosen(asked, fp32, near) == "low rank, int8"


@pytest.mark.parametrize("options", [BEST, INT8])
def test_a_form_that_surely_loses_more_than_a_point_beside_its_float_model_does_not_ship(options: Options) -> None:
    fp32, near, far = (variant(name, ms, drop=drop) for name, ms, drop in LOSSES)
    assert chosen(options, fp32, near) == "low rank, int8"
    assert chosen(options, fp32, far) == "low rank, fp32"
    assert chosen(options, fp32, with_score(far, error=0.011)) == "low rank, int8"
    assert chosen(options, fp32, with_score(far, unit="dB")) == "low rank, int8"
    assert chosen(options, fp32, with_score(far, labelled=False)) == "low rank, int8"
    forms = choose_precision((fp32, far), INT8)
    assert forms is not None
    wanted = "int8: it loses 2 pp of top-1 accuracy beside the float model, and 1 pp is allowed"
    assert forms.rejected_because == wanted


LOSSES = (("fp32", 2.0, 0.05), ("int8", 1.0, 0.059), ("int8", 1.0, 0.07))


def with_score(one: Variant, **changes: object) -> Variant:
    assert one.judged is not None
    return replace(one, judged=replace(one.judged, **changes))  # type: ignore[arg-type]


def test_no_advice_to_ship_int8_alone_where_it_loses_too_much() -> None:
    alone = variant("int8", 0.5, low_rank=False, drop=0.02)
    forms = choose_precision((variant("fp32", 2.0), variant("int8", 1.0), alone), INT8)
    assert forms is not None
    assert list(precision_remarks(forms)) == []


def test_what_may_not_ship_is_said_with_the_reason() -> None:
    fp32, far = variant("fp32", 2.0), variant("int8", 1.0, agreement=0.98)
    forms = choose_precision((fp32, far, variant("int8", 1.0, refused="no layer can")), BEST)
    assert forms is not None
    assert forms.rejected_because is None
    assert list(precision_remarks(forms))[:2] == [
        "low rank, int8 may not ship: it keeps the class on 98.0% of 100 images, and 99% is asked for",
        "low rank, int8 may not ship: no layer can",
    ]


def test_plans_are_judged_in_the_precision_that_ships_and_for_the_best_in_that_which_loses_most_first() -> None:
    """Else the float model would use up all that --max-drop allows, and int8 could never ship."""
    asked = (BEST, INT8, replace(BEST, calibration=None), Options())
    assert [judged_precisions(one) for one in asked] == [("int8", "fp32"), ("int8",), ("fp16", "fp32"), ("fp32",)]


def test_notes_on_the_float_models_outputs_stay_where_that_ships() -> None:
    fp32, int8 = variant("fp32", 2.0), variant("int8", 1.0)
    for forms in (None, Precisions((fp32, int8), 0)):
        assert outputs_as_shipped(["1 % lost"], forms) == ("1 % lost",)
    told = "1 % lost; this is before int8"
    moved = ", which moves the outputs by 0.1 % of their variance"
    for one, more in ((int8, moved), (replace(int8, parity=None), "")):
        assert outputs_as_shipped(["1 % lost"], Precisions((fp32, one), 1)) == (told + more,)


def test_nothing_is_chosen_where_nothing_was_asked_for() -> None:
    assert choose_precision((), Options()) is None
