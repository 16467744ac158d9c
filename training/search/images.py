"""The images that a search looks at: labelled by a specification of trp-train's, or unlabelled by their path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training import data
from training.search.options import SearchOptions
from trp_export.errors import LoadError
from trp_export.inputs.images import ImageSet, InputShape, load_images
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.network import Network

_LABELLED = ("npz:", "imagefolder:", "torchvision:")


def read_images(options: SearchOptions, network: Network, count: int, seed: int) -> tuple[ImageSet, bool]:
    """`count` images of --data at most, drawn by seed, as the network takes them, and whether their labels count.

    A specification such as npz:DIR stands for the training part of a labelled set. Raises LoadError, OptionError.
    """
    assert options.data is not None
    spec, (shape,) = options.data, network.inputs.values()
    input_shape = (None, *shape[1:])
    preprocessing = Preprocessing(options.mean, options.std).or_else(network.source.mean, network.source.std)
    if not spec.startswith(_LABELLED):
        return load_images(Path(spec), preprocessing, input_shape=input_shape, count=count, seed=seed), False
    found = data.load_labelled_images(spec)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(found))[:count])
    size = _size(input_shape)
    pixels, labels = found.images.numpy()[chosen], found.labels.numpy()[chosen]
    notes = () if count <= len(found) else (f"{spec} holds {len(found)} images, {count} were asked for: all are used.",)
    return ImageSet(spec, pixels, labels, preprocessing, 3, size, notes, found.classes), True


def require_labels_fit(images: ImageSet, outputs: Sequence[int]) -> None:
    """Raises LoadError where the network's first output (N, classes) has no place for some label."""
    assert images.labels is not None
    if len(outputs) != 2:
        raise LoadError(f"{images.name}: labels need an output (N, classes), not one of {len(outputs)} axes.")
    if images.labels.max() >= outputs[1]:
        raise LoadError(f"{images.name}: label {images.labels.max()} is beyond the network's {outputs[1]} classes.")


def _size(input_shape: InputShape) -> tuple[int, int] | None:
    _, _, height, width = input_shape
    return (height, width) if height and width else None
