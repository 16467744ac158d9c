"""mIoU against counts by hand, label pictures beside images and in a folder, and resized inputs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from command import Command
from hypothesis import given
from hypothesis import strategies as st
from models import build, run, save
from PIL import Image

from trp_export.errors import LoadError, OptionError
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.images import load_images
from trp_export.inputs.placement import Placement
from trp_export.inputs.preprocessing import Preprocessing, parse_resize
from trp_export.metrics.label_pictures import matching
from trp_export.metrics.sample import Sample, Span, placements
from trp_export.metrics.segmentation import Segmentation, open_segmentation, read_label_picture

START = Span(0, (2, 3))
SEGMENTER = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, H, W] image) => (float[N, 4, H, W] maps)
<float[16, 3, 3, 3] one__weight, float[4, 16, 3, 3] two__weight>
{
    a = Conv <pads = [1, 1, 1, 1]> (image, one__weight)
    b = Relu (a)
    maps = Conv <pads = [1, 1, 1, 1]> (b, two__weight)
}
"""
ARGUMENTS = ("--rank", "1", "--no-bench", "--eval", "images", "--json")


def segmentation(classes: int = 3, labels: list[Path] | None = None, size: tuple[int, int] = (2, 3)) -> Segmentation:
    return Segmentation(classes, False, 0.5, labels, (Placement(size),) * 9)


def scores(numbers: list[list[int]], classes: int = 3) -> np.ndarray:
    """Scores (1, classes, H, W) whose largest are these numbers."""
    return np.eye(classes, dtype=np.float32)[np.array(numbers)].transpose(2, 0, 1)[None]


def test_miou_of_a_case_counted_by_hand(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0, 1], [1, 2, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    metric = segmentation(labels=[tmp_path / "a.png"])
    right = metric.predict([scores([[0, 0, 1], [1, 2, 0]])], START)
    wrong = metric.predict([scores([[0, 1, 1], [1, 0, 2]])], START)
    found = metric.score(right, wrong)
    assert found.before == 1.0  # The void pixel does not count.
    # Class 0: 1 right of 3 true or predicted; class 1: 2 of 3; class 2: 0 of 1.
    assert found.after == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    assert found.details[0].after == pytest.approx(3 / 5)


def test_outputs_of_every_form_are_the_same_map() -> None:
    numbers = [[0, 1, 1], [0, 0, 1]]
    forms = [
        scores(numbers, classes=2),
        np.array([[numbers]], dtype=np.int64),
        np.array([numbers], dtype=np.int32),
        np.array([[numbers]], dtype=np.float32),
    ]
    assert all(np.array_equal(segmentation(2).predict([form], START)[0], numbers) for form in forms)


def test_outputs_that_are_not_finite_are_of_no_class() -> None:
    output = scores([[0, 1, 1], [0, 0, 1]], classes=2)
    output[0, 1, 0, 0] = np.nan
    metric = segmentation(2)
    found = metric.predict([output], START)
    assert metric.score(metric.predict([scores([[0, 1, 1], [0, 0, 1]], 2)], START), found).after < 1


@given(st.integers(0, 1000))
def test_a_map_against_itself_is_perfect_and_the_error_zero(seed: int) -> None:
    maps = np.random.default_rng(seed).integers(0, 3, (4, 5, 6), dtype=np.uint8)
    found = segmentation().score(list(maps), list(maps))
    assert (found.before, found.after, found.error) == (1, 1, 0)


@given(st.integers(0, 1000), st.sampled_from(["24x16", "letterbox:32x32", "letterbox:32x32:0:corner", "cover:16x24"]))
def test_labels_are_found_under_resized_and_cut_inputs(seed: int, resize: str) -> None:
    """A network that answers the class of the picture that it is fed is right wherever no border is blurred."""
    blocks = np.random.default_rng(seed).integers(0, 2, (3, 4), dtype=np.uint8)
    label = np.kron(blocks, np.ones((16, 16), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.fromarray(label * 255).save(folder / "a.png")
        Image.fromarray(label).save(folder / "a.label.png")
        images = load_images(folder, Preprocessing(resize=parse_resize(resize)), input_shape=(None, 1, None, None))
        assert len(images) == 1  # The label picture is no image.
        fed = images.inputs
        metric = Segmentation(2, False, 0.5, [folder / "a.label.png"], placements(images, fed.shape[2:]))
        ((right, true, _),) = metric.predict([fed], Span(0, fed.shape[2:]))
    assert right.sum() >= 0.9 * true.sum()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """With label pictures beside the images: what the network itself answers, and a void border."""
    (tmp_path / "images").mkdir()
    path = save(build(SEGMENTER), tmp_path / "model.onnx")
    rng = np.random.default_rng(1)
    for index in range(6):
        pixels = rng.integers(0, 256, (12, 10 + index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{index}.png")
        fed = (pixels.transpose(2, 0, 1)[None] / np.float32(255)).astype(np.float32)
        label = run(path, {"image": fed})[0][0].argmax(axis=0).astype(np.uint8)
        label[0] = 11
        Image.fromarray(label).save(tmp_path / f"images/{index}.label.png")
    return path


def test_label_pictures_beside_images_are_used(trp: Command, model: Path, tmp_path: Path) -> None:
    score = json.loads(trp("model.onnx", *ARGUMENTS, "--resize", "multiple:1").out)["deviation"]["score"]
    assert (score["metric"], score["what"], score["images"], score["before"]) == ("miou", "mIoU", 6, 1)
    assert 0 < score["after"] < 1
    assert score["error"] > 0


def test_label_pictures_may_lie_in_a_folder_of_their_own(trp: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    for path in sorted((tmp_path / "images").glob("*.label.png")):
        path.rename(tmp_path / "labels" / path.name.replace(".label", ""))
    arguments = (*ARGUMENTS, "--labels", "labels", "--resize", "multiple:1")
    assert json.loads(trp("model.onnx", *arguments).out)["deviation"]["score"]["before"] == 1


def test_without_labels_the_originals_maps_count(trp: Command, model: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "images").glob("*.label.png"):
        path.unlink()
    outcome = trp("model.onnx", *ARGUMENTS[:-1], "--resize", "multiple:1")
    assert outcome.code == 0, outcome.err
    assert "its mIoU against the original's maps is" in outcome.out


def test_an_image_without_a_label_is_named(refuses: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "images/3.label.png").unlink()
    arguments = ("model.onnx", *ARGUMENTS, "--resize", "multiple:1")
    assert "1 of 6 images have no picture of that name" in refuses(3, *arguments)


def test_a_label_in_colour_is_refused(refuses: Command, model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((12, 13, 3), dtype=np.uint8)).save(tmp_path / "images/3.label.png")
    arguments = ("model.onnx", *ARGUMENTS, "--resize", "multiple:1")
    assert "3.label.png: a label picture holds numbers of classes" in refuses(3, *arguments)
    Image.fromarray(np.zeros((5, 5), dtype=np.uint8)).save(tmp_path / "images/3.label.png")
    assert "a label picture has 5 x 5 pixels, and its image 13 x 12" in refuses(3, *arguments)


def test_a_palette_holds_numbers(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 3], [1, 2]], dtype=np.uint8), mode=None)
    picture = picture.convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png")
    assert read_label_picture(tmp_path / "a.png").tolist() == [[0, 3], [1, 2]]


def test_a_picture_of_one_bit_holds_numbers(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1").save(tmp_path / "a.png")
    assert read_label_picture(tmp_path / "a.png").tolist() == [[0, 1], [1, 0]]


def shown(output: np.ndarray) -> Sample:
    return Sample(("y",), (output,), len(output), output.shape[2:], 3)


@pytest.fixture
def two_images(tmp_path: Path) -> ImageSet:
    (tmp_path / "photos").mkdir()
    (tmp_path / "labels").mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(tmp_path / f"photos/{name}.png")
    return load_images(tmp_path / "photos", Preprocessing())


def test_white_in_black_and_white_labels_is_the_second_class(two_images: ImageSet, tmp_path: Path) -> None:
    label = np.zeros((4, 6), dtype=np.uint8)
    label[:2] = 255
    for name in "ab":
        Image.fromarray(label).save(tmp_path / f"labels/{name}.png")
    output = np.stack([np.eye(2, dtype=np.float32)[np.minimum(label, 1)].transpose(2, 0, 1)] * 2)
    metric, notes = open_segmentation(two_images, shown(output), tmp_path / "labels", None, beside=False)
    assert notes == ("label pictures are black and white: white counts as class 1",)
    right, wrong = (metric.predict([maps], Span(0, (4, 6))) for maps in (output, output[:, ::-1]))
    assert (metric.score(right, wrong).before, metric.score(right, wrong).after) == (1, 0)


def test_void_stays_void_where_labels_show_the_second_class(two_images: ImageSet, tmp_path: Path) -> None:
    label = np.ones((4, 6), dtype=np.uint8)
    label[:2] = 255
    for name in "ab":
        Image.fromarray(label).save(tmp_path / f"labels/{name}.png")
    output = np.zeros((2, 2, 4, 6), dtype=np.float32)
    output[:, 1, 2:] = 1
    metric, notes = open_segmentation(two_images, shown(output), tmp_path / "labels", None, beside=False)
    found = metric.predict([output], Span(0, (4, 6)))
    assert (notes, metric.score(found, found).before) == ((), 1)


def test_scores_in_bytes_are_scores(two_images: ImageSet) -> None:
    output = np.random.default_rng(0).permutation(2 * 5 * 24).astype(np.uint8).reshape(2, 5, 4, 6)
    metric, _ = open_segmentation(two_images, shown(output), None, None, beside=False)
    np.testing.assert_array_equal(metric.predict([output], Span(0, (4, 6))), output.argmax(axis=1))


def test_more_classes_than_pictures_count_are_refused(two_images: ImageSet) -> None:
    with pytest.raises(OptionError, match="counts up to 255 classes, and the network has 512"):
        open_segmentation(two_images, shown(np.zeros((2, 512, 4, 6), np.float32)), None, None, beside=False)


def test_labels_are_pictures_and_each_name_has_one(two_images: ImageSet, tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(np.zeros((4, 6), dtype=np.uint8)).save(tmp_path / f"labels/{name}.png")
        (tmp_path / f"labels/{name}.xml").write_text("<note/>")
    assert [path.name for path in matching(two_images, tmp_path / "labels")] == ["a.png", "b.png"]
    Image.fromarray(np.zeros((4, 6), dtype=np.uint8)).save(tmp_path / "labels/b.bmp")
    with pytest.raises(LoadError, match="are both pictures of one name"):
        matching(two_images, tmp_path / "labels")
