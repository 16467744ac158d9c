"""Images of any size, read in workers: the same batches again, in any number of processes; odd files named."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.augmentation import Augmentation, read_augmentation, write_augmentation
from training.data.batches import TrainingBatches
from training.data.folder import FolderSamples
from training.data.images import split_indices
from training.data.loader import read_batches
from training.data.normalisation import Normalisation
from training.data.odd_images import OddImages
from training.data.reading import decode
from training.data.shards import ShardSource, find_shards, is_local
from training.data.streamed import IndexedSource, Reading, StreamedBatches, StreamedValidation
from trp_export.errors import LoadError, OptionError, TrpError
from trp_export.system.extras import is_installed

NORMALISE = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SIZE, BATCH, CLASSES = 8, 4, ("blue", "red")


def picture(index: int, label: int) -> Image.Image:
    """An image of its own size, mostly of the colour of its class, and otherwise like no other."""
    random = np.random.default_rng(index)
    pixels = random.integers(0, 90, (10 + index % 5, 9 + index % 7, 3), dtype=np.uint8)
    pixels[..., 2 * (1 - label)] += 150
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 images in two classes."""
    for index in range(24):
        path = tmp_path / "images" / CLASSES[index % 2] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(index, index % 2).save(path)
    return tmp_path / "images"


def reading(**changes: Any) -> Reading:
    values: dict[str, Any] = {
        "batch": BATCH,
        "seed": 3,
        "size": (SIZE, SIZE),
        "augmentation": Augmentation(),
        "workers": 0,
        "share": (0, 1),
        "device": torch.device("cpu"),
        "normalisation": NORMALISE,
        "classes": 2,
    }
    return Reading(**values | changes)


def from_folder(folder: Path, **changes: Any) -> tuple[StreamedBatches, StreamedValidation, OddImages]:
    samples, how = FolderSamples(folder), reading(**changes)
    source = IndexedSource(samples, split_indices(len(samples), 6, seed=3)[1], how)
    return StreamedBatches(source, how), StreamedValidation(source, how), how.odd_images


def from_shards(folder: Path, **changes: Any) -> tuple[StreamedBatches, StreamedValidation, OddImages]:
    how = reading(**{"workers": 1} | changes)
    source = ShardSource(find_shards(f"{folder}/*.tar", None), 6, how)
    return StreamedBatches(source, how), StreamedValidation(source, how), how.odd_images


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The same images in four tar files of six, with classes.txt."""
    place = tmp_path / "shards"
    place.mkdir()
    (place / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for number in range(4):
        with tarfile.open(place / f"train-{number}.tar", "w") as archive:
            for index in range(6 * number, 6 * number + 6):
                content = io.BytesIO()
                picture(index, index % 2).save(content, "PNG")
                add(archive, f"{index:02}.png", content.getvalue())
                add(archive, f"{index:02}.cls", str(index % 2).encode())
    return place


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def assert_same(first: list[tuple[torch.Tensor, ...]], second: list[tuple[torch.Tensor, ...]]) -> None:
    assert len(first) == len(second) > 0
    for mine, other in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_resumes_in_its_midst_to_the_same_batches(folder: Path, workers: int) -> None:
    batches: TrainingBatches = from_folder(folder)[0]
    whole = list(batches.epoch(1))
    assert len(whole) == len(batches) == 18 // BATCH
    assert whole[0][0].shape == (BATCH, 3, SIZE, SIZE)
    assert whole[0][0].is_contiguous(memory_format=torch.channels_last)
    assert_same(whole[2:], list(from_folder(folder, workers=workers)[0].epoch(1, first_step=2)))
    assert not torch.equal(whole[0][0], next(batches.epoch(2))[0])
    assert list(batches.epoch(1, first_step=len(batches))) == []


def test_processes_share_each_batch_whatever_their_number(folder: Path) -> None:
    whole = list(from_folder(folder)[0].epoch(0))
    parts = [list(from_folder(folder, share=(process, 2))[0].epoch(0)) for process in range(2)]
    for (x, y), *shares in zip(whole, *parts, strict=True):
        for process, (part_x, part_y) in enumerate(shares):
            assert torch.equal(x[process::2], part_x)
            assert torch.equal(y[process::2], part_y)


def test_training_and_validation_share_no_image(folder: Path) -> None:
    plain = Augmentation(crop=1.0)
    batches, validation, _ = from_folder(folder, batch=1, augmentation=plain)
    assert len(batches) == 18
    ((x, y),) = validation.batches()
    assert len(x) == 6
    assert [int(image[2].mean() > image[0].mean()) for image in x] == [1 - int(label) for label in y]
    again = from_folder(folder, batch=1, augmentation=plain)[1]
    assert torch.equal(next(again.batches())[0], x)


def test_repeated_images_lie_in_one_batch(folder: Path) -> None:
    ((_, labels), *_) = from_folder(folder, augmentation=Augmentation(repeat=4))[0].epoch(0)
    assert len(set(labels.tolist())) == 1


def test_mixing_turns_labels_into_shares(folder: Path) -> None:
    for kind in ("mixup", "cutmix"):
        batches = from_folder(folder, augmentation=Augmentation(**{kind: 1.0}))[0]
        x, y = next(batches.epoch(0))
        assert y.shape == (BATCH, 2)
        assert torch.allclose(y.sum(1), torch.ones(BATCH))
        assert torch.equal(next(batches.epoch(0))[0], x)
        assert torch.nn.functional.cross_entropy(torch.zeros(BATCH, 2), y).item() == pytest.approx(np.log(2), rel=1e-5)


def test_augmentations_are_written_as_they_are_read() -> None:
    text = "crop=0.25,jitter=0.4,randaugment=9,mixup=0.2,cutmix=1,repeat=3"
    assert write_augmentation(read_augmentation(text)) == text
    assert read_augmentation("") == Augmentation()
    for wrong in ("crop", "zoom=1", "crop=2", "repeat=1.5", "repeat=0", "crop=0.2,crop=0.3", "mixup=nan"):
        with pytest.raises(ValueError, match=r"\w"):
            read_augmentation(wrong)


def test_every_operation_keeps_the_size(folder: Path) -> None:
    augmentation = Augmentation(jitter=0.5, randaugment=9)
    for x, _ in from_folder(folder, augmentation=augmentation)[0].epoch(0):
        assert x.shape == (BATCH, 3, SIZE, SIZE)


def odd_files() -> dict[str, tuple[bytes, str]]:
    """Files that are not plain 8-bit RGB, and what is said of each."""
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    image = Image.fromarray(pixels)

    def saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
        content = io.BytesIO()
        image.save(content, kind, **settings)
        return content.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16))
    whole = saved(image.resize((64, 64)), "JPEG")
    return {
        "cmyk": (saved(image.convert("CMYK"), "JPEG"), "CMYK"),
        "palette": (saved(image.quantize(16), "PNG"), "palette"),
        "deep": (saved(deep, "PNG"), "16-bit"),
        "turned": (saved(image, "JPEG", exif=turned), "turned as its EXIF says"),
        "truncated": (whole[: len(whole) // 2], "cannot be decoded"),
        "empty": (b"", "is not a"),
        "text": (b"no image at all", "is not a"),
    }


@pytest.mark.parametrize("name", list(odd_files()))
def test_odd_images_are_decoded_or_named(name: str) -> None:
    content, remark = odd_files()[name]
    decoded = decode(content, "the file")
    assert decoded.remark is not None
    assert remark in decoded.remark
    if decoded.image is None:
        assert "the file" in decoded.remark
        return
    assert decoded.image.mode == "RGB"
    if name == "deep":
        assert np.asarray(decoded.image)[..., 0].mean() == pytest.approx(127, abs=1)


def test_damaged_images_are_replaced_in_training_and_left_out_of_validation(folder: Path) -> None:
    sound = sorted(str(path) for path in folder.rglob("*.png"))
    for path in sound[::5]:
        Path(path).write_bytes(b"damaged")
    if hasattr(os, "mkfifo"):
        Path(sound[0]).unlink()
        os.mkfifo(sound[0])  # Nobody will ever write into it.
    batches, validation, odd = from_folder(folder)
    assert all(x.shape == (BATCH, 3, SIZE, SIZE) and torch.isfinite(x).all() for x, _ in batches.epoch(0))
    count = sum(len(y) for _, y in validation.batches())
    held_out = FolderSamples(folder)
    damaged = {held_out.name(int(index)) for index in split_indices(24, 6, seed=3)[1]} & set(sound[::5])
    assert count == 6 - len(damaged)
    assert odd.summary().endswith(" damaged")
    odd.write(folder / "odd.txt")
    assert {line.split(": ")[0] for line in (folder / "odd.txt").read_text().splitlines()} <= set(sound[::5])


def test_a_batch_of_damaged_images_ends_the_epoch(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(LoadError, match="all 4 images of a batch are damaged"):
        list(from_folder(folder)[0].epoch(0))


class DyingSamples(FolderSamples):
    """Kills the worker that reads the last image."""

    def read(self, index: int) -> Path:
        if index == len(self) - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


def test_a_worker_that_dies_is_reported_between_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.data.dataloader._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # Seconds, once 5.
    samples, how = DyingSamples(folder), reading(workers=1)
    source = IndexedSource(samples, torch.tensor([0]), how)
    with pytest.raises(TrpError, match=r"a process that reads images has died.*lower --workers"):
        list(read_batches(source.training(0, 0, (0, 1))))


READING = """
from torch.utils.data import IterableDataset
from training.data.loader import make_loader
class Numbers(IterableDataset):
    def __iter__(self): yield from range(1000)
reading = iter(make_loader(Numbers(), None, 1))
next(reading)
"""


def test_a_process_ends_while_its_workers_read(tmp_path: Path) -> None:
    """As one does whose error holds on to them."""
    subprocess.run([sys.executable, "-c", READING], timeout=120, check=True, cwd=tmp_path)


def test_folders_name_the_classes(folder: Path) -> None:
    samples = FolderSamples(folder)
    assert samples.classes == CLASSES
    assert samples.labels.bincount().tolist() == [12, 12]
    digest = samples.digest()
    (folder / "red" / "more.png").write_bytes(b"")
    assert FolderSamples(folder).digest() != digest
    assert not samples.fit_in_memory((SIZE, SIZE))


def test_a_class_may_be_called_train(folder: Path, tmp_path: Path) -> None:
    (folder / "red").rename(folder / "train")
    assert FolderSamples(folder).classes == ("blue", "train")
    parts = tmp_path / "parts"
    parts.mkdir()
    folder.rename(parts / "train")
    assert FolderSamples(parts).classes == ("blue", "train")
    flat = tmp_path / "flat"
    for part in ("train", "test"):
        (flat / part).mkdir(parents=True)
        picture(0, 0).save(flat / part / "0.png")
    with pytest.raises(LoadError, match="train holds no images"):
        FolderSamples(flat)


needs_webdataset = pytest.mark.skipif(not is_installed("webdataset"), reason="webdataset is not installed")


@needs_webdataset
@pytest.mark.parametrize("workers", [1, 2])
def test_shards_resume_in_mid_epoch_to_the_same_batches(shards: Path, workers: int) -> None:
    batches = from_shards(shards, workers=workers)[0]
    whole = list(batches.epoch(2))
    assert len(whole) == len(batches) == 18 // BATCH
    for first in (1, 2, 3):
        assert_same(whole[first:], list(from_shards(shards, workers=workers)[0].epoch(2, first_step=first)))


@needs_webdataset
def test_shards_hold_out_whole_shards(shards: Path) -> None:
    plain = Augmentation(crop=1.0)
    batches, validation, _ = from_shards(shards, batch=2, augmentation=plain)
    seen = [int(label) for _, labels in batches.epoch(0) for label in labels]
    assert len(seen) == 18
    assert sum(len(y) for _, y in validation.batches()) == 6
    assert find_shards(f"{shards}/train-{{0..3}}.tar", None).classes == CLASSES
    with pytest.raises(OptionError, match="leaves no shard to train on"):
        ShardSource(find_shards(f"{shards}/*.tar", None), 24, reading())
    with pytest.raises(OptionError, match="set --workers to at most 3"):
        list(from_shards(shards, workers=4)[0].epoch(0))


@needs_webdataset
def test_a_shard_that_is_missing_is_named(shards: Path) -> None:
    with pytest.raises(LoadError, match=r"train-4\.tar does not exist"):
        find_shards(f"{shards}/train-{{0..4}}.tar", None)
    batches = from_shards(shards)[0]
    for path in shards.glob("*.tar"):
        path.unlink()
    with pytest.raises(LoadError, match=r"a shard cannot be read: .*No such file"):
        list(batches.epoch(0))


@needs_webdataset
def test_the_name_of_a_shard_is_no_command(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    (shards / "train-0.tar").rename(shards / "pipe:touch imported;.tar")
    with pytest.raises(LoadError, match="has a colon in its name; rename it"):
        find_shards("*.tar", None)


@needs_webdataset
def test_shards_that_are_not_local_must_be_counted(shards: Path) -> None:
    pattern = f"pipe:cat {shards}/train-{{0..3}}.tar"
    assert not is_local(pattern)
    with pytest.raises(OptionError, match="needs --epoch-images"):
        find_shards(pattern, None)
    how = reading(workers=1)
    source = ShardSource(find_shards(pattern, 24), 6, how)
    assert len(list(StreamedBatches(source, how).epoch(0))) == 4


def test_hugging_face_sets_are_read_from_disk(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from training.data.hugging_face import HuggingFaceSamples

    files = FolderSamples(folder)
    table = datasets.Dataset.from_dict(
        {"image": [files.name(index) for index in range(24)], "label": files.labels.tolist()},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}),
    )
    table.save_to_disk(str(tmp_path / "saved"))
    samples = HuggingFaceSamples(tmp_path / "saved")
    assert samples.classes == CLASSES
    assert samples.labels.tolist() == files.labels.tolist()
    how = reading()
    held_out = split_indices(24, 6, seed=3)[1]
    assert_same(
        list(StreamedBatches(IndexedSource(samples, held_out, how), how).epoch(0)),
        list(from_folder(folder)[0].epoch(0)),
    )
    with pytest.raises(LoadError, match="does not hold a saved Hugging Face data set"):
        HuggingFaceSamples(folder)


def test_a_hugging_face_set_names_no_image_outside_its_folder(folder: Path, tmp_path: Path) -> None:
    from training.data.hugging_face import HuggingFaceSamples

    saved = tmp_path / "saved"
    names = (str(folder / CLASSES[0] / "00.png"), "../images/blue/00.png", "inside.png")
    samples = HuggingFaceSamples.__new__(HuggingFaceSamples)
    samples._folder, samples._image = saved, "image"
    samples._images = [{"image": {"bytes": None, "path": name}} for name in names]
    for index in (0, 1):
        with pytest.raises(LoadError, match="which lies elsewhere"):
            samples.read(index)
    assert samples.read(2) == saved / "inside.png"
