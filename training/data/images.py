"""Labelled images named by a one-line specification and held in memory as bytes, and their split into two parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.folder import FolderSamples
from trp_export.errors import LoadError, OptionError, first_line
from trp_export.inputs.arrays import read_arrays
from trp_export.inputs.pictures import read_picture
from trp_export.system.extras import require

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Those of torchvision's data sets that are small, labelled, and read without running anything from their files.
_TORCHVISION_SETS = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST")
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
        """The images at these indices."""
        return LabelledImages(self.images[indices], self.labels[indices], self.classes)

    def digest(self) -> str:
        """The sha256 of images, labels and class names."""
        total = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        for tensor in (self.images, self.labels):
            total.update(tensor.contiguous().numpy().data)
        return total.hexdigest()


def load_labelled_images(spec: str, part: str = "train") -> LabelledImages:
    """`npz:DIR`, `imagefolder:DIR` or `torchvision:NAME:DIR`; `part` is "train" or "test".

    npz: every `<part>*.npz` of the folder, with `images` uint8 (N, h, w, 3) and `labels` (N,).
    imagefolder: `DIR/<part>/<class>/*.png`, or `DIR/<class>/*.png` without parts. Raises LoadError, OptionError.
    """
    kind, _, rest = spec.partition(":")
    if kind == "npz" and rest:
        return _load_npz(Path(rest), part)
    if kind == "imagefolder" and rest:
        return load_folder(FolderSamples(Path(rest), part))
    if kind == "torchvision" and rest.count(":") >= 1:
        name, _, folder = rest.partition(":")
        return _load_torchvision(name, Path(folder), part)
    raise OptionError(f"--data {spec!r}: give npz:DIR, imagefolder:DIR or torchvision:NAME:DIR.")


def split(images: LabelledImages, validation_count: int, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """The training part and a validation part of `validation_count` images, drawn by seed."""
    train, validation = split_indices(len(images), validation_count, seed)
    return images.take(train), images.take(validation)


def split_indices(count: int, validation_count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The indices of both parts of `count` images."""
    if not 0 < validation_count < count:
        raise OptionError(f"--validation {validation_count} must be above 0 and below the number of images, {count}.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[validation_count:], order[:validation_count]


def require_fit(images: LabelledImages, input_shape: Sequence[int], outputs: int) -> None:
    """Raise LoadError where images do not have the network's size or labels are outside its classes."""
    height, width = images.images.shape[1:3]
    if tuple(input_shape[2:]) != (height, width):
        wanted = "x".join(map(str, input_shape[2:]))
        raise LoadError(f"the images are {height}x{width}, and the network takes {wanted}. Resize them.")
    require_labels(images, outputs)


class Labelled(Protocol):
    """Images by label: `labels` int64 (N,), and the class names in the order of the labels."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def classes(self) -> tuple[str, ...]: ...


def require_labels(images: Labelled, outputs: int) -> None:
    """Raise LoadError where labels are outside the classes of a network."""
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= outputs:
        raise LoadError(f"labels run from {low} to {high}; a network of {outputs} classes needs 0 to {outputs - 1}.")


def require_every_class(images: Labelled) -> None:
    """Raise LoadError where a class has no image: a single wrong label would give the network too many classes."""
    counts = torch.bincount(images.labels, minlength=len(images.classes))
    empty = [name for name, count in zip(images.classes, counts.tolist(), strict=True) if not count]
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise LoadError(
            f"there is no image of class {', '.join(empty[:3])}{more}. Labels must count from 0 without gaps."
        )


def _load_npz(folder: Path, part: str) -> LabelledImages:
    _require_folder(folder)
    paths = sorted(folder.glob(f"{part}*.npz"))
    if not paths:
        raise LoadError(f"{folder} holds no {part}*.npz.")
    shards: list[tuple[NDArray[np.uint8], NDArray[np.integer]]] = []
    for path in paths:
        shards.append(_read_npz(path))
        if sum(images.nbytes for images, _ in shards) > _LARGEST_BYTES:
            raise LoadError(f"{folder}: its {part}*.npz hold more than {_LARGEST_BYTES / 1e9:.0f} GB of images.")
    if len({images.shape[1:] for images, _ in shards}) > 1:
        raise LoadError(f"{folder}: its {part}*.npz hold images of different sizes.")
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
    arrays = read_arrays(path, only=("images", "labels"))
    if "images" not in arrays or "labels" not in arrays:
        raise LoadError(f"{path} must hold the arrays `images` and `labels`.")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise LoadError(f"{path}: `images` must be uint8 (N, h, w, 3), not {images.dtype} {images.shape}.")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise LoadError(f"{path}: `labels` must be {images.shape[0]} whole numbers, not {labels.dtype} {labels.shape}.")
    return images, labels


def load_folder(folder: FolderSamples) -> LabelledImages:
    """All images of a folder in memory. Raises LoadError where they have different sizes or take too much memory."""
    images: NDArray[np.uint8] | None = None
    for index in range(len(folder)):
        path = folder.read(index)
        pixels = np.asarray(read_picture(path))
        if images is None:
            if pixels.nbytes * len(folder) > _LARGEST_BYTES:
                raise LoadError(f"{len(folder)} images like {path} take more than {_LARGEST_BYTES / 1e9:.0f} GB.")
            images = np.empty((len(folder), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            here, there = (f"{s[0]}x{s[1]}" for s in (pixels.shape, images.shape[1:]))
            raise LoadError(f"{path} is {here}, and the images before it are {there}. Resize all to one size.")
        images[index] = pixels
    return LabelledImages(torch.from_numpy(images), folder.labels, folder.classes)


def _load_torchvision(name: str, folder: Path, part: str) -> LabelledImages:
    require("--data torchvision:NAME:DIR", "torchvision")
    import torchvision

    if name not in _TORCHVISION_SETS:
        raise OptionError(
            f"--data: {name!r} is not one of {', '.join(_TORCHVISION_SETS)}; use imagefolder:DIR instead."
        )
    try:
        data = getattr(torchvision.datasets, name)(str(folder), train=part == "train", download=False)
        images, labels = np.asarray(data.data), np.asarray(data.targets, dtype=np.int64)
    except Exception as error:  # Its readers raise many kinds of errors for damaged files.
        raise LoadError(f"{folder} does not hold torchvision's {name}: {first_line(error)}") from error
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels), tuple(data.classes))


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise LoadError(f"{folder} is not a folder.")
