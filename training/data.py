"""Labelled images by a one-line specification, held in memory as bytes, and a validation part split off by seed."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trp_export.errors import LoadError, OptionError
from trp_export.inputs.images import upright
from trp_export.system.extras import require

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_LARGEST_BYTES = 16 * 2**30
_MOST_CLASSES = 100_000


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """`images` uint8 (N, h, w, 3), `labels` int64 (N,), and the class names in the order of the labels."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> LabelledImages:
        return LabelledImages(self.images[indices], self.labels[indices], self.classes)


def load_labelled_images(spec: str, part: str = "train") -> LabelledImages:
    """`npz:DIR`, `imagefolder:DIR` or `torchvision:NAME:DIR`; `part` is "train" or "test".

    npz: every `<part>*.npz` of the folder, with `images` uint8 (N, h, w, 3) and `labels` (N,).
    imagefolder: `DIR/<part>/<class>/*.png`, or `DIR/<class>/*.png` without parts. Raises LoadError, OptionError.
    """
    kind, _, rest = spec.partition(":")
    if kind == "npz" and rest:
        return _load_npz(Path(rest), part)
    if kind == "imagefolder" and rest:
        return _load_folder(Path(rest), part)
    if kind == "torchvision" and rest.count(":") >= 1:
        name, _, folder = rest.partition(":")
        return _load_torchvision(name, Path(folder), part)
    raise OptionError(f"--data {spec!r}: give npz:DIR, imagefolder:DIR or torchvision:NAME:DIR.")


def split(images: LabelledImages, validation_count: int, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """The training part and a validation part of `validation_count` images, drawn by seed."""
    if not 0 < validation_count < len(images):
        raise OptionError(f"--validation {validation_count} must lie between 0 and the {len(images)} images there are.")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.take(order[validation_count:]), images.take(order[:validation_count])


def require_fit(images: LabelledImages, input_shape: Sequence[int], outputs: int) -> None:
    """Raises LoadError where images are not of the network's size or labels are outside its classes."""
    height, width = images.images.shape[1:3]
    if tuple(input_shape[2:]) != (height, width):
        wanted = "x".join(map(str, input_shape[2:]))
        raise LoadError(f"the images are {height}x{width}, the network takes {wanted}: resize them.")
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= outputs:
        raise LoadError(f"labels run from {low} to {high}; a network of {outputs} classes takes 0 to {outputs - 1}.")


def require_every_class(images: LabelledImages) -> None:
    """Raises LoadError where a class has no image: a stray label would make a network of too many classes."""
    counts = torch.bincount(images.labels, minlength=len(images.classes))
    empty = [name for name, count in zip(images.classes, counts.tolist(), strict=True) if not count]
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise LoadError(
            f"no image is of class {', '.join(empty[:3])}{more}: labels run from 0, every class has images."
        )


def _load_npz(folder: Path, part: str) -> LabelledImages:
    _require_folder(folder)
    paths = sorted(folder.glob(f"{part}*.npz"))
    if not paths:
        raise LoadError(f"{folder} holds no {part}*.npz.")
    shards = [_read_npz(path) for path in paths]
    if len({shard[0].shape[1:] for shard in shards}) > 1:
        raise LoadError(f"{folder}: its {part}*.npz hold images of unlike sizes.")
    labels = np.concatenate([labels for _, labels in shards]).astype(np.int64)
    images = np.concatenate([images for images, _ in shards])
    if not len(labels):
        raise LoadError(f"{folder}: its {part}*.npz hold no images.")
    if labels.min() < 0:
        raise LoadError(f"{folder}: label {labels.min()} is below 0.")
    count = int(labels.max()) + 1
    if count > _MOST_CLASSES:
        raise LoadError(f"{folder}: label {labels.max()} is above {_MOST_CLASSES - 1}; labels run from 0.")
    classes = CIFAR10_CLASSES if images.shape[1:3] == (32, 32) and count == 10 else tuple(map(str, range(count)))
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels), classes)


def _read_npz(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise LoadError(f"{path} is not an archive of `images` and `labels`, or a damaged one.") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise LoadError(f"{path}: `images` must be uint8 (N, h, w, 3), not {images.dtype} {images.shape}.")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise LoadError(f"{path}: `labels` must be {images.shape[0]} whole numbers, not {labels.dtype} {labels.shape}.")
    return images, labels


def _load_folder(folder: Path, part: str) -> LabelledImages:
    from PIL import Image, UnidentifiedImageError

    root = folder / part if (folder / part).is_dir() else folder
    _require_folder(root)
    classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir()))
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).iterdir())
        if path.suffix.lower() in _IMAGE_SUFFIXES
    ]
    if not files:
        raise LoadError(f"{root} holds no images: one sub-folder per class is expected.")
    images: NDArray[np.uint8] | None = None
    for index, (path, _) in enumerate(files):
        try:
            with Image.open(path) as image:
                pixels = np.asarray(upright(image).convert("RGB"))
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise LoadError(f"{path} is not an image, or a damaged one.") from error
        if images is None:
            if pixels.nbytes * len(files) > _LARGEST_BYTES:
                raise LoadError(f"{root}: {len(files)} images of this size do not fit in memory; resize them.")
            images = np.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            here, there = (f"{s[0]}x{s[1]}" for s in (pixels.shape, images.shape[1:]))
            raise LoadError(f"{path} is {here}, the images before it are {there}: resize them to one size.")
        images[index] = pixels
    labels = torch.tensor([label for _, label in files])
    return LabelledImages(torch.from_numpy(images), labels, classes)


def _load_torchvision(name: str, folder: Path, part: str) -> LabelledImages:
    require("--data torchvision:NAME:DIR", "torchvision")
    import torchvision

    dataset_class = getattr(torchvision.datasets, name, None)
    if dataset_class is None:
        raise OptionError(f"--data: torchvision has no data set {name!r}; CIFAR10 and CIFAR100 are such names.")
    try:
        data = dataset_class(str(folder), train=part == "train", download=False)
        images, labels = np.asarray(data.data), np.asarray(data.targets, dtype=np.int64)
    except (RuntimeError, OSError, EOFError) as error:
        raise LoadError(f"{folder} does not hold torchvision's {name}: {error}") from error
    except (TypeError, AttributeError) as error:
        raise OptionError(f"--data: {name} is not a small set of labelled images; use imagefolder:DIR.") from error
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels), tuple(data.classes))


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise LoadError(f"{folder} is not a folder.")
