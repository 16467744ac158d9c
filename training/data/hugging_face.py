"""A data set of Hugging Face `datasets`, saved on disk by its `save_to_disk`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trp_export.errors import LoadError, first_line
from trp_export.system.extras import require
from trp_export.system.staging import real_path


class HuggingFaceSamples:
    """The first column of images, with the first column of class labels, or `label` where that holds whole numbers.

    Of a set with parts, `train` is taken. Raises LoadError where there are no such columns.
    """

    def __init__(self, folder: Path) -> None:
        require("--data huggingface:DIR", "datasets")
        import datasets

        self._folder = folder
        try:
            table: Any = datasets.load_from_disk(str(folder))
        except Exception as error:  # The library raises many kinds of errors for what it cannot read.
            raise LoadError(f"{folder} does not hold a saved Hugging Face data set: {first_line(error)}") from error
        if isinstance(table, datasets.DatasetDict):
            if "train" not in table:
                raise LoadError(f"{folder} has no part `train`, only {', '.join(list(table)[:5])}.")
            table = table["train"]
        image = _column(table, folder, "images", [name for name, kind in _kinds(table) if kind == "Image"])
        labels = [name for name, kind in _kinds(table) if kind == "ClassLabel"]
        named = [name for name in ("label", "labels") if "int" in str(getattr(table.features.get(name), "dtype", ""))]
        label = _column(table, folder, "class labels", labels + named)
        self._images = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        self._image = image
        self.labels = torch.from_numpy(np.asarray(table[label][:], dtype=np.int64))
        if not len(self.labels):
            raise LoadError(f"{folder} holds no images.")
        if self.labels.min() < 0:
            raise LoadError(f"{folder}: label {int(self.labels.min())} is below 0; images without labels cannot train.")
        names = getattr(table.features[label], "names", None)
        self.classes: tuple[str, ...] = tuple(names or map(str, range(int(self.labels.max()) + 1)))
        self._fingerprint = str(table._fingerprint)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"{self._folder}, row {index}"

    def read(self, index: int) -> Path | bytes:
        cell = self._images[index][self._image]
        return cell["bytes"] if cell["bytes"] is not None else self._file(str(cell["path"]))

    def _file(self, name: str) -> Path:
        """A file that a row names. Raises LoadError for one that lies outside the folder of the set."""
        path = self._folder / name
        if not real_path(path).is_relative_to(real_path(self._folder)):
            raise LoadError(f"{self._folder} names the image {name[:200]}, which lies elsewhere; embed it in the set.")
        return path

    def digest(self) -> str:
        """The library's own fingerprint of the set."""
        return self._fingerprint


def _kinds(table: Any) -> list[tuple[str, str]]:
    """The name and the kind of each column."""
    return [(str(name), type(kind).__name__) for name, kind in table.features.items()]


def _column(table: Any, folder: Path, what: str, names: Sequence[str]) -> str:
    if not names:
        raise LoadError(f"{folder} has no column of {what}; its columns are {', '.join(list(table.features)[:10])}.")
    return names[0]
