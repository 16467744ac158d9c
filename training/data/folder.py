"""Images in one sub-folder for each class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from trp_export.errors import LoadError
from trp_export.inputs.pictures import picture_size

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# What people call the parts of a set.
_PARTS = {"train", "test", "val", "valid", "validation"}
# Sets below this size in bytes, of images of the network's size, are held in memory.
LARGEST_IN_MEMORY = 2**30


class FolderSamples:
    """`ROOT/CLASS/*.jpg`, or `ROOT/train/CLASS/*.jpg`; classes are the names of the folders in order.

    Names are kept as bytes in one array: as Python texts, those of ImageNet would take each worker 100 MB.
    """

    def __init__(self, folder: Path, part: str = "train") -> None:
        self._root = folder / part if _has_part(folder, part) else folder
        if not self._root.is_dir():
            raise LoadError(f"{self._root} is not a folder.")
        self.classes = tuple(sorted(_folders(self._root)))
        names, labels = [], []
        for label, name in enumerate(self.classes):
            files = sorted(_images(self._root / name))
            names += [os.fsencode(f"{name}/{file}") for file in files]
            labels += [label] * len(files)
        if not names:
            raise LoadError(f"{self._root} holds no images. It needs one sub-folder of images per class.")
        self._names, self.labels = np.array(names, dtype=np.bytes_), torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return str(self.read(index))

    def read(self, index: int) -> Path:
        return self._root / os.fsdecode(bytes(self._names[index]))

    def digest(self) -> str:
        """The sha256 of names and labels; the images themselves are not read for it."""
        total = hashlib.sha256(repr(self.classes).encode())
        total.update(self._names.tobytes())
        total.update(self.labels.numpy().tobytes())
        return total.hexdigest()

    def fit_in_memory(self, size: Sequence[int]) -> bool:
        """Whether all images have this size (h, w) and are few enough to be held as bytes."""
        if len(self) * size[0] * size[1] * 3 > LARGEST_IN_MEMORY:
            return False
        try:
            return all(picture_size(self.read(index)) == tuple(size) for index in range(len(self)))
        except LoadError:
            return False


def _has_part(folder: Path, part: str) -> bool:
    """Whether `folder`/`part` holds that part of the images, and is not the class of this name beside others."""
    return (folder / part).is_dir() and (bool(_folders(folder / part)) or _folders(folder) <= _PARTS)


def _folders(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.is_dir()}


def _images(folder: Path) -> Iterator[str]:
    """The names of the image files in a folder."""
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if entry.name.lower().endswith(_SUFFIXES))
