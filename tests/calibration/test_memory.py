"""Which layers are calibrated within the bounds on memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import in_batches, make_images, make_network

from trp_export import Benchmark, Calibration, Macs, Options, Rank, compress
from trp_export.calibration import memory
from trp_export.calibration.held_out import images_with_room
from trp_export.calibration.memory import (
    has_room_for_gradients,
    has_room_for_moments,
    images_to_keep,
    images_to_sum,
    images_to_walk,
    places_with_room,
    positions_to_read,
)
from trp_export.graph.sites import LocatedSite
from trp_export.lowrank.site import Site
from trp_export.steps import calibrate


def place(name: str, *shape: int, group: int = 1, refusal: str | None = None) -> LocatedSite:
    return LocatedSite(Site(name, "Conv", shape, group, (), refusal), (), None)


def test_convs_of_usual_networks_have_room() -> None:
    assert has_room_for_moments(place("resnet", 512, 512, 3, 3).site)
    assert has_room_for_moments(place("depthwise", 2048, 1, 7, 7, group=2048).site)
    assert not has_room_for_moments(place("vgg", 4096, 25088).site)


def test_a_layer_of_many_classes_keeps_its_moments_without_gradients() -> None:
    classes = place("classes", 100_000, 512)
    assert not has_room_for_gradients(classes.site)
    assert places_with_room([classes]) == (classes,)


def test_small_layers_come_first_and_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [place(name, 4, width) for name, width in (("a", 40), ("b", 30), ("c", 20), ("d", 200), ("e", 10))]
    own = [12 * width**2 + 8 * 16 for width in (40, 30, 20, 200, 10)]
    monkeypatch.setattr(memory, "_MOMENTS_BYTES", own[1] + own[2] + own[4])
    assert [p.site.name for p in places_with_room(places)] == ["b", "c", "e"]
    monkeypatch.setattr(memory, "_MATRIX_BYTES", 8 * 20**2)
    assert [p.site.name for p in places_with_room(places)] == ["c", "e"]


def test_outputs_that_no_node_reads_take_room_too() -> None:
    """A map of 21 classes in 512 x 512 has 22 MB."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[1, 21, 512, 512] x) => (float[1, 21, 512, 512] y) '
        "{ r = Relu (x) y = Neg (r) }"
    )
    model = ir.serde.deserialize_model(proto)
    shapes = dict.fromkeys(("x", "r", "y"), (1, 21, 512, 512))
    assert images_to_walk(model, shapes)[-1] < 16


def test_answers_take_room_although_nothing_reads_them_any_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of 21 classes, of which the last node reads the number of the largest alone."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[N, 3, 64, 64] x) => (float[N, 1, 64, 64] y) '
        "{ s = Conv (x, w) a = ArgMax <axis = 1> (s) y = Cast <to = 1> (a) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((21, 3, 1, 1), np.float32), "w"))
    model = ir.serde.deserialize_model(proto)
    monkeypatch.setattr(memory, "_WALKED_BYTES", 16 * 4 * 21 * 64 * 64)
    assert images_with_room(model, in_batches(np.zeros((2, 3, 64, 64), np.float32))) in range(8, 17)


def test_refused_layers_take_no_room() -> None:
    assert places_with_room([place("lstm", refusal="an LSTM"), place("fc", 4, 4)])[0].site.name == "fc"


def test_usual_images_are_all_kept_and_patches_are_read_in_pieces() -> None:
    assert images_to_keep(4 * 3 * 224 * 224) > 1024 > images_to_keep(4 * 3 * 640 * 640) > 256
    resnet, first = place("resnet", 512, 512, 3, 3).site, place("first", 64, 3, 7, 7).site
    assert positions_to_read(resnet) > 56 * 56
    assert images_to_sum(resnet, 56 * 56) == 2
    assert images_to_sum(first, 32768) > 1
    assert images_to_sum(resnet, 10**9) == 1


def test_weights_that_stay_on_disk_give_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = make_network()
    onnx.save(ir.serde.serialize_model(model), tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", make_images(12).inputs)
    made = []
    for bound in (calibrate._IN_MEMORY_BYTES, 0):
        monkeypatch.setattr(calibrate, "_IN_MEMORY_BYTES", bound)
        options = Options(rule=Macs(1.5), calibration=Calibration(tmp_path / "images.npy"),
                          benchmark=Benchmark(run=False), output=tmp_path / "small.onnx")  # fmt: skip
        compress(tmp_path / "model.onnx", options)
        made.append((tmp_path / "small.onnx").read_bytes())
    assert made[0] == made[1]


def test_images_that_do_not_fit_into_memory_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = make_network()
    onnx.save(ir.serde.serialize_model(model), tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", make_images(12).inputs)
    monkeypatch.setattr(memory, "_KEPT_BYTES", 5 * 4 * 3 * 12 * 12)
    for count, note in ((None, "5 of 12 images are used, for memory's sake; --calib-count asks for more"), (12, None)):
        calibration = Calibration(tmp_path / "images.npy", count=count)
        options = Options(rule=Rank(2), calibration=calibration, benchmark=Benchmark(run=False), dry_run=True)
        notes = compress(tmp_path / "model.onnx", options).notes
        assert [own for own in notes if "for memory's sake" in own] == ([note] if note else [])
