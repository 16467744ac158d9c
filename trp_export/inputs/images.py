"""Open image sets: a folder, an .npz or an .npy, checked against the input that they are for.

Pixels (uint8) go through the preprocessing; arrays of floats are fed as they are. What is odd but usable becomes a
note, what is not usable an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trp_export.errors import LoadError, OptionError
from trp_export.inputs.arrays import MOST_BYTES, read_arrays
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.pictures import picture_size, upright
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.inputs.spec import CHANNEL_AXES, OPEN_EXTENT, Array, InputSpec
from trp_export.system.files import files_below

__all__ = ["ImageSet", "InputShape", "Preprocessing", "load_images", "upright"]

InputShape = Sequence[int | None]

# Images normalised by any usual mean and std stay well inside; pixels of 0 to 255 do not.
_NORMALISED_LIMIT = 20.0
_RANGE_SAMPLE = 64
_NAMED_FILES = 3
# Pictures of labels beside the images that they belong to.
LABEL_PICTURE = ".label.png"


def load_images(
    path: Path | str,
    preprocessing: Preprocessing = Preprocessing(),
    *,
    spec: InputSpec | None = None,
    input_shape: InputShape | None = None,
    count: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """The images at `path`; of more than `count` a random choice by `seed`, in their order.

    `spec` is the network's input: images are checked against it, and resized and cut to it where the preprocessing
    names no size. `input_shape` (N, C, H, W), None where open, stands for a float32 input of that shape. A folder's
    labels are its subfolders in the order of their names; an .npz has them under `labels`. Raises LoadError for what
    is not a set of images or does not fit.
    """
    if count is not None and count < 1:
        raise OptionError(f"a count of {count} images is below 1.")
    if spec is None and input_shape is not None:
        if len(input_shape) != 4:
            raise LoadError(f"images cannot be fed to an input of {len(input_shape)} axes: it must be (N, C, H, W).")
        spec = InputSpec.of_images(input_shape)
    path = Path(path)
    arrays = _array_files(path) if path.is_dir() else []
    if path.is_dir() and not arrays:
        images = _open_folder(path, preprocessing, spec)
    else:
        images = _open_arrays(path, arrays, preprocessing, spec)
    _ = images.steps  # Choices that do not fit the input are refused before an image is decoded.
    if count is not None and count < len(images):
        images = images.take(choose(len(images), count, seed))
    return images


def _array_files(folder: Path) -> list[Path]:
    """The .npy files of a folder; none where there are as many pictures, which such a file may tell about."""
    files = _seen(folder)
    arrays = [file for file in files if file.suffix == ".npy" and file.parent == folder]
    others = (file for file in files if file.suffix != ".npy") if arrays else ()
    pictures = sum(size_if_image(file) is not None for file in others)
    return arrays if len(arrays) > pictures else []


def _seen(folder: Path) -> list[Path]:
    """The files below a folder that are not hidden."""
    return [file for file in files_below(folder) if not file.name.startswith(".")]


def choose(available: int, count: int, seed: int) -> NDArray[np.intp]:
    """The places of `count` samples at most, chosen at random and in order."""
    return np.sort(np.random.default_rng(seed).permutation(available)[:count])


def _open_folder(path: Path, preprocessing: Preprocessing, spec: InputSpec | None) -> ImageSet:
    channels = (spec.channels if spec is not None else None) or 3
    if spec is not None:
        spec.require_image()
    if channels not in (1, 3):
        raise LoadError(f"{path}: the network wants {channels} channels; a folder of images gives 1 or 3.")
    images, sizes, notes = _list_folder(path)
    size = spec.size if spec is not None else None
    if spec is not None and size is None and preprocessing.is_plain and not _agree(sizes, spec.extents):
        height, width = (extent or OPEN_EXTENT for extent in spec.extents)
        size = height, width
        keeps = "--resize multiple:1 keeps their sizes, " if spec.extents == (None, None) else ""
        notes += (
            f"{path}: images differ in size and the network leaves its size open, so they are resized and cut to "
            f"{height} x {width}; {keeps}--resize or --shape sets another.",
        )
    labels, classes = _labels(path, images)
    notes += _scale_notes(path, preprocessing, spec)
    return ImageSet(str(path), images, labels, preprocessing, channels, size, notes, classes, spec)


def _agree(sizes: Sequence[tuple[int, int]], extents: tuple[int | None, int | None]) -> bool:
    """Whether all images have one size, which has the extents that are known."""
    return len(set(sizes)) == 1 and all(
        known in (None, extent) for known, extent in zip(extents, sizes[0], strict=True)
    )


def _list_folder(path: Path) -> tuple[tuple[Path, ...], tuple[tuple[int, int], ...], tuple[str, ...]]:
    """The images in a folder, their (height, width), and a note about other files."""
    files = [file for file in _seen(path) if not file.name.endswith(LABEL_PICTURE)]
    images: list[Path] = []
    sizes: list[tuple[int, int]] = []
    others: list[Path] = []
    for file in files:
        size = size_if_image(file)
        if size is None:
            others.append(file)
        else:
            images.append(file)
            sizes.append(size)
    if not images:
        raise LoadError(f"{path} holds no image among {len(files)} files.")
    named = ", ".join(file.name for file in others[:_NAMED_FILES]) + (", ..." if len(others) > _NAMED_FILES else "")
    notes = (f"{path}: {len(others)} of {len(files)} files are not images and are left out: {named}",) if others else ()
    return tuple(images), tuple(sizes), notes


def size_if_image(path: Path) -> tuple[int, int] | None:
    """Height and width of a picture; None for other files."""
    try:
        return picture_size(path)
    except OSError:
        return None


def _labels(path: Path, images: Sequence[Path]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """The index of each image's folder, and the folders; none where some images lie outside of subfolders."""
    if any(image.parent == path for image in images):
        return None, ()
    folders = [image.relative_to(path).parts[0] for image in images]
    classes = tuple(sorted(set(folders)))
    index = {name: number for number, name in enumerate(classes)}
    return np.array([index[folder] for folder in folders], dtype=np.int64), classes


def _open_arrays(path: Path, files: Sequence[Path], preprocessing: Preprocessing, spec: InputSpec | None) -> ImageSet:
    """One file of arrays, or the `files` of a folder of them."""
    name = spec.name if spec is not None else "images"
    if files:
        arrays = {"": _read_array_folder(path, files, spec)}
    elif path.exists() and path.suffix not in (".npz", ".npy"):
        raise LoadError(f"{path} is not a set of images: give a folder, an .npz or an .npy.")
    else:
        arrays = read_arrays(path, only=("images", "labels", name), mapped=True)
    images = next((arrays[key] for key in ("", "images", name) if key in arrays), None)
    if images is None:
        raise LoadError(f'{path} holds no array "images"{_or_name(name)}.')
    return array_set(path, images, preprocessing, spec, labels=arrays.get("labels"))


def array_set(
    path: Path, images: Array, preprocessing: Preprocessing, spec: InputSpec | None, *, labels: Array | None = None
) -> ImageSet:
    """One array of a file as a set of images: pixels, or an array that is fed as it is. Raises LoadError."""
    as_is = _require_fit(path, images, preprocessing, spec)
    numbers = None if labels is None else require_labels(path, len(images), labels)
    channels = (spec.channels if spec is not None else None) or _channels(images, spec, as_is)
    notes = _range_notes(path, images, preprocessing, spec) if as_is else _scale_notes(path, preprocessing, spec)
    size = spec.size if spec is not None else None
    return ImageSet(str(path), images, numbers, preprocessing, channels, size, notes, (), spec, as_is)


def _read_array_folder(path: Path, files: Sequence[Path], spec: InputSpec | None) -> Array:
    """The samples of a folder of .npy files, each with or without a batch axis of its own, as one array."""
    rank = _rank(spec, 0)
    samples: list[Array] = []
    for file in files:
        array = read_arrays(file)[""]
        samples.append(array[None] if array.ndim == rank - 1 else array)
        if samples[-1].shape[1:] != samples[0].shape[1:] or samples[-1].dtype != samples[0].dtype:
            raise LoadError(
                f"{file} holds {array.dtype} {array.shape}, and {files[0].name} holds {samples[0].dtype} "
                f"{samples[0].shape}: all files of a folder must agree."
            )
        if samples[-1].nbytes * len(files) > MOST_BYTES:
            raise LoadError(f"{path} holds more than {MOST_BYTES / 1e9:.1f} GB of arrays; give fewer.")
    return np.concatenate(samples)


def _or_name(name: str) -> str:
    return "" if name == "images" else f' or "{name}"'


def require_labels(path: Path, count: int, labels: Array) -> NDArray[np.int64]:
    """The labels of `count` samples. Raises LoadError."""
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise LoadError(f"{path}: labels are {labels.dtype} {labels.shape}; {count} whole numbers are needed.")
    return labels.astype(np.int64)


def _require_fit(path: Path, images: Array, preprocessing: Preprocessing, spec: InputSpec | None) -> bool:
    """Whether the array is fed as it is. Raises LoadError where it fits in neither way."""
    own_type = spec is not None and str(images.dtype) == spec.dtype
    if images.dtype != np.uint8 and images.dtype.kind != "f" and not own_type:
        raise LoadError(f"{path}: images are {images.dtype}; store uint8 (N, H, W, C) or float (N, C, H, W).")
    rank = _rank(spec, images.ndim)
    if images.ndim != rank or not images.size:
        raise LoadError(f"{path}: images have shape {images.shape}; expected a non-empty {rank}-D array.")
    if spec is None:
        return images.dtype != np.uint8
    if images.dtype == np.uint8 and spec.layout == "unknown":
        spec.require_image()
    if spec.is_image and images.dtype == np.uint8:
        channels = spec.channels or images.shape[3]
        to_grey = preprocessing.colour == "grey" and images.shape[3] in (1, 3)
        if images.shape[3] == channels or to_grey:
            return False
        if not (own_type and _channels(images, spec, True) == channels):
            raise _wrong_channels(path, images, "(N, H, W, C)", images.shape[3], channels)
    declared = (spec.declared or ()) if spec.batched else (None, *(spec.declared or ()))
    if spec.is_image and spec.channels and _channels(images, spec, True) != spec.channels:
        layout = spec.layout if spec.batched else f"N{spec.layout}"
        raise _wrong_channels(path, images, f"({', '.join(layout)})", _channels(images, spec, True), spec.channels)
    known = spec.shape if spec.batched and spec.shape else declared
    if any(wanted not in (None, size) for size, wanted in zip(images.shape[1:], known[1:], strict=False)):
        raise LoadError(
            f"{path}: {images.dtype} images {images.shape} are fed as they are; the network wants {spec.show()}."
        )
    return True


def _rank(spec: InputSpec | None, otherwise: int) -> int:
    """The number of axes of an array of samples; `otherwise` where the network takes any."""
    if spec is None:
        return 4
    return otherwise if spec.declared is None else len(spec.declared) + (not spec.batched)


def _wrong_channels(path: Path, images: Array, layout: str, own: int, channels: int) -> LoadError:
    return LoadError(
        f"{path}: {images.dtype} images {images.shape} are read as {layout} and have {own} channels; "
        f"the network wants {channels}. Transpose them if their layout is another."
    )


def _channels(images: Array, spec: InputSpec | None, as_is: bool) -> int:
    if not as_is:
        return int(images.shape[3])
    axis = CHANNEL_AXES.get("NCHW" if spec is None else spec.layout, 1)
    return int(images.shape[axis + (spec is not None and not spec.batched)])


def _scale_notes(path: Path, preprocessing: Preprocessing, spec: InputSpec | None) -> tuple[str, ...]:
    chosen = (preprocessing.mean, preprocessing.std, preprocessing.scale) != (None, None, None)
    if chosen or (spec is not None and spec.is_integer):
        return ()
    if spec is not None and spec.takes_pixels:
        return (f"{path}: the network scales pixels itself, so they are fed as 0..255; --scale 1/255 changes that.",)
    return (f"{path}: no mean and std are given, so pixels are scaled to 0..1 and no further.",)


def _range_notes(path: Path, images: Array, preprocessing: Preprocessing, spec: InputSpec | None) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if preprocessing != Preprocessing():
        notes += (
            f"{path}: {images.dtype} images are fed as they are; "
            "--mean, --std, --scale, --colour, --resize and --crop do not change them.",
        )
    sample = np.asarray(images[:_RANGE_SAMPLE]).astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return notes
    low, high = float(sample.min()), float(sample.max())
    scaled = spec is None or not (spec.takes_pixels or spec.is_integer)
    if scaled and max(-low, high) > _NORMALISED_LIMIT:
        notes += (
            f"{path}: images are fed as they are, with values from {low:.3g} to {high:.3g}. "
            "If the network expects scaled pixels, store uint8 (N, H, W, C) and give --mean and --std.",
        )
    if low == high:
        notes += (f"{path}: every value is {low:.3g}, so nothing can be learned from these images.",)
    return notes
