"""Image sets: a folder, an .npz or an .npy, made ready for a network a batch at a time.

uint8 pixels are scaled by 1/255 and then by mean and std; float arrays are fed as they are. What is odd but
usable becomes a note, what is not usable an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from trp_export.errors import LoadError, OptionError
from trp_export.inputs.preprocessing import Preprocessing

Float32 = NDArray[np.float32]
Pixels = tuple[Path, ...] | NDArray[Any]
_Found = tuple[Pixels, NDArray[np.int64] | None, tuple[str, ...], tuple[str, ...]]
InputShape = Sequence[int | None]

# Images normalised by any usual mean and std stay well inside; pixels of 0 to 255 do not.
_NORMALISED_LIMIT = 20.0
_LOOKED_AT = 64
_NAMED = 3


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images in a fixed order, decoded when asked for. `notes` are what the user should know about them.

    `pixels` are paths, or one array: uint8 (N, H, W, C), or float (N, C, H, W) fed as it is. `size` is the
    (height, width) that images are resized and cut to where the preprocessing says nothing. `classes` are the names
    that labels of a folder count.
    """

    name: str
    pixels: Pixels
    labels: NDArray[np.int64] | None
    preprocessing: Preprocessing
    channels: int
    size: tuple[int, int] | None
    notes: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, start: int, stop: int) -> Float32:
        """Inputs (stop - start, C, H, W). Raises LoadError, naming the image, where one cannot be used."""
        if isinstance(self.pixels, tuple):
            paths = self.pixels[start:stop]
            return _stack([_normalise(self._from_file(path), self.preprocessing) for path in paths], paths)
        part = self.pixels[start:stop]
        if part.dtype == np.uint8:
            return _stack([_normalise(self._from_array(image), self.preprocessing) for image in part], ())
        inputs = np.ascontiguousarray(part, dtype=np.float32)
        if not np.isfinite(inputs).all():
            index = int(np.flatnonzero(~np.isfinite(inputs).all(axis=(1, 2, 3)))[0])
            raise LoadError(f"{self.name}: image {start + index} holds NaN or infinite values.")
        return inputs

    def batches(self, batch_size: int) -> Iterator[Float32]:
        for start in range(0, len(self), batch_size):
            yield self.batch(start, min(start + batch_size, len(self)))

    @property
    def inputs(self) -> Float32:
        """All images at once: (N, C, H, W)."""
        return self.batch(0, len(self))

    def _from_file(self, path: Path) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as image:
                return self._resized(upright(image).convert("L" if self.channels == 1 else "RGB"), str(path))
        except (OSError, SyntaxError, ValueError) as error:
            raise LoadError(f"{path} cannot be decoded ({error}). Remove it or replace it.") from error

    def _from_array(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        wanted = self.preprocessing.resize or self.preprocessing.crop or self.size
        if wanted is None or image.shape[:2] == self.size:
            return image
        if image.shape[2] not in (1, 3):
            raise OptionError(
                f"{self.name}: images of {image.shape[2]} channels cannot be resized; store them in size."
            )
        return self._resized(Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image), self.name)

    def _resized(self, image: Image.Image, name: str) -> NDArray[np.uint8]:
        resize, crop = self.preprocessing.resize, self.preprocessing.crop
        if resize is None and crop is None and self.size is not None:
            height, width = crop = self.size
            scale = max(height / image.height, width / image.width)
            image = _scaled(image, scale)
        elif resize is not None:
            image = _scaled(image, resize / min(image.height, image.width))
        if crop is not None:
            image = _cut(image, *crop, name)
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]


def load_images(
    path: Path | str,
    preprocessing: Preprocessing = Preprocessing(),
    *,
    input_shape: InputShape | None = None,
    count: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """The images at `path`; of more than `count` a random choice by `seed`, in their order.

    `input_shape` is the network's (N, C, H, W), None where open: images are checked against it, and resized and
    cut to it where the preprocessing says nothing. A folder's labels are its subfolders in the order of their
    names; an .npz has them under `labels`. Raises LoadError for what is not a set of images or does not fit.
    """
    if count is not None and count < 1:
        raise OptionError(f"a count of {count} images is below 1.")
    path = Path(path)
    channels, size = _wanted(input_shape)
    pixels, labels, classes, notes = _list_folder(path) if path.is_dir() else _read_arrays(path)
    if isinstance(pixels, tuple):
        channels = channels or 3
        if channels not in (1, 3):
            raise LoadError(f"{path}: the network wants {channels} channels; a folder of images gives 1 or 3.")
    else:
        channels = channels or pixels.shape[3 if pixels.dtype == np.uint8 else 1]
        _require_fit(path, pixels, input_shape, channels)
        notes += _range_notes(path, pixels, preprocessing)
    if preprocessing.mean is None and (isinstance(pixels, tuple) or pixels.dtype == np.uint8):
        notes += (f"{path}: no mean and std are given, so pixels are scaled to 0..1 and no further.",)
    _require_channels(preprocessing, channels)
    chosen = _choose(len(pixels), count, seed)
    if count is not None and count > len(pixels):
        notes += (f"{path} holds {len(pixels)} images, {count} were asked for: all are used.",)
    if chosen is not None:
        pixels = tuple(pixels[i] for i in chosen) if isinstance(pixels, tuple) else pixels[chosen]
        labels = labels[chosen] if labels is not None else None
    return ImageSet(str(path), pixels, labels, preprocessing, channels, size, notes, classes)


def _wanted(input_shape: InputShape | None) -> tuple[int | None, tuple[int, int] | None]:
    if input_shape is None:
        return None, None
    if len(input_shape) != 4:
        raise LoadError(f"images cannot be fed to an input of {len(input_shape)} axes: it must be (N, C, H, W).")
    _, channels, height, width = input_shape
    return channels, (height, width) if height and width else None


def _list_folder(path: Path) -> _Found:
    """The images, their labels, the classes that these count, and notes."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    images = tuple(file for file in files if _is_image(file))
    others = [file for file in files if file not in set(images)]
    if not images:
        raise LoadError(f"{path} holds no image among {len(files)} files.")
    named = ", ".join(file.name for file in others[:_NAMED]) + (", ..." if len(others) > _NAMED else "")
    notes = (f"{path}: {len(others)} of {len(files)} files are no images and left out: {named}",) if others else ()
    folders = [image.relative_to(path).parts[0] for image in images]
    if any(image.parent == path for image in images):
        return images, None, (), notes
    classes = tuple(sorted(set(folders)))
    return images, np.array([classes.index(folder) for folder in folders], dtype=np.int64), classes, notes


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return False


def _read_arrays(path: Path) -> _Found:
    if not path.exists():
        raise LoadError(f"{path} does not exist.")
    if path.suffix not in (".npz", ".npy"):
        raise LoadError(f"{path} is not a set of images: give a folder, an .npz or an .npy.")
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
        arrays = {"images": loaded} if isinstance(loaded, np.ndarray) else _unpack(loaded)
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files.
        raise LoadError(f"{path} cannot be read as numpy arrays ({error}).") from error
    if "images" not in arrays:
        raise LoadError(f'{path} holds {", ".join(arrays) or "nothing"}; the images must be under "images".')
    images = arrays["images"]
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise LoadError(f"{path}: images are {images.dtype}; store uint8 (N, H, W, C) or float (N, C, H, W).")
    if images.ndim != 4 or not images.size:
        raise LoadError(f"{path}: images have shape {images.shape}; four axes with something in each are needed.")
    labels = arrays.get("labels")
    if labels is None:
        return images, None, (), ()
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise LoadError(f"{path}: labels are {labels.dtype} {labels.shape}; {len(images)} whole numbers are needed.")
    return images, labels.astype(np.int64), (), ()


def _unpack(archive: Any) -> dict[str, NDArray[Any]]:
    with archive:
        return {key: archive[key] for key in archive}


def _require_fit(path: Path, images: NDArray[Any], input_shape: InputShape | None, channels: int) -> None:
    layout = "(N, H, W, C)" if images.dtype == np.uint8 else "(N, C, H, W)"
    own = images.shape[3] if images.dtype == np.uint8 else images.shape[1]
    if own != channels:
        raise LoadError(
            f"{path}: {images.dtype} images {images.shape} are read as {layout} and have {own} channels; "
            f"the network wants {channels}. Transpose them if the layout is another."
        )
    if images.dtype != np.uint8 and input_shape is not None:
        pairs = zip(images.shape[2:], input_shape[2:], strict=True)
        if any(wanted not in (None, size) for size, wanted in pairs):
            wanted = ", ".join("?" if size is None else str(size) for size in input_shape)
            raise LoadError(f"{path}: float images {images.shape} are fed as they are; the network wants ({wanted}).")


def _range_notes(path: Path, images: NDArray[Any], preprocessing: Preprocessing) -> tuple[str, ...]:
    if images.dtype == np.uint8:
        return ()
    notes: tuple[str, ...] = ()
    if preprocessing != Preprocessing():
        notes += (f"{path}: float images are fed as they are; --mean, --std, --resize and --crop do nothing to them.",)
    seen = np.asarray(images[:_LOOKED_AT], dtype=np.float32)
    low, high = float(np.nanmin(seen)), float(np.nanmax(seen))
    if max(-low, high) > _NORMALISED_LIMIT:
        notes += (
            f"{path}: float images range from {low:.3g} to {high:.3g}, which few networks are trained on. "
            "If they are pixels, store them as uint8 (N, H, W, C) and give --mean and --std.",
        )
    if low == high:
        notes += (f"{path}: every value is {low:.3g}, so nothing can be learned from these images.",)
    return notes


def _require_channels(preprocessing: Preprocessing, channels: int) -> None:
    for option, values in (("--mean", preprocessing.mean), ("--std", preprocessing.std)):
        if values is not None and len(values) not in (1, channels):
            raise OptionError(f"{option} {_numbers(values)} has {len(values)} numbers for {channels} channels.")


def _choose(available: int, count: int | None, seed: int) -> NDArray[np.intp] | None:
    if count is None or count >= available:
        return None
    return np.sort(np.random.default_rng(seed).permutation(available)[:count])


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Phones store photos as the sensor lies. Not ImageOps.exif_transpose, which fails on other, damaged entries."""
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def _cut(image: Image.Image, height: int, width: int, name: str) -> Image.Image:
    if image.height < height or image.width < width:
        raise LoadError(
            f"{name}: {image.width}x{image.height} pixels are fewer than the crop of {width}x{height}; add --resize."
        )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _normalise(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> Float32:
    """uint8 (H, W, C) -> float32 (C, H, W)."""
    inputs: Float32 = pixels.astype(np.float32) / np.float32(255)
    if preprocessing.mean is not None:
        inputs -= np.asarray(preprocessing.mean, dtype=np.float32)
    if preprocessing.std is not None:
        inputs /= np.asarray(preprocessing.std, dtype=np.float32)
    return np.ascontiguousarray(inputs.transpose(2, 0, 1))


def _stack(inputs: Sequence[Float32], paths: Sequence[Path]) -> Float32:
    shapes = [array.shape for array in inputs]
    odd = next((index for index, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None:
        raise LoadError(
            f"{paths[odd]} is {shapes[odd][2]}x{shapes[odd][1]} and {paths[0]} {shapes[0][2]}x{shapes[0][1]}: "
            "images of one set must agree in size. Add --resize and --crop."
        )
    return np.stack(inputs)


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
