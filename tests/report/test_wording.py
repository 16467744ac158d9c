"""The headline says what the evidence shows, and nothing that the network does not have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reports import LAYERS, make_report

from trp_export.report.document import Report
from trp_export.report.page.summary import compared
from trp_export.report.wording import change_in, headline
from trp_export.runtime.distance import Distance
from trp_export.verify import Agreement, CalibrationAgreement, Score
from trp_export.verify.evidence import CALIBRATION
from trp_export.verify.layers import LayerProof


def with_evidence(
    agreement: Agreement | None = None, score: Score | None = None, seen: CalibrationAgreement | None = None
) -> Report:
    report = make_report(LAYERS)
    assert report.deviation is not None
    return replace(report, deviation=replace(report.deviation, agreement=agreement, score=score, seen=seen))


NOISE = with_evidence()
NO_CLASSES = with_evidence(seen=CalibrationAgreement(64, "calibration", Distance(0.012, 0.1), None))
CLASSES = with_evidence(seen=CalibrationAgreement(64, "calibration", Distance(0.012, 0.1), 0.95))
UNLABELLED = with_evidence(Agreement(500, 0.98))
LABELLED = with_evidence(Agreement(500, 0.98, 0.917, 0.909, 7, 3))
SCORE = with_evidence(score=Score(0.387, 0.381, "mAP"))


@pytest.mark.parametrize(
    ("report", "ending"),
    [
        (NOISE, "its outputs on noise moved by 4% (relative L2)."),
        (NO_CLASSES, "moved by 1.2% (relative L2)."),
        (CLASSES, "its predicted class stays the same on 95.00% of the 64 images it was fitted to."),
        (UNLABELLED, "its predicted class stays the same on 98.00% of 500 images."),
        (LABELLED, "its accuracy changes from 91.70% to 90.90% on 500 images."),
        (SCORE, "its mAP changes from 38.70% to 38.10%."),
    ],
)
def test_headline_ends_with_the_best_evidence(report: Report, ending: str) -> None:
    assert headline(report).endswith(ending)


@pytest.mark.parametrize("report", [NOISE, NO_CLASSES, SCORE])
def test_no_class_is_mentioned_if_the_outputs_hold_none(report: Report) -> None:
    assert "class" not in headline(report)
    assert not any("class" in row.what for row in compared(report))


def test_headline_names_what_was_fed_and_what_did_not_run() -> None:
    assert NOISE.deviation is not None
    deviation = replace(NOISE.deviation, inputs="the given inputs", not_run=("far",))
    assert headline(replace(NOISE, deviation=deviation)).endswith(
        "its outputs on the given inputs moved by 4% (relative L2), where far did not run."
    )
    reached = LayerProof("far", (CALIBRATION,), Distance(1e-7, 1e-7), 1e-6, 0.1, 9)
    deviation = replace(deviation, seen=NO_CLASSES.deviation and NO_CLASSES.deviation.seen, layers=(reached,))
    assert "did not run" not in headline(replace(NOISE, deviation=deviation))


def test_headline_of_a_model_without_changes() -> None:
    report = replace(make_report(LAYERS), plan=replace(make_report(LAYERS).plan, decisions=()))
    assert headline(report) == "No layer of net becomes smaller under this rule, so the model is unchanged."


@pytest.mark.parametrize(
    ("relative", "text"),
    [
        *((0.0, "0%"), (2e-7, "2e-05%"), (0.0123, "1.2%"), (0.25, "25%"), (9999.0, "9,999x")),
        *((value, "more than 10,000x") for value in (1e4, float("inf"), float("nan"))),
    ],
)
def test_change_in_writes_two_digits(relative: float, text: str) -> None:
    assert change_in(relative) == text
