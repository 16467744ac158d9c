"""Image sets: which files are read, which are refused, and the values of the inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trp_export.errors import LoadError, OptionError
from trp_export.inputs.images import load_images
from trp_export.inputs.preprocessing import Preprocessing, Resize

CIFAR = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _pixels(count: int = 5, height: int = 8, width: int = 6, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def _folder(path: Path, images: np.ndarray) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(path / f"{index:03}.png")
    return path


def test_pixels_are_scaled_and_then_normalised(tmp_path: Path) -> None:
    pixels = _pixels()
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.arange(5))
    images = load_images(tmp_path / "set.npz", CIFAR, input_shape=(None, 3, 8, 6))
    by_hand = (pixels / 255 - np.array(CIFAR.mean)) / np.array(CIFAR.std)
    np.testing.assert_allclose(images.inputs, by_hand.transpose(0, 3, 1, 2), atol=1e-5)
    assert images.inputs.dtype == np.float32
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2, 3, 4]
    assert images.notes == ()


def test_folder_and_array_of_the_same_images_give_equal_inputs(tmp_path: Path) -> None:
    pixels = _pixels()
    np.save(tmp_path / "set.npy", pixels)
    folder = _folder(tmp_path / "images", pixels)
    np.testing.assert_array_equal(load_images(folder, CIFAR).inputs, load_images(tmp_path / "set.npy", CIFAR).inputs)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright_as_exif_says(orientation: int, tmp_path: Path) -> None:
    """A phone stores what the sensor saw and says in EXIF how to turn it."""
    stored = np.zeros((8, 6, 3), dtype=np.uint8)
    stored[0, 0] = 255  # EXIF says where row 0 and column 0 belong: "top left", "top right", ...
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    seen = load_images(tmp_path).inputs[0, 0]
    rows, columns = seen.shape
    corners = [(0, 0), (0, -1), (-1, -1), (-1, 0), (0, 0), (0, -1), (-1, -1), (-1, 0)]
    assert (rows, columns) == ((8, 6) if orientation <= 4 else (6, 8))
    assert seen[corners[orientation - 1]] == 1
    assert seen.sum() == 1


def test_labels_count_subfolders_in_order_of_name(tmp_path: Path) -> None:
    _folder(tmp_path / "zebra", _pixels(2))
    _folder(tmp_path / "ant", _pixels(3))
    images = load_images(tmp_path)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 0, 1, 1]


def test_other_files_in_a_folder_are_counted_and_named(tmp_path: Path) -> None:
    _folder(tmp_path, _pixels(3))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not really")
    (tmp_path / ".DS_Store").write_bytes(b"junk")
    images = load_images(tmp_path, CIFAR)
    assert len(images) == 3
    assert images.notes == (f"{tmp_path}: 2 of 5 files are not images and are left out: broken.png, notes.txt",)


@pytest.mark.parametrize("stray", ["._000.npy", "labels.npy"])
def test_pictures_with_a_stray_array_beside_them_are_pictures(tmp_path: Path, stray: str) -> None:
    _folder(tmp_path, _pixels(3))
    np.save(tmp_path / stray, np.arange(3))
    images = load_images(tmp_path, CIFAR)
    assert len(images) == 3
    assert [stray in note for note in images.notes] == ([] if stray.startswith(".") else [True])


def test_arrays_with_a_stray_picture_beside_them_are_arrays(tmp_path: Path) -> None:
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", np.full((3, 4, 4), index, np.float32))
    _folder(tmp_path, _pixels(1))
    np.save(tmp_path / "._0.npy", np.arange(3))
    assert load_images(tmp_path, input_shape=(None, 3, 4, 4)).inputs[:, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("resize", [4, Resize("multiple", 4, 4)])
def test_image_that_is_damaged_after_it_was_listed_is_named(tmp_path: Path, resize: int | Resize) -> None:
    images = load_images(_folder(tmp_path, _pixels(2)), Preprocessing(resize=resize))
    (tmp_path / "001.png").write_bytes(b"no longer a picture")
    with pytest.raises(LoadError, match=r"001\.png is not a PNG"):
        _ = images.sizes


def test_truncated_image_is_named(tmp_path: Path) -> None:
    _folder(tmp_path, np.concatenate([_pixels(1, 64, 64)]))
    file = tmp_path / "000.png"
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(LoadError, match=r"000\.png cannot be decoded"):
        _ = load_images(tmp_path).inputs


@given(count=st.integers(1, 30), seed=st.integers(0, 5))
def test_random_choice_is_repeatable_ordered_and_without_repetition(
    count: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("choice") / "set.npz"
    np.savez(path, images=np.zeros((20, 2, 2, 1), dtype=np.uint8), labels=np.arange(20))
    first, second = (load_images(path, count=count, seed=seed).labels for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.tolist() == second.tolist() == sorted(set(first.tolist()))
    assert len(first) == min(count, 20)


def test_resize_scales_the_shorter_side_and_crop_cuts_the_centre(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _pixels(2, 40, 20))
    images = load_images(folder, Preprocessing(mean=(0.5,), std=(0.5,), resize=10, crop=(8, 8)))
    assert images.inputs.shape == (2, 3, 8, 8)
    flat = np.zeros((1, 40, 20, 3), dtype=np.uint8)
    flat[:, 20:] = 255
    _folder(tmp_path / "halves", flat)
    half = load_images(tmp_path / "halves", Preprocessing(resize=10, crop=(4, 4))).inputs[0, 0]
    assert half[0].max() < 0.5 < half[-1].min()


def test_images_take_the_size_of_the_network_by_default(tmp_path: Path) -> None:
    _folder(tmp_path, _pixels(1, 40, 20))
    assert load_images(tmp_path, CIFAR, input_shape=(None, 3, 16, 16)).inputs.shape == (1, 3, 16, 16)
    assert load_images(tmp_path, Preprocessing((0.5,), (0.5,)), input_shape=(None, 1, 16, 16)).inputs.shape == (
        1,
        1,
        16,
        16,
    )
    np.save(tmp_path / "set.npy", _pixels(2, 40, 20))
    assert load_images(tmp_path / "set.npy", CIFAR, input_shape=(1, 3, 16, 16)).inputs.shape == (2, 3, 16, 16)


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    _folder(tmp_path / "a", _pixels(1, 8, 8))
    _folder(tmp_path / "b", _pixels(1, 9, 8))
    with pytest.raises(LoadError, match=r"000\.png is 8x9 and .*000\.png 8x8.*--resize"):
        _ = load_images(tmp_path).inputs


def test_float_arrays_are_fed_as_they_are(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((4, 3, 5, 5))
    np.save(tmp_path / "set.npy", values)
    images = load_images(tmp_path / "set.npy", input_shape=(None, 3, None, None))
    np.testing.assert_array_equal(images.inputs, values.astype(np.float32))
    assert images.notes == ()
    assert "do not change them" in load_images(tmp_path / "set.npy", CIFAR).notes[0]


def test_pixels_stored_as_floats_give_a_note(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", _pixels().transpose(0, 3, 1, 2).astype(np.float32))
    assert "with values from 0 to 25" in load_images(tmp_path / "set.npy").notes[0]
    np.save(tmp_path / "flat.npy", np.ones((3, 3, 4, 4), dtype=np.float32))
    assert "every value is 1" in load_images(tmp_path / "flat.npy").notes[0]


def test_image_with_values_that_are_not_finite_is_named(tmp_path: Path) -> None:
    values = np.zeros((4, 3, 5, 5), dtype=np.float32)
    values[2, 1, 0, 0] = np.nan
    np.save(tmp_path / "set.npy", values)
    with pytest.raises(LoadError, match="image 2 holds NaN"):
        _ = load_images(tmp_path / "set.npy").inputs


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": _pixels()}, 'holds no array "images" or "input"'),
        ({"images": _pixels().astype(np.int64)}, "images are int64"),
        ({"images": _pixels()[0]}, "non-empty 4-D array"),
        ({"images": _pixels()[:0]}, "non-empty 4-D array"),
        ({"images": _pixels(), "labels": np.arange(4)}, "5 whole numbers are needed"),
        ({"images": _pixels(), "labels": np.ones(5)}, "5 whole numbers are needed"),
        ({"images": _pixels(channels=4)}, "the network wants 3"),
        ({"images": _pixels().astype(np.float32)}, "Transpose them"),
        ({"images": np.zeros((2, 3, 9, 8), dtype=np.float32)}, r"the network wants \(any, 3, 8, 6\)"),
        ({"images": np.array([{}], dtype=object)}, "holds Python objects"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(LoadError, match=message):
        load_images(tmp_path / "set.npz", input_shape=(None, 3, 8, 6))


@pytest.mark.parametrize("name", ["missing.npz", "missing", "empty", "text.txt", "text.npz", "text.npy"])
def test_paths_without_an_image_set_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("text.txt", "text.npz", "text.npy"):
        (tmp_path / file).write_text("plain text")
    with pytest.raises(LoadError, match=name):
        load_images(tmp_path / name)


@pytest.mark.parametrize(
    "wrong",
    [{"std": (0.0,)}, {"std": (float("nan"),)}, {"mean": (float("inf"),)}, {"resize": 0}, {"crop": (0, 4)}],
)
def test_preprocessing_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        Preprocessing(**wrong)  # type: ignore[arg-type]


def test_mean_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", _pixels())
    with pytest.raises(OptionError, match="2 numbers for 3 channels"):
        load_images(tmp_path / "set.npy", Preprocessing(mean=(0.1, 0.2)))
