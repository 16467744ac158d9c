"""The command as a whole: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Command, files
from models import CONV_NET, build, noise, operators, relative_l2, run, save
from onnx import numpy_helper

from trp_export.cli import export as cli
from trp_export.flags import entries
from trp_export.options import SECTIONS, Options
from trp_export.system.progress import Progress

RULE = ("--energy", "0.98", "--no-bench")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(build(), tmp_path / "model.onnx")


def test_an_export_writes_model_and_report_and_says_so(trp: Command, model: Path, tmp_path: Path) -> None:
    outcome = trp("model.onnx", *RULE)
    assert outcome.code == 0
    assert files(tmp_path) == {"model.onnx", "model.trp.onnx", "model.trp.json"}
    for words in ("conv1", "conv2", "fc", "parameters", "MACs"):
        assert words in outcome.out
    assert outcome.err.splitlines() == ["wrote model.trp.onnx", "wrote model.trp.json"]
    report = json.loads((tmp_path / "model.trp.json").read_text())
    assert report["schema"] == 1
    assert set(report["before"]) == set(report["after"]) == {"params", "macs", "bytes"}
    assert report["before"]["bytes"] == model.stat().st_size
    assert report["after"]["bytes"] == (tmp_path / "model.trp.onnx").stat().st_size
    keys = {"name", "op", "scheme", "rank", "full_rank", "energy", "macs_before", "macs_after", "reason"}
    assert all(keys <= set(layer) for layer in report["layers"])
    assert [layer["name"] for layer in report["layers"]] == ["conv1", "conv2", "fc"]


def test_json_on_stdout_is_the_report_and_nothing_else(trp: Command, model: Path, tmp_path: Path) -> None:
    outcome = trp("model.onnx", *RULE, "--json")
    assert json.loads(outcome.out) == json.loads((tmp_path / "model.trp.json").read_text())


def test_quiet_says_nothing(trp: Command, model: Path) -> None:
    outcome = trp("model.onnx", *RULE, "-q")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


@pytest.mark.parametrize("target", ["plan.json", "in.npz"])
@pytest.mark.parametrize("option", ["--report", "--calib-stats"])
def test_a_plan_and_inputs_are_never_written_over(
    option: str, target: str, trp: Command, model: Path, tmp_path: Path
) -> None:
    plan = {"format": "trp-plan", "version": 1, "layers": [{"name": "conv2", "scheme": None, "rank": None}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    np.savez(tmp_path / "in.npz", image=np.zeros((1, 3, 12, 12), np.float32))
    before = (tmp_path / target).read_bytes()
    outcome = trp("model.onnx", "--plan", "plan.json", "--input", "in.npz", "--no-bench", option, target)
    assert outcome.code == 2
    assert (tmp_path / target).read_bytes() == before


def test_a_report_beside_the_result_may_be_renewed(trp: Command, model: Path, tmp_path: Path) -> None:
    assert trp("model.onnx", "--rank", "2", "--no-bench", "-o", "o.onnx").code == 0
    assert trp("model.onnx", "--plan", "o.json", "--no-bench", "-o", "o.onnx").code == 0


def test_a_dry_run_writes_nothing_and_its_plan_can_be_replayed(trp: Command, model: Path, tmp_path: Path) -> None:
    outcome = trp("model.onnx", "--macs", "1.5", "--dry-run", "--json")
    assert files(tmp_path) == {"model.onnx"}
    (tmp_path / "plan.json").write_text(outcome.out)
    replayed = trp("model.onnx", "--plan", "plan.json", "--no-bench", "--json")
    layers = json.loads(replayed.out)["plan"]["layers"]
    assert layers == json.loads(outcome.out)["layers"]
    again = trp("model.onnx", "--plan", "model.trp.json", "--no-bench", "--json")
    assert json.loads(again.out)["plan"]["layers"] == layers


def test_a_plan_by_hand_may_add_pairs_up(trp: Command, model: Path, tmp_path: Path) -> None:
    sums = [{"scheme": "spatial-wise", "rank": 2}, {"scheme": "input-sliced-4", "rank": 1}]
    plan = {"format": "trp-plan", "version": 2, "layers": [{"name": "conv2", "branches": sums}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    outcome = trp("model.onnx", "--plan", "plan.json", "--no-bench", "--report", "page.html")
    assert outcome.code == 0
    assert "spatial + in-4  2/48 + 1/16" in outcome.out
    report = json.loads((tmp_path / "model.trp.json").read_text())
    layer = next(layer for layer in report["layers"] if layer["name"] == "conv2")
    assert (layer["scheme"], layer["rank"], layer["added"]) == ("spatial-wise", 2, sums[1:])
    assert layer["energy"] > 1 - 1e-9  # rank 2 is all that conv2 has
    assert report["plan"]["layers"][1]["branches"] == sums
    assert "spatial-wise + input-sliced-4" in (tmp_path / "page.html").read_text()
    written = onnx.load(tmp_path / "model.trp.onnx")
    assert {"conv2.0.reduce.weight", "conv2.1.expand.weight"} <= {each.name for each in written.graph.initializer}


def test_where_no_layer_gains_the_prepared_original_is_written(trp: Command, model: Path, tmp_path: Path) -> None:
    outcome = trp("model.onnx", "--energy", "1", "--skip", "*", "--no-bench")
    assert outcome.code == 0
    assert "gains under this rule" in " ".join(outcome.out.split())
    made = tmp_path / "model.trp.onnx"
    assert "BatchNormalization" not in operators(made)
    (wanted,), (got,) = run(model, noise(build())), run(made, noise(build()))
    assert relative_l2(wanted, got) < 1e-5


def test_a_model_without_weights_goes_through(trp: Command, tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }'
    save(build(text), tmp_path / "relu.onnx")
    assert trp("relu.onnx", *RULE).code == 0
    outcome = trp("relu.onnx", "--macs", "2", "--no-bench")
    assert outcome.code == 2
    assert outcome.err == "error: --macs 2 is out of reach: the network has no layer to cut.\n"


def test_only_and_skip_go_by_name(trp: Command, model: Path) -> None:
    reasons = {
        layer["name"]: layer["reason"]
        for layer in json.loads(trp("model.onnx", *RULE, "--json", "--only", "conv*", "--skip", "*2").out)["layers"]
    }
    assert reasons["fc"] == "not among --only"
    assert reasons["conv2"] == "left out by --skip"


def test_output_and_page_go_where_they_are_told(trp: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "pages").mkdir()
    assert trp("model.onnx", *RULE, "-o", "out/small.onnx", "--report", "pages/small.html").code == 0
    assert files(tmp_path) == {
        *("model.onnx", "out", "out/small.onnx", "out/small.json", "pages", "pages/small.html"),
    }


def test_an_older_result_is_replaced_and_survives_a_failure(trp: Command, model: Path, tmp_path: Path) -> None:
    made = tmp_path / "model.trp.onnx"
    made.write_bytes(b"older")
    assert trp("model.onnx", "--energy", "2").code == 2
    assert made.read_bytes() == b"older"
    assert trp("model.onnx", *RULE).code == 0
    assert made.read_bytes() != b"older"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--energy", "0"], "--energy must be above 0 and at most 1, not 0"),
        (["--energy", "1.5"], "--energy must be above 0 and at most 1, not 1.5"),
        (["--energy", "nan"], "--energy must be above 0 and at most 1, not nan"),
        (["--energy", "much"], "'much' is not a valid float"),
        (["--rank", "0"], "--rank must be at least 1, not 0"),
        (["--rank", "2.5"], "'2.5' is not a valid integer"),
        (["--macs", "1"], "--macs must be a number above 1, not 1"),
        (["--macs", "1e9"], "--macs 1e+09 is out of reach: at the lowest ranks it is"),
        (
            ["--threshold", "2"],
            "--threshold is a share of the largest singular value, at most 1, not 2; or add --absolute",
        ),
        (["--threshold", "-1"], "--threshold must be a number above 0, not -1"),
        (["--energy", "0.9", "--rank", "3"], "--energy and --rank contradict each other"),
        (["--macs", "2", "--plan", "x.json"], "--macs and --plan contradict each other"),
        (["--energy", "0.9", "--absolute"], "--absolute needs --threshold VALUE"),
        (["--energy", "0.9", "--require-speedup", "--no-bench"], "--require-speedup needs the benchmark"),
        (["--energy", "0.9", "--threads", "0"], "--threads must be at least 1, not 0"),
        (["--energy", "0.9", "--align", "0"], "--align must be at least 1, not 0"),
        (["--energy", "0.9", "--align", "x"], "neither a whole number nor auto"),
        (["--energy", "0.9", "--scheme", "magic"], "'magic' is not one of"),
        (["--energy", "0.9", "--enrgy", "1"], "No such option"),
        (["--energy", "0.9", "--mean", "0.5"], "give --calib, --eval or --bundle"),
        (["--energy", "0.9", "--shape", "1,3,x"], "is not a shape such as 1,3,224,224"),
        (["--energy", "0.9", "--shape", "1,4,12,12"], "does not fit input image, which is (N, 3, 12, 12)"),
        (["--energy", "0.9", "--shape", "1,3"], "does not fit input image"),
        (["--energy", "0.9", "--arch", "resnet20"], "--arch is for PyTorch weights"),
        (["--energy", "0.9", "--report", "model.trp.onnx"], "is the same file as another output"),
        (["--energy", "0.9", "--report", "model.trp.json"], "is the same file as another output"),
        (["--energy", "0.9", "-o", "model.onnx"], "is the model itself"),
        (["--energy", "0.9", "-o", "model.json"], "must end in .onnx"),
    ],
)
def test_bad_options_are_refused(refuses: Command, model: Path, arguments: list[str], message: str) -> None:
    assert message in refuses(2, "model.onnx", *arguments)


def test_a_missing_argument_is_named(refuses: Command) -> None:
    assert "MODEL" in refuses(2)


def test_missing_and_unreadable_files(refuses: Command, tmp_path: Path) -> None:
    assert "nothing.onnx does not exist" in refuses(3, "nothing.onnx", *RULE)
    (tmp_path / "folder.onnx").mkdir()
    assert "folder.onnx is a folder" in refuses(3, "folder.onnx", *RULE)
    (tmp_path / "empty.onnx").touch()
    assert "empty.onnx is empty" in refuses(3, "empty.onnx", *RULE)
    (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(1000))
    assert "noise.onnx is not an ONNX model, or a damaged one" in refuses(3, "noise.onnx", *RULE)
    if os.getuid():
        save(build(), tmp_path / "secret.onnx").chmod(0)
        assert "cannot be read: Permission denied" in refuses(3, "secret.onnx", *RULE)


def test_a_truncated_file(refuses: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "half.onnx").write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    assert "half.onnx" in refuses(3, "half.onnx", *RULE)


def test_models_that_are_not_sound(refuses: Command, tmp_path: Path) -> None:
    cases = {}
    proto = build()
    proto.graph.node[0].op_type = "Convolve"
    cases["operator"] = (3, proto, "No Op registered for Convolve")
    proto = build()
    proto.opset_import[0].version = 9999
    cases["opset"] = (4, proto, "uses opset 9999; the installed onnx knows up to")
    proto = build()
    proto.opset_import[0].version = 5
    cases["old"] = (4, proto, "uses opset 5; at least 7 is needed")
    proto = build()
    del proto.opset_import[:]
    cases["none"] = (3, proto, "does not say which opset")
    proto = build()
    proto.graph.node[0].input[0] = "nowhere"
    cases["input"] = (3, proto, "fails the ONNX checker")
    proto = build()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-8]
    cases["weights"] = (3, proto, "tensor conv1.weight of shape [16, 3, 3, 3] holds")
    for name, (code, broken, message) in cases.items():
        onnx.save(broken, tmp_path / f"{name}.onnx")
        assert message in refuses(code, f"{name}.onnx", *RULE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(refuses: Command, tmp_path: Path, value: float) -> None:
    proto = build()
    (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == "conv2.weight")
    array = numpy_helper.to_array(tensor).copy()
    array[3, 2, 1, 0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    save(proto, tmp_path / "model.onnx")
    assert "conv2 has NaN or infinite weights" in refuses(3, "model.onnx", *RULE)


def test_external_data_that_is_missing_short_or_elsewhere(refuses: Command, tmp_path: Path) -> None:
    onnx.save(build(), tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(data[:-100])
    assert "w.bin is shorter than tensor" in refuses(3, "model.onnx", *RULE)
    (tmp_path / "w.bin").unlink()
    assert "external data w.bin is missing" in refuses(3, "model.onnx", *RULE)
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for location in ("../w.bin", "/etc/passwd"):
        for tensor in proto.graph.initializer:
            next(entry for entry in tensor.external_data if entry.key == "location").value = location
        (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
        assert "points outside the model's folder" in refuses(3, "model.onnx", *RULE)


def test_a_model_that_answers_infinity(refuses: Command, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 8] x) => (float[N, 8] y)
    <float[8, 8] w, float zero = {0}> { a = MatMul (x, w)  y = Div (a, zero) }"""
    save(build(text), tmp_path / "model.onnx")
    assert "answers NaN or infinity" in refuses(3, "model.onnx", *RULE)


def test_an_input_of_absurd_size(refuses: Command, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 3, H, W] x) => (float[N, M, H, W] y)
    <float[8, 3, 3, 3] w> { y = Conv (x, w) }"""
    save(build(text), tmp_path / "model.onnx")
    assert "2,147,483,648 elements" in refuses(2, "model.onnx", *RULE, "--shape", "1,3,99999,99999")


def test_plans_that_cannot_be_read_or_do_not_fit(refuses: Command, model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert "plan.json cannot be read" in refuses(3, "model.onnx", "--plan", "plan.json")
    for content, message in {
        "": "is not JSON",
        "{": "is not JSON",
        "[" * 100_000: "is nested deeper than 40",
        "[]": "holds no plan",
        '{"format": "trp-plan", "version": 1, "layers": [{"name": 3}]}': 'layer 1: "name" must be a string',
    }.items():
        plan.write_text(content)
        assert message in refuses(3, "model.onnx", "--plan", "plan.json")
    plan.write_bytes(b"\xff\xfe\x00")
    assert "is not JSON" in refuses(3, "model.onnx", "--plan", "plan.json")
    for choice, message in (
        ({"scheme": "input-sliced-3", "rank": 1}, "16 input and 16 output channels do not divide so"),
        ({"scheme": "output-sliced-999999", "rank": 1}, "do not divide so"),
        ({"scheme": "spatial-wise", "rank": 10**9}, "whose full rank is 48"),
    ):
        plan.write_text(json.dumps({"format": "trp-plan", "version": 1, "layers": [{"name": "conv2", **choice}]}))
        assert message in refuses(2, "model.onnx", "--plan", "plan.json")
    other = {"name": "layer9.conv", "scheme": "spatial-wise", "rank": 2}
    plan.write_text(json.dumps({"format": "trp-plan", "version": 1, "layers": [other]}))
    assert "the plan names layer9.conv, which this model lacks" in refuses(2, "model.onnx", "--plan", "plan.json")


def test_places_that_cannot_be_written_to(refuses: Command, model: Path, tmp_path: Path) -> None:
    assert "there is no folder nowhere; make it" in refuses(7, "model.onnx", *RULE, "-o", "nowhere/small.onnx")
    assert "there is no folder model.onnx;" in refuses(7, "model.onnx", *RULE, "-o", "model.onnx/small.onnx")
    (tmp_path / "folder.onnx").mkdir()
    assert "folder.onnx is a folder" in refuses(7, "model.onnx", *RULE, "-o", "folder.onnx")
    assert "folder.onnx is a folder" in refuses(7, "model.onnx", *RULE, "--report", "folder.onnx")
    assert "there is no folder nowhere; make it" in refuses(7, "model.onnx", *RULE, "--report", "nowhere/page.html")
    (tmp_path / "pipe.html").symlink_to("/dev/full")
    assert "pipe.html cannot be written: it is a link" in refuses(7, "model.onnx", *RULE, "--report", "pipe.html")
    assert "/proc cannot be written to" in refuses(7, "absent.onnx", *RULE, "--report", "/proc/page.html")
    if os.getuid():
        (tmp_path / "folder.onnx").chmod(0o500)
        assert "Permission denied" in refuses(7, "model.onnx", *RULE, "-o", "folder.onnx/small.onnx")


def test_a_page_that_cannot_be_put_in_its_place_is_named(
    refuses: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, content: bytes) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "write_bytes", fail)
    message = refuses(7, "model.onnx", *RULE, "--report", "page.html")
    assert "page.html cannot be written: Input/output error" in message


@pytest.mark.parametrize("arguments", [("-o", "small.onnx"), ("--bundle", "app")], ids=["file", "bundle"])
def test_an_interruption_on_entry_leaves_nothing(
    trp: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, str]
) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupt)
    assert trp("model.onnx", *RULE, *arguments).code == 130
    assert files(tmp_path) == {"model.onnx"}


def test_a_full_disk(refuses: Command, model: Path, small_disk: Path) -> None:
    assert "cannot be written: No space left" in refuses(7, "model.onnx", *RULE, "-o", "small/small.onnx")


@pytest.mark.parametrize("step", ["singular values", "factor", "verify", "measure"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(
    trp: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, step: str
) -> None:
    seen = set()

    @contextmanager
    def signalling(console: object) -> Iterator[Progress]:
        def progress(name: str, share: float) -> None:
            if name == step:
                seen.update(files(tmp_path))
                signal.raise_signal(number)

        yield progress

    monkeypatch.setattr(cli, "_progress_bar", signalling)
    outcome = trp("model.onnx", "--energy", "0.98", "--budget", "0.2", "--keep-slow-pairs")
    assert outcome.code == 130
    assert outcome.out == ""
    assert outcome.err.strip() == "interrupted; nothing was written."
    assert len(seen) > 1, "nothing lay there that could have been left"
    assert files(tmp_path) == {"model.onnx"}


def test_a_result_that_is_not_faster_is_refused_on_request(refuses: Command, model: Path) -> None:
    message = refuses(6, "model.onnx", "--rank", "8", "--keep-slow-pairs", "--require-speedup", "--budget", "0.2")
    assert "the result is not faster than" in message


def test_help_documents_every_exit_code(trp: Command) -> None:
    outcome = trp("--help")
    assert outcome.code == 0
    for code in (0, 2, 3, 4, 5, 6, 7, 130):
        assert f"{code} " in outcome.out[outcome.out.index("Exit codes") :]


def test_every_option_of_the_help_stands_under_a_known_heading(trp: Command) -> None:
    outcome = trp("--help")
    headings = [line.removesuffix(":") for line in outcome.out.splitlines() if re.fullmatch(r"[A-Z][^:]*:", line)]
    assert headings == list(SECTIONS)
    for entry in entries(Options):
        assert entry.flag.section in SECTIONS
        assert entry.flag.name in outcome.out


def test_the_earlier_name_of_shape_is_still_read(trp: Command, tmp_path: Path) -> None:
    save(build(CONV_NET.replace("3, 12, 12] image", "3, h, w] image")), tmp_path / "model.onnx")
    earlier, now = (
        trp("model.onnx", "--rank", "1", "--dry-run", "--no-bench", name, "1,3,20,20")
        for name in ("--input-shape", "--shape")
    )
    assert (earlier.code, earlier.out) == (0, now.out)
