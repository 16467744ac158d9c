"""The headline says what the evidence shows, and nothing that the network does not have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reports
from reports import LAYERS, make_report

from trp_export.metrics.score import Score, Unit, amount, change, of_images, points
from trp_export.report.document import Report
from trp_export.report.page.summary import compared
from trp_export.report.wording import change_in, headline
from trp_export.runtime.distance import Distance
from trp_export.verify import CalibrationAgreement
from trp_export.verify.evidence import CALIBRATION
from trp_export.verify.layers import LayerProof


def with_evidence(score: Score | None = None, seen: CalibrationAgreement | None = None) -> Report:
    report = make_report(LAYERS)
    assert report.deviation is not None
    return replace(report, deviation=replace(report.deviation, score=score, seen=seen))


NOISE = with_evidence()
NO_CLASSES = with_evidence(seen=CalibrationAgreement(64, "calibration", Distance(0.012, 0.1), None))
CLASSES = with_evidence(seen=CalibrationAgreement(64, "calibration", Distance(0.012, 0.1), 0.95))
UNLABELLED = with_evidence(reports.UNLABELLED)
LABELLED = with_evidence(reports.LABELLED)
DETECTIONS = with_evidence(Score("map", "mAP", 0.387, 0.381, images=64, error=0.004))
SAME_DETECTIONS = with_evidence(
    Score("map", "mAP against the original's detections", 1.0, 0.93, images=64, error=0.004, labelled=False)
)
PICTURES = with_evidence(
    Score("psnr", "PSNR to the original's output", 100.0, 52.13, unit="dB", images=16, labelled=False)
)
TEXTS = with_evidence(Score("sequences", "same text", 1.0, 0.97, images=80, labelled=False))
FUNCTION = with_evidence(Score("measure.py:worth", "worth", 12.5, 12.25, unit=""))


@pytest.mark.parametrize(
    ("report", "ending"),
    [
        (NOISE, "its outputs on noise moved by 4% (relative L2)."),
        (NO_CLASSES, "moved by 1.2% (relative L2)."),
        (CLASSES, "its predicted class stays the same on 95.00% of the 64 images it was fitted to."),
        (UNLABELLED, "its predicted class stays the same on 98.00% of 500 images."),
        (LABELLED, "its top-1 accuracy changes from 91.70% to 90.90% on 500 images."),
        (DETECTIONS, "its mAP changes from 38.70% to 38.10% on 64 images."),
        (SAME_DETECTIONS, "its mAP against the original's detections is 93.00% on 64 images."),
        (PICTURES, "its PSNR to the original's output is 52.13 dB on 16 images."),
        (TEXTS, "its text stays the same on 97.00% of 80 images."),
        (FUNCTION, "its worth changes from 12.5 to 12.25."),
    ],
)
def test_headline_ends_with_the_best_evidence(report: Report, ending: str) -> None:
    assert headline(report).endswith(ending)


@pytest.mark.parametrize("report", [NOISE, NO_CLASSES, DETECTIONS, SAME_DETECTIONS, PICTURES, TEXTS, FUNCTION])
def test_no_class_is_mentioned_if_the_outputs_hold_none(report: Report) -> None:
    assert "class" not in headline(report)
    assert not any("class" in row.what for row in compared(report))


@pytest.mark.parametrize(
    ("report", "row"),
    [
        (LABELLED, ("top-1 accuracy, 500 images", "91.70%", "90.90%", "-0.80 ± 0.63 pp")),
        (UNLABELLED, ("same class, 500 images", "", "98.00%", "± 0.63 pp")),
        (PICTURES, ("PSNR to the original's output, 16 images", "", "52.13 dB", "")),
        (FUNCTION, ("worth", "12.5", "12.25", "-0.25")),
    ],
)
def test_compared_names_the_metric_and_its_change(report: Report, row: tuple[str, ...]) -> None:
    assert row in [(found.what, found.before, found.after, found.ratio) for found in compared(report)]


@pytest.mark.parametrize(
    ("value", "unit", "text", "moved"),
    [(0.387, "%", "38.70%", "+1.30 ± 0.50 pp"), (30.0, "dB", "30.00 dB", "+0.01 ± 0.01 dB")],
)
def test_amounts_and_changes_have_the_unit_of_the_metric(value: float, unit: Unit, text: str, moved: str) -> None:
    assert amount(value, unit) == text
    assert change(value, value + 0.013, 0.005, unit) == moved


@pytest.mark.parametrize(
    ("before", "after", "error", "text"),
    [
        (0.9, 0.9, 0.0, "no change"),
        (0.9, 0.9, None, "no change"),
        (0.9, 0.9, 1e-6, "0.00 ± < 0.01 pp"),
        (0.9, 0.899999, 0.004, "0.00 ± 0.40 pp"),
        (0.9, 0.91, 0.0, "+1.00 pp"),
    ],
)
def test_change_never_shows_an_error_of_nothing(before: float, after: float, error: float | None, text: str) -> None:
    assert change(before, after, error, "%") == text


@pytest.mark.parametrize(
    ("share", "images", "text"),
    [
        (1.0, 128, "all 128"),
        (0.98, 500, "98.00%"),
        (0.9999, 10000, "99.99%"),
        (1 - 1 / 50000, 50000, "49,999 of 50,000"),
    ],
)
def test_whole_number_of_images_that_agree_is_called_all(share: float, images: int, text: str) -> None:
    assert of_images(share, images) == text


def test_headline_calls_all_images_all_and_no_change_no_change() -> None:
    fitted = CalibrationAgreement(64, "calibration", Distance(0.012, 0.1), 1.0)
    held_out = replace(fitted, kind="held-out", images=16)
    still = replace(fitted, top1=None, distance=Distance(0.0, 0.0))
    assert headline(with_evidence(seen=fitted)).endswith("stays the same on all 64 images it was fitted to.")
    assert headline(with_evidence(seen=held_out)).endswith("stays the same on all 16 held-out images.")
    assert headline(with_evidence(seen=still)).endswith("its outputs on the 64 images it was fitted to did not move.")
    same = replace(reports.UNLABELLED, after=1.0)
    assert headline(with_evidence(same)).endswith("its predicted class stays the same on all 500 images.")


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
    outcome = "No layer of net gains under this rule: its graph was cleaned up"
    assert headline(report).startswith(outcome)
    assert "times as fast here" in headline(report)
    assert headline(replace(report, after=None)) == "No layer of net gains under this rule."


@pytest.mark.parametrize(
    ("relative", "text"),
    [
        *((0.0, "none"), (2e-7, "less than 0.01%"), (0.0123, "1.2%"), (0.25, "25%"), (9999.0, "9,999x")),
        *((value, "more than 10,000x") for value in (1e4, float("inf"), float("nan"))),
    ],
)
def test_change_in_writes_two_digits(relative: float, text: str) -> None:
    assert change_in(relative) == text


def test_a_loss_of_a_users_own_unit_keeps_its_digits() -> None:
    assert points(0.00214, "") == "0.00214"
    assert points(0.5031, "%") == "0.5 pp"
