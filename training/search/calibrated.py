"""The network that is searched, and the images that a search uses: loaded, folded, calibrated, in full batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import torch

from training.data.images import load_labelled_images
from training.search.loop import Examples
from training.search.options import SearchOptions
from trp_export.calibration.moments import Moments
from trp_export.errors import LoadError, OptionError
from trp_export.inputs.calibration import image_samples
from trp_export.inputs.images import ImageSet, load_images
from trp_export.inputs.options import InputOptions
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.load import load
from trp_export.network import Network, analyse
from trp_export.options import SYNTHETIC, Calibration, LoadOptions, Options
from trp_export.recover.torch_graph import TorchGraph
from trp_export.rules import Energy
from trp_export.runtime.partial import fixed_batch
from trp_export.steps.calibrate import calibrate
from trp_export.steps.synthetic_samples import synthetic_images, synthetic_note
from trp_export.system.files import atomic_write
from trp_export.system.progress import Progress

LABELLED = ("npz:", "imagefolder:", "torchvision:")
# Eight images of 3x224x224, and at most 32 smaller ones: many small steps, each with candidates of its own, show more
# than a few large ones.
_BATCH_ELEMENTS, _LARGEST_BATCH = 8 * 3 * 224 * 224, 32
MOST_IMAGES = 1024


@dataclass(frozen=True, slots=True, eq=False)
class SearchedNetwork:
    """The network, images that fill its batches, the moments of its layers on these, and notes for the user."""

    network: Network
    images: ImageSet
    examples: Examples
    moments: Mapping[str, Moments]
    notes: tuple[str, ...]


def calibrate_for_search(model: Path, options: SearchOptions, folder: Path, progress: Progress) -> SearchedNetwork:
    """Load the model, bring it into normal form with batch norm folded, and run the images through it."""
    progress("load", 0)
    source = load(model, LoadOptions(options.arch, InputOptions().or_shape(options.input_shape)))
    network = analyse(source, folder, fold=True)
    images = _full_batches(_open_images(options, network, progress), fixed_batch(network.model) or 1)
    export = Options(rule=Energy(1.0), calibration=Calibration(Path(images.name), seed=options.seed))
    data, _ = calibrate(network, (), image_samples(images, network.described), export, progress)
    assert data is not None, "samples were given"
    inputs = torch.from_numpy(np.array(images.inputs)).contiguous(memory_format=torch.channels_last)
    graph = TorchGraph(network.model)
    with torch.no_grad():
        answers = [graph(part) for part in torch.split(inputs, batch_size(network, len(images), options.batch))]
    wanted = [torch.cat(parts) for parts in zip(*answers, strict=True)]
    labels = None
    if images.labels is not None:
        require_labels_fit(images, wanted[0].shape)
        labels = torch.from_numpy(images.labels)
    return SearchedNetwork(network, images, Examples(inputs, labels, wanted), data.moments, data.notes)


def labelled_images(spec: str, network: Network, preprocessing: Preprocessing, count: int, seed: int) -> ImageSet:
    """`count` images at most of the training part of a labelled set, chosen by seed. Raises LoadError, OptionError."""
    images = load_labelled_images(spec)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:count])
    (shape,) = network.inputs.values()
    _, _, height, width = shape
    size = (height, width) if height and width else None
    notes = () if count <= len(images) else (f"{spec} holds {len(images)} images: all are used.",)
    pixels, labels = images.images.numpy()[chosen], images.labels.numpy()[chosen]
    return ImageSet(spec, pixels, labels, preprocessing, 3, size, notes, images.classes)


def require_labels_fit(images: ImageSet, outputs: Sequence[int]) -> None:
    """Raise LoadError where the network's first output is not (N, classes), or a label is outside the classes."""
    assert images.labels is not None
    if len(outputs) != 2:
        raise LoadError(f"{images.name}: labels need an output (N, classes); this one has {len(outputs)} axes.")
    if images.labels.max() >= outputs[1]:
        raise LoadError(f"{images.name}: label {images.labels.max()} is outside the network's {outputs[1]} classes.")


def batch_size(network: Network, images: int, wanted: int) -> int:
    """How many images a step takes: `wanted`, or 0 to go by their size; never more than there are.

    Raises OptionError where the model has a fixed batch of another size.
    """
    fixed = fixed_batch(network.model)
    if fixed is not None and wanted not in (0, fixed):
        raise OptionError(f"--batch {wanted}: the model takes {fixed} images at a time.")
    (shape,) = network.inputs.values()
    by_size = int(np.clip(_BATCH_ELEMENTS // prod(size or 1 for size in shape[1:]), 1, _LARGEST_BATCH))
    return min(fixed or wanted or by_size, images)


def _open_images(options: SearchOptions, network: Network, progress: Progress) -> ImageSet:
    """The images to search with; they have labels only where these are used."""
    preprocessing = Preprocessing(options.mean, options.std).or_else(network.source.mean, network.source.std)
    count = options.count or MOST_IMAGES
    if options.data is None:
        return _generated_images(options, network, progress)
    if options.data.startswith(LABELLED):
        return labelled_images(options.data, network, preprocessing, count, options.seed)
    spec = network.described.image
    images = load_images(Path(options.data), preprocessing, spec=spec, count=count, seed=options.seed)
    return replace(images, labels=None)


def _generated_images(options: SearchOptions, network: Network, progress: Progress) -> ImageSet:
    """Synthetic images, kept beside the plan for a search that is resumed."""
    (shape,) = network.inputs.values()
    file = options.folder / "synthetic.npy"
    if not file.exists():
        calibration = Calibration(SYNTHETIC, options.count, options.seed)
        images = synthetic_images(network, calibration, Preprocessing(options.mean, options.std), progress)
        with atomic_write(file) as part, part.open("wb") as stream:
            np.save(stream, images.inputs)
    images = load_images(file, input_shape=(None, *shape[1:]))
    return replace(images, notes=(*images.notes, synthetic_note(len(images), options.seed)))


def _full_batches(images: ImageSet, size: int) -> ImageSet:
    """The images without those that do not fill a batch. Raises OptionError where none are left."""
    count = len(images) // size * size
    if not count:
        raise OptionError(f"the model takes {size} images at a time, and {images.name} holds {len(images)}.")
    labels = None if images.labels is None else images.labels[:count]
    return replace(images, pixels=images.pixels[:count], labels=labels)


def digests_of(known: SearchedNetwork) -> dict[str, str]:
    """The sha256 of the images and labels as the network takes them, and of its kernels."""
    labels = () if known.examples.labels is None else (known.examples.labels.numpy(),)
    kernels = (place.kernel() for place in known.network.located)
    return {"--data": _sha256((known.examples.images.numpy(), *labels)), "MODEL": _sha256(kernels)}


def _sha256(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
