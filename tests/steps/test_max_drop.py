"""What --eval measures and what --max-drop chooses, against onnxruntime asked directly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Command, files
from hypothesis import given
from hypothesis import strategies as st
from models import CONV_NET, build, run, save
from onnx import numpy_helper
from PIL import Image

from trp_export import Benchmark, Images, MaxDrop, Options, Rank, compress
from trp_export.errors import LoadError, OptionError
from trp_export.inputs.images import load_images
from trp_export.metrics.classes import Classes, labels_of, top1
from trp_export.options import Calibration, PrecisionChoice, Tuning
from trp_export.planning import frontier
from trp_export.rules import Macs, Minimise, Params, Rule, Speedup

COUNT = 240
QUIET = Benchmark(run=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A network of full rank, so that every rank that is dropped is missed."""
    proto = build()
    rng = np.random.default_rng(1)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) > 1:
            array = rng.standard_normal(tensor.dims).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return save(proto, tmp_path / "model.onnx")


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that tries at most five networks."""
    monkeypatch.setattr(frontier, "MOST", 5)


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((COUNT, 3, 12, 12)).astype(np.float32)


@pytest.fixture
def labels(model: Path, inputs: np.ndarray) -> np.ndarray:
    """The network's own classes, one in five wrong."""
    found = classes(model, inputs)
    return np.where(np.arange(COUNT) % 5 == 0, (found + 1) % 10, found)


def classes(model: Path, inputs: np.ndarray) -> np.ndarray:
    return np.asarray(run(model, {"image": inputs})[0].argmax(axis=1))


def store(path: Path, inputs: np.ndarray, labels: np.ndarray | None = None) -> Images:
    if labels is None:
        np.savez(path, images=inputs)
    else:
        np.savez(path, images=inputs, labels=labels)
    return Images(path)


def test_accuracy_and_its_error_are_those_of_the_files(
    model: Path, inputs: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    images = store(tmp_path / "eval.npz", inputs, labels)
    report = compress(
        model,
        Options(
            Rank(6), images=images, benchmark=QUIET, output=tmp_path / "small.onnx", calibration=Calibration("none")
        ),
    )
    found = report.deviation.score if report.deviation else None
    assert found is not None
    right, still = classes(model, inputs) == labels, classes(tmp_path / "small.onnx", inputs) == labels
    assert found.before == right.mean() == 0.8
    assert found.after == still.mean() != right.mean()
    assert found.error == pytest.approx(np.std(still.astype(float) - right) / np.sqrt(COUNT))
    assert found.remark.startswith(f"{(right & ~still).sum()} of {COUNT} images were right and are wrong now")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_the_error_is_that_of_the_mean_change(pairs: list[tuple[bool, bool]]) -> None:
    before, after = np.array(pairs).T
    metric = Classes("top1", np.ones(len(pairs), dtype=np.int64))
    found = metric.score(*([np.array([int(hit)]) for hit in hits] for hits in (before, after)))
    assert (found.before, found.after) == (before.mean(), after.mean())
    assert found.error == pytest.approx(np.std(after.astype(float) - before) / np.sqrt(len(pairs)), abs=1e-12)


def test_without_labels_the_original_is_right(model: Path, inputs: np.ndarray, tmp_path: Path) -> None:
    images = store(tmp_path / "eval.npz", inputs)
    report = compress(
        model,
        Options(
            Rank(6), images=images, benchmark=QUIET, output=tmp_path / "small.onnx", calibration=Calibration("none")
        ),
    )
    found = report.deviation.score if report.deviation else None
    same = (classes(model, inputs) == classes(tmp_path / "small.onnx", inputs)).mean()
    assert found is not None
    assert (found.what, found.before, found.after, found.labelled) == ("same class", 1.0, same, False)
    assert found.remark == f"{round((1 - same) * COUNT)} of {COUNT} images change their class"


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 1])
def test_numbers_of_classes_are_evaluated_as_classes(
    model: Path, inputs: np.ndarray, labels: np.ndarray, tmp_path: Path, keep: int
) -> None:
    proto = onnx.load(model)
    output = proto.graph.output[0].name
    proto.graph.node.append(onnx.helper.make_node("ArgMax", [output], ["label"], axis=1, keepdims=keep))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, None))
    save(proto, tmp_path / "label.onnx")
    for images in (store(tmp_path / "plain.npz", inputs), store(tmp_path / "labelled.npz", inputs, labels)):
        reports = [
            compress(
                file,
                Options(
                    Rank(6),
                    images=images,
                    benchmark=QUIET,
                    output=tmp_path / f"small.{file.name}",
                    calibration=Calibration("none"),
                ),
            )
            for file in (model, tmp_path / "label.onnx")
        ]
        scores = [report.deviation.score for report in reports if report.deviation and report.deviation.score]
        assert replace(scores[0], details=()) == scores[1]  # One class for each image leaves no top-5.
    with pytest.raises(LoadError, match="the network has classes 0 to 9"):
        compress(
            tmp_path / "label.onnx",
            Options(
                Rank(6),
                images=store(tmp_path / "bad.npz", inputs, labels + 10),
                benchmark=QUIET,
                output=tmp_path / "x.onnx",
                calibration=Calibration("none"),
            ),
        )


def test_answers_that_are_not_finite_are_of_no_class() -> None:
    outputs = np.array([[1, 2, 0], [np.nan, 1, 0], [0, np.inf, 0]], dtype=np.float32)
    assert top1(outputs).tolist() == [1, -1, -1]


@pytest.mark.parametrize(("by", "points"), [("macs", 2.0), ("params", 20.0)])
def test_the_smallest_that_holds_is_chosen(
    short_search: None,
    model: Path,
    inputs: np.ndarray,
    labels: np.ndarray,
    tmp_path: Path,
    by: Minimise,
    points: float,
) -> None:
    images = store(tmp_path / "eval.npz", inputs, labels)
    rule = MaxDrop(points, by)
    report = compress(
        model,
        Options(rule, images=images, benchmark=QUIET, output=tmp_path / "small.onnx", calibration=Calibration("none")),
    )
    seen = report.frontier
    assert seen is not None
    assert report.after is not None
    chosen = seen.points[seen.chosen]
    accuracy = (classes(tmp_path / "small.onnx", inputs) == labels).mean()
    assert chosen.after == accuracy >= seen.limit == 0.8 - points / 100
    assert (chosen.macs, chosen.params) == (report.after.macs, report.after.params)
    assert chosen.reached == getattr(report.before, by) / getattr(report.after, by)
    assert all(point.holds == (point.after >= seen.limit) for point in seen.points)
    assert all(point.reached <= chosen.reached for point in seen.points if point.holds)
    assert json.loads((tmp_path / "small.json").read_text())["frontier"]["chosen"] == seen.chosen


@pytest.mark.slow
def test_a_second_search_writes_the_same_model(
    model: Path, inputs: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    images = store(tmp_path / "eval.npz", inputs, labels)
    for name in ("one.onnx", "two.onnx"):
        compress(
            model,
            Options(
                MaxDrop(5), images=images, benchmark=QUIET, output=tmp_path / name, calibration=Calibration("none")
            ),
        )
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_a_search_is_judged_by_a_measure_of_ones_own(short_search: None, model: Path, tmp_path: Path) -> None:
    original = size(model)

    def closeness(path: Path) -> float:
        """Rises with the size of the file: an oracle without a network."""
        return min(1.0, size(path) / original)

    rule = MaxDrop(30)
    report = compress(
        model,
        Options(
            rule, evaluate=closeness, benchmark=QUIET, output=tmp_path / "small.onnx", calibration=Calibration("none")
        ),
    )
    assert report.frontier is not None
    assert report.deviation is not None
    assert report.deviation.score is not None
    assert report.frontier.what == "score"
    assert report.deviation.score.after == closeness(tmp_path / "small.onnx") >= 0.7
    assert report.to_json()["options"]["evaluate"].endswith("closeness")


def size(path: Path) -> int:
    return sum(numpy_helper.to_array(tensor).size for tensor in onnx.load(path).graph.initializer)


@pytest.mark.parametrize(
    ("by", "rule", "by_latency"),
    [("macs", Macs(2), False), ("params", Params(2), False), ("latency", Speedup(2), True)],
)
def test_each_budget_is_asked_for_by_its_own_rule(by: Minimise, rule: Rule, by_latency: bool) -> None:
    assert MaxDrop(1, by).budget(2) == rule
    assert (
        Options(MaxDrop(1, by), evaluate=lambda path: 1.0, calibration=Calibration("none")).effective_rule.needs_latency
        == by_latency
    )
    assert rule.needs_latency == by_latency


def refuse(model: Path, options: Options, folder: Path, wanted: str) -> None:
    """The command ends with this error and leaves the folder as it was."""
    before = files(folder)
    with pytest.raises(OptionError, match=wanted):
        compress(model, replace(options, benchmark=QUIET, output=folder / "small.onnx"))
    assert files(folder) == before


def test_nothing_is_written_where_nothing_holds(model: Path, tmp_path: Path) -> None:
    def perfect(path: Path) -> float:
        return 1.0 if path.samefile(model) else 0.5

    wanted = r"--max-drop 1 is out of reach: .* loses 50.00 pp of score"
    refuse(model, Options(MaxDrop(1), evaluate=perfect, calibration=Calibration("none")), tmp_path, wanted)


def test_a_score_of_nothing_is_no_limit(model: Path, inputs: np.ndarray, tmp_path: Path) -> None:
    """Any network loses nothing of 0: the labels belong to something else."""
    wrong = store(tmp_path / "eval.npz", inputs, (classes(model, inputs) + 5) % 10)
    wanted = "original's top-1 accuracy is 0, so nothing is left to lose"
    refuse(model, Options(MaxDrop(1), images=wrong, calibration=Calibration("none")), tmp_path, wanted)


@pytest.fixture
def judged_by_precision(model: Path, inputs: np.ndarray, tmp_path: Path) -> Callable[[PrecisionChoice], Options]:
    """Searches in a precision on a measure that finds int8 useless and float perfect."""
    images = store(tmp_path / "calib.npz", inputs[:64])

    def options(precision: PrecisionChoice) -> Options:
        return Options(
            MaxDrop(10),
            evaluate=lambda path: 0.2 if "int8" in path.name else 1.0,
            calibration=Calibration(images.path),
            precision=precision,
            benchmark=Benchmark(keep_slow_pairs=True),
            dry_run=True,
        )

    return options


def test_what_int8_loses_is_said_of_int8(
    short_search: None, model: Path, judged_by_precision: Callable[[PrecisionChoice], Options]
) -> None:
    wanted = r"out of reach in int8: .* loses 80.00 pp of score.\nAllow more, or leave out --precision int8; nothing"
    with pytest.raises(OptionError, match=wanted):
        compress(model, judged_by_precision("int8"))


def test_a_float_model_holds_where_int8_is_refused(
    short_search: None,
    model: Path,
    judged_by_precision: Callable[[PrecisionChoice], Options],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trp_export.precision.convert.LARGEST_DIVERGENCE", -1.0)
    found = compress(model, judged_by_precision("int8")).frontier
    assert found is not None
    assert {(point.precision, point.after, point.holds) for point in found.points} == {("fp32", 1.0, True)}


def test_the_best_may_be_a_float_model(
    short_search: None, model: Path, judged_by_precision: Callable[[PrecisionChoice], Options]
) -> None:
    found = compress(model, judged_by_precision("best")).frontier
    assert found is not None
    assert {(point.precision, point.after, point.holds) for point in found.points} == {("fp32", 1.0, True)}


def test_a_network_without_layers_has_nothing_to_search(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }'
    relu = save(build(text), tmp_path / "relu.onnx")
    with pytest.raises(OptionError, match="no plan makes this network smaller"):
        compress(
            relu,
            Options(
                MaxDrop(1), evaluate=lambda path: 1.0, output=tmp_path / "small.onnx", calibration=Calibration("none")
            ),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuned_score", "note"),
    [(0.5, "not tuned: with tuning more than 10 pp were lost"), (0.99, "after tuning 1 pp of 10 are lost")],
)
def test_tuning_is_for_the_last_and_left_out_where_it_costs(
    model: Path,
    inputs: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tuned_score: float,
    note: str,
) -> None:
    monkeypatch.setattr(frontier, "MOST", 2)
    images = store(tmp_path / "calib.npz", inputs)
    judged: list[str] = []

    def moody(path: Path) -> float:
        """Everything is perfect but the first tuned result."""
        judged.append(path.name)
        return tuned_score if judged.count("tuned.onnx") == 1 and path.name == "tuned.onnx" else 1.0

    for name, tuning in (("plain.onnx", None), ("tuned.onnx", Tuning(steps=2))):
        calibration = Calibration(images.path, tune=tuning)
        options = Options(MaxDrop(10), evaluate=moody, calibration=calibration, benchmark=QUIET, output=tmp_path / name)
        report = compress(model, options)
    assert any(note in one for one in report.notes)
    assert (judged.count("plain.onnx"), judged.count("tuned.onnx")) == (1, 1 + (tuned_score == 0.5))
    same = (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "tuned.onnx").read_bytes()
    assert same == (tuned_score == 0.5)


@pytest.mark.parametrize("score", [38.7, -0.1, float("nan")])
def test_a_measure_that_is_no_share(model: Path, tmp_path: Path, score: float) -> None:
    with pytest.raises(OptionError, match="must return a share of 1"):
        compress(
            model,
            Options(
                Rank(2), evaluate=lambda path: score, output=tmp_path / "small.onnx", calibration=Calibration("none")
            ),
        )


def test_a_dry_run_searches_and_writes_nothing(
    trp: Command, short_search: None, model: Path, inputs: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    store(tmp_path / "eval.npz", inputs, labels)
    before = files(tmp_path)
    outcome = trp("model.onnx", "--max-drop", "10", "--eval", "eval.npz", "--dry-run", "--no-bench")
    assert outcome.code == 0, outcome.err
    assert "tried: at most 10 pp below 80.00%" in outcome.out
    assert "chosen" in outcome.out
    assert files(tmp_path) == before


@pytest.mark.slow
def test_the_same_images_twice_are_noted(
    trp: Command, model: Path, inputs: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    store(tmp_path / "eval.npz", inputs, labels)
    outcome = trp(
        *("model.onnx", "--max-drop", "10", "--eval", "eval.npz", "--calib", "eval.npz"),
        *("--no-bench", "--report", "page.html"),
    )
    assert outcome.code == 0, outcome.err
    assert "--eval and --calib are the same images" in outcome.out
    assert "at most 10 pp below 80.00%" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda labels: labels + 1, 3, "labels run from 1 to 10; the network has classes 0 to 9"),
        (lambda labels: labels - 1, 3, "labels run from -1 to 8"),
        (lambda labels: labels[1:], 3, "240 whole numbers are needed"),
        (lambda labels: labels + 0.5, 3, "240 whole numbers are needed"),
        (lambda labels: np.eye(10)[labels], 3, "240 whole numbers are needed"),
    ],
)
def test_bad_labels(
    refuses: Command,
    model: Path,
    inputs: np.ndarray,
    tmp_path: Path,
    change: Callable[[np.ndarray], np.ndarray],
    code: int,
    message: str,
) -> None:
    store(tmp_path / "eval.npz", inputs, change(np.arange(COUNT) % 10))
    assert message in refuses(code, "model.onnx", "--max-drop", "1", "--eval", "eval.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-drop", "1"], "a limit on the drop needs a measure of what is lost; give --eval PATH"),
        (["--max-drop", "-1", "--eval", "e.npz"], "--max-drop must lie between 0 and 100 points, not -1"),
        (["--max-drop", "nan", "--eval", "e.npz"], "--max-drop must lie between 0 and 100 points, not nan"),
        (["--max-drop", "1", "--macs", "2", "--eval", "e.npz"], "--macs and --max-drop contradict each other"),
        (["--macs", "2", "--minimise", "params"], "--minimise needs --max-drop POINTS"),
    ],
)
def test_bad_options(refuses: Command, model: Path, arguments: list[str], message: str) -> None:
    assert message in refuses(2, "model.onnx", *arguments)


def test_max_drop_refuses_classes_of_a_network_that_answers_maps(
    refuses: Command, inputs: np.ndarray, tmp_path: Path
) -> None:
    head = CONV_NET[CONV_NET.index("    f = GlobalAveragePool") : CONV_NET.rindex("}")]
    maps = CONV_NET.replace(head, "").replace("float[N, 10] logits", "float[N, 16, 6, 6] e")
    save(build(maps.replace(", float[10, 16] fc__weight, float[10] fc__bias", "")), tmp_path / "maps.onnx")
    store(tmp_path / "eval.npz", inputs)
    message = refuses(2, "maps.onnx", "--max-drop", "1", "--eval", "eval.npz", "--metric", "top1")
    assert "need one row of class scores for each image; the outputs for 4 images are e [4, 16, 6, 6]" in message


@pytest.mark.parametrize(
    ("names", "known", "wanted"),
    [
        ("cab", (), [0, 1, 2]),
        ("cab", ("x", "c", "b"), [0, 1, 2]),
        ("cb", ("a", "c", "b"), [2, 1]),
        ("cb", (), None),
        ("xyz", ("a", "b", "c", "d"), None),
    ],
    ids=["all there", "names of something else", "by the checkpoint's names", "too few to tell", "other classes"],
)
def test_folders_are_classes(tmp_path: Path, names: str, known: tuple[str, ...], wanted: list[int] | None) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((12, 12, 3), dtype=np.uint8)).save(tmp_path / name / "image.png")
    labels, notes = labels_of(load_images(tmp_path), count=max(3, len(known)), names=known)
    assert (None if labels is None else labels.tolist()) == wanted
    assert any("it is not known which folder" in note for note in notes) == (wanted is None)
