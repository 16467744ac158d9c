"""Images in tar files, read by `webdataset` one after the other: from disk, over the network or from a command.

A worker reads its shards in an order that follows from the seed and the epoch, and shuffles as it reads. A run that
resumes in mid-epoch reads them again up to where it stood, without decoding, and gets the same batches.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from training.data.loader import Item, Read, failed, make_loader, read_item, training_batch, validation_batch
from training.data.seeds import generator, mixed_seed
from training.data.streamed import VALIDATION_BATCH, Reading
from training.data.transforms import Transform, training_transform, validation_transform
from trp_export.errors import LoadError, OptionError, first_line
from trp_export.system.extras import require
from trp_export.system.files import read_bounded

# Undecoded images that a worker shuffles among: about 110 MB of ImageNet's.
SHUFFLED = 1000
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff", "gif")
_LABEL = "cls"
_MOST_CLASSES = 100_000
_LARGEST_NAMES = 1 << 24


@dataclass(frozen=True, slots=True)
class Shards:
    """Tar files by address, and how many images each holds; `classes` is empty where nothing names them."""

    addresses: tuple[str, ...]
    counts: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    def digest(self) -> str:
        """The sha256 of addresses and counts; the images themselves are not read for it."""
        return hashlib.sha256(repr((self.addresses, self.counts, self.classes)).encode()).hexdigest()


def is_local(pattern: str) -> bool:
    """Whether the shards are files; anything else is fetched by a command, which webdataset runs."""
    return ":" not in pattern


def find_shards(pattern: str, images: int | None) -> Shards:
    """The shards of a pattern such as `DIR/train-{0000..0146}.tar`, `DIR/*.tar` or `pipe:COMMAND {000..146}.tar`.

    Local shards are counted, which reads their headers, unless `images` says how many there are in all. Raises
    LoadError for a shard that is missing or damaged, OptionError where images that are not local are not counted.
    """
    require("--data webdataset:PATTERN", "webdataset")
    from webdataset.shardlists import expand_urls

    local = is_local(pattern)
    addresses = tuple(path for part in expand_urls(pattern) for path in _matching(part))
    if not local and images is None:
        raise OptionError(
            "--data webdataset over a network needs --epoch-images N, the number of images in the shards."
        )
    if local:
        for address in addresses:
            if not is_local(address):  # webdataset would take what stands before the colon for a way to fetch it.
                raise LoadError(f"the shard {address} has a colon in its name; rename it.")
            if not Path(address).is_file():
                raise LoadError(f"the shard {address} does not exist.")
    names = _class_names(Path(addresses[0]).parent) if local else ()
    if images is not None:
        return Shards(addresses, _even(images, len(addresses)), names)
    counted = [_counted(Path(address)) for address in addresses]
    if not names:
        names = tuple(map(str, range(max(label for _, label in counted) + 1)))
    return Shards(addresses, tuple(number for number, _ in counted), names)


class ShardSource:
    """Training and validation images from shards. The last shards, whole, are held out for validation."""

    def __init__(self, shards: Shards, validation_images: int, reading: Reading) -> None:
        self._reading, self._validation_images = reading, validation_images
        kept = len(shards.addresses)
        while kept and sum(shards.counts[kept:]) < validation_images:
            kept -= 1
        if not kept or not sum(shards.counts[:kept]):
            raise OptionError(f"--validation {validation_images} leaves no shard to train on; take fewer images.")
        processes, self._workers = reading.share[1], max(1, reading.workers)
        if kept < processes * self._workers:
            raise OptionError(
                f"{kept} training shards are too few for {processes} processes of {self._workers} workers each; "
                f"set --workers to at most {kept // processes}."
            )
        self._train, self._held_out = shards.addresses[:kept], shards.addresses[kept:]
        self.steps = sum(shards.counts[:kept]) // reading.batch

    def training(self, epoch: int, first_step: int, share: tuple[int, int]) -> DataLoader[Read]:
        reading = self._reading
        stream = _TrainingStream(self._train, reading, epoch, first_step, self.steps, share)
        return make_loader(stream, None, self._workers, pin_memory=reading.pinned)

    def validation(self) -> DataLoader[Read]:
        stream = _ValidationStream(self._held_out, self._reading, self._validation_images)
        return make_loader(stream, None, self._workers, pin_memory=self._reading.pinned)


class _Stream(IterableDataset[Read]):
    """Batches that a worker makes itself. What fails there becomes a batch that says why."""

    def __iter__(self) -> Iterator[Read]:
        try:
            yield from self._batches()
        except Exception as error:  # webdataset, tarfile and the commands that fetch shards raise many kinds.
            yield failed(f"a shard cannot be read: {first_line(error)}.")

    def _batches(self) -> Iterator[Read]:
        raise NotImplementedError


@dataclass
class _TrainingStream(_Stream):
    addresses: Sequence[str]
    reading: Reading
    epoch: int
    first_step: int
    steps: int
    share: tuple[int, int]

    def _batches(self) -> Iterator[Read]:
        """The batches of one worker. The loader takes one of each worker in turn, beginning with the first worker."""
        info = get_worker_info()
        assert info is not None, "shards are read in workers"
        process, processes = self.share
        # As if the epoch had begun at its first step: which worker would make this one's batches?
        role = (info.id + self.first_step) % info.num_workers
        stream, streams = process * info.num_workers + role, processes * info.num_workers
        size = len(range(process, self.reading.batch, processes))
        samples = self._samples(stream, streams)
        transform = training_transform(self.reading.augmentation, self.reading.size)
        done = len(range(role, self.first_step, info.num_workers))
        next(islice(samples, done * size, done * size), None)  # Read past, not decoded.
        for step in range(role + done * info.num_workers, self.steps, info.num_workers):
            seeds = (mixed_seed(self.reading.seed, self.epoch, step, process, place) for place in count())
            yield training_batch(
                [_item(sample, transform, seed) for sample, seed in zip(islice(samples, size), seeds, strict=False)]
            )

    def _samples(self, stream: int, streams: int) -> Iterator[dict[str, Any]]:
        """The images of one stream, shuffled, without end."""
        import random

        from webdataset.filters import shuffle

        def in_order() -> Iterator[dict[str, Any]]:
            for lap in count():
                order = torch.randperm(
                    len(self.addresses), generator=generator(self.reading.seed, self.epoch, lap, streams)
                )
                yield from _read_shards([self.addresses[index] for index in order[stream::streams]])

        source = random.Random(mixed_seed(self.reading.seed, self.epoch, stream, streams))
        repeat = self.reading.augmentation.repeat
        for sample in shuffle(SHUFFLED, rng=source)(in_order()):
            yield from [sample] * repeat


@dataclass
class _ValidationStream(_Stream):
    addresses: Sequence[str]
    reading: Reading
    images: int

    def _batches(self) -> Iterator[Read]:
        """The images that fall to one worker: every worker reads all shards and decodes its part."""
        info = get_worker_info()
        assert info is not None, "shards are read in workers"
        process, processes = self.reading.share
        start, every = process * info.num_workers + info.id, processes * info.num_workers
        samples = islice(_read_shards(self.addresses), start, self.images, every)
        transform = validation_transform(self.reading.size)
        while items := [_item(sample, transform, 0) for sample in islice(samples, VALIDATION_BATCH)]:
            yield validation_batch(items)


def _read_shards(addresses: Sequence[str]) -> Iterator[dict[str, Any]]:
    from webdataset.tariterators import tarfile_samples

    wanted = (*_IMAGES, _LABEL)
    for sample in tarfile_samples(
        iter([{"url": address} for address in addresses]),
        select_files=lambda name: name.rpartition(".")[2].lower() in wanted,
    ):
        if any(kind in sample for kind in _IMAGES):
            yield sample


def _item(sample: dict[str, Any], transform: Transform, seed: int) -> Item:
    kind = next(kind for kind in _IMAGES if kind in sample)
    name = f"{sample['__url__']}, {sample['__key__']}.{kind}"
    return read_item(sample[kind], name, _label(sample.get(_LABEL, b""), name), transform, seed)


def _label(text: bytes, name: str) -> int:
    """Raises LoadError where the label is not a whole number from 0."""
    if not text.strip().isdigit() or int(text) >= _MOST_CLASSES:
        raise LoadError(f"{name} has no label: its .{_LABEL} must hold a whole number below {_MOST_CLASSES}")
    return int(text)


def _matching(pattern: str) -> list[str]:
    """The files that a pattern with * or ? matches; the pattern itself where it has neither."""
    if not set("*?[") & set(pattern) or not is_local(pattern):
        return [pattern]
    path = Path(pattern)
    return sorted(map(str, path.parent.glob(path.name))) or [pattern]


def _counted(path: Path) -> tuple[int, int]:
    """How many images a local shard holds, and its highest label."""
    images, highest = 0, 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                suffix = member.name.rpartition(".")[2].lower()
                images += suffix in _IMAGES
                if suffix == _LABEL and (file := archive.extractfile(member)) is not None:
                    highest = max(highest, _label(file.read(32), f"{path}, {member.name}"))
    except (OSError, tarfile.TarError, EOFError) as error:
        raise LoadError(f"{path} cannot be read as a tar file: {first_line(error)}.") from error
    return images, highest


def _class_names(folder: Path) -> tuple[str, ...]:
    """The lines of classes.txt beside the shards."""
    path = folder / "classes.txt"
    if not path.is_file():
        return ()
    return tuple(read_bounded(path, _LARGEST_NAMES).decode("utf-8", "replace").splitlines())


def _even(images: int, shards: int) -> tuple[int, ...]:
    return tuple(images // shards + (index < images % shards) for index in range(shards))
