"""The data of a run: batches to train on, images to validate on, and a digest that tells whether they have changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from training.checkpoint import TrainedNetwork
from training.data.augmentation import Augmentation
from training.data.batches import TrainingBatches, ValidationImages
from training.data.classes import numbers_by_name
from training.data.folder import FolderSamples
from training.data.hugging_face import HuggingFaceSamples
from training.data.images import (
    LabelledImages,
    load_folder,
    load_labelled_images,
    require_every_class,
    require_fit,
    require_labels,
    split,
    split_indices,
)
from training.data.in_memory import BatchesInMemory, ValidationInMemory
from training.data.loader import default_workers
from training.data.normalisation import Normalisation
from training.data.odd_images import OddImages
from training.data.shards import Shards, ShardSource, find_shards
from training.data.streamed import IndexedSource, Reading, Source, StreamedBatches, StreamedValidation
from training.data.transforms import BatchMix
from training.options import TrainOptions
from training.replicas import world
from trp_export.errors import LoadError, OptionError


class Images(Protocol):
    """The images that --data names, before they are split and read."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def digest(self) -> str: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class RunData:
    """What a run trains on and is judged by. `odd_images` fills while images are streamed."""

    train: TrainingBatches
    validation: ValidationImages
    digest: str
    odd_images: OddImages


def find_images(options: TrainOptions) -> Images:
    """The images of the run. Raises LoadError where a network from scratch would have a class without images."""
    kind, _, place = options.data.partition(":")
    if kind == "webdataset" and place:
        return find_shards(place, options.loading.epoch_images)
    images: LabelledImages | FolderSamples | HuggingFaceSamples
    if kind == "imagefolder" and place:
        images = FolderSamples(Path(place))
    elif kind == "huggingface" and place:
        images = HuggingFaceSamples(Path(place))
    else:
        images = load_labelled_images(options.data)
    if options.start.init is None:  # Weights determine the number of classes; the images may show only some.
        require_every_class(images)
    return images


def make_data(
    options: TrainOptions, images: Images, network: TrainedNetwork, classes: int, device: torch.device
) -> RunData:
    """Split the images and prepare them for the network of so many classes.

    Raises LoadError, OptionError where they do not fit.
    """
    batch, processes = options.optimisation.batch, world()[1]
    if batch % processes:
        raise OptionError(f"--batch {batch} must be a multiple of the {processes} processes.")
    if len(network.input_shape) != 4:
        raise LoadError(f"{network.arch} takes inputs of {len(network.input_shape)} axes; images have 4.")
    height, width = network.input_shape[2:]
    is_plain = options.loading.augment == Augmentation()
    numbers = None if options.guesses_classes else numbers_by_name(images.classes, network.classes)
    if isinstance(images, FolderSamples) and is_plain and images.fit_in_memory((height, width)):
        images = load_folder(images)
    data = (
        _in_memory(options, images, numbers, network, classes, device)
        if isinstance(images, LabelledImages)
        else _streamed(options, images, numbers, network, classes, device)
    )
    if not len(data.train):
        raise OptionError(f"--batch {batch} is more than the training images.")
    if numbers is None:
        return data
    # A run that began with other numbers of the same classes must not go on with these.
    return replace(data, digest=f"{data.digest} as {','.join(map(str, numbers.tolist()))}")


def _in_memory(
    options: TrainOptions,
    images: LabelledImages,
    numbers: Tensor | None,
    network: TrainedNetwork,
    classes: int,
    device: torch.device,
) -> RunData:
    augment = options.loading.augment
    if replace(augment, mixup=0.0, cutmix=0.0) != Augmentation():
        raise OptionError(
            f"{options.data} is held in memory, where --augment knows mixup and cutmix only; the others are for "
            "images that are read while training."
        )
    numbered = images if numbers is None else replace(images, labels=numbers[images.labels], classes=network.classes)
    train, validation = split(numbered, options.validation, options.seed)
    require_fit(train, network.input_shape, classes)
    normalisation = Normalisation(network.mean, network.std)
    return RunData(
        BatchesInMemory(
            train,
            normalisation,
            options.optimisation.batch,
            options.seed,
            device,
            world(),
            BatchMix(augment, classes) if augment.mixes else None,
        ),
        ValidationInMemory(validation, normalisation, device, world()),
        images.digest(),
        OddImages(),
    )


def _streamed(
    options: TrainOptions,
    images: Images,
    numbers: Tensor | None,
    network: TrainedNetwork,
    classes: int,
    device: torch.device,
) -> RunData:
    workers = options.loading.workers
    height, width = network.input_shape[2:]
    reading = Reading(
        batch=options.optimisation.batch,
        seed=options.seed,
        size=(height, width),
        augmentation=options.loading.augment,
        workers=default_workers() if workers is None else workers,
        share=world(),
        device=device,
        normalisation=Normalisation(network.mean, network.std),
        classes=classes,
        numbers=numbers,
    )
    source = _source(options, images, reading)
    batches, validation = StreamedBatches(source, reading), StreamedValidation(source, reading)
    return RunData(batches, validation, images.digest(), reading.odd_images)


def _source(options: TrainOptions, images: Images, reading: Reading) -> Source:
    if isinstance(images, Shards):
        return ShardSource(images, options.validation, reading)
    assert isinstance(images, FolderSamples | HuggingFaceSamples)
    require_labels(images, reading.classes)
    held_out = split_indices(len(images), options.validation, options.seed)[1]
    return IndexedSource(images, held_out, reading)
