"""tools/data.py: only files with the pinned content are kept, and CIFAR-10 is split by the content of its images."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import data
import numpy as np
import pytest
from click.testing import CliRunner
from data import Download, content_digest, fetch, read_archive, write_splits

from trp_export.errors import LoadError

CONTENT = b"weights" * 1000


@pytest.fixture
def download(tmp_path: Path) -> Download:
    source = tmp_path / "public.bin"
    source.write_bytes(CONTENT)
    return Download("models/net.bin", source.as_uri(), len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "MIT")


def test_fetch_downloads_once(download: Download, tmp_path: Path) -> None:
    path = fetch(download, tmp_path / "cache")
    assert path == tmp_path / "cache" / "models" / "net.bin"
    assert path.read_bytes() == CONTENT
    (tmp_path / "public.bin").unlink()
    assert fetch(download, tmp_path / "cache") == path


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"x", b"evil!!!" * 1000])
def test_fetch_keeps_no_other_content(download: Download, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "public.bin").write_bytes(content)
    with pytest.raises(LoadError, match="is not the expected file"):
        fetch(download, tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_fetch_stops_at_the_expected_size(download: Download, tmp_path: Path) -> None:
    with (tmp_path / "public.bin").open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(LoadError, match="is not the expected file"):
        fetch(download, tmp_path / "cache")


def test_fetch_names_the_remedy(download: Download, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="TRP_DATA"):
        fetch(replace(download, url=(tmp_path / "absent").as_uri()), tmp_path / "cache")


def test_network_takes_a_copy_from_trp_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRP_DATA", str(tmp_path))
    copy = tmp_path / data.NETWORKS["resnet20"].place
    copy.parent.mkdir()
    copy.write_bytes(b"a copy")
    assert data.network("resnet20") == copy


def random_cifar(count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, 32, 32, 3), np.uint8), random.integers(0, 10, count, np.uint8)


def make_archive(path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """An archive like that of CIFAR-10, whose six files hold these images in turn."""
    records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(len(images), -1)], axis=1)
    with tarfile.open(path, "w:gz") as archive:
        for name, part in zip(data._MEMBERS, np.array_split(records, 6), strict=True):
            content = part.astype(np.uint8).tobytes()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_read_archive_gives_images_and_labels(tmp_path: Path) -> None:
    images, labels = random_cifar(14)
    found = read_archive(make_archive(tmp_path / "cifar.tar.gz", images, labels))
    np.testing.assert_array_equal(found[0], images)
    np.testing.assert_array_equal(found[1], labels)


@pytest.mark.parametrize("content", [b"", b"not an archive"])
def test_read_archive_refuses_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cifar.tar.gz").write_bytes(content)
    with pytest.raises(LoadError, match="is not the binary version"):
        read_archive(tmp_path / "cifar.tar.gz")


def test_write_splits_selects_images_by_content(tmp_path: Path) -> None:
    images, labels = random_cifar(12)
    keys = [hashlib.sha256(image.tobytes()).digest()[:5] for image in images]
    chosen = {"test_half": [7, 2], "train_1": [0, 11, 3]}
    order = b"".join(keys[index] for indices in chosen.values() for index in indices)
    splits = {name: (len(index), content_digest(images[index], labels[index])) for name, index in chosen.items()}
    shuffled = np.random.default_rng(1).permutation(12)
    write_splits(images[shuffled], labels[shuffled], order, splits, tmp_path)
    for name, index in chosen.items():
        with np.load(tmp_path / f"{name}.npz") as file:
            np.testing.assert_array_equal(file["images"], images[index])
            np.testing.assert_array_equal(file["labels"], labels[index])
    with np.load(tmp_path / "test_rest.npz") as file:
        assert len(file["images"]) == 7
        digests = [hashlib.sha256(image.tobytes()).digest() for image in file["images"]]
        assert digests == sorted(digests)
    with pytest.raises(LoadError, match="is not in this CIFAR-10"):
        write_splits(images[:-1], labels[:-1], order, splits, tmp_path)
    with pytest.raises(LoadError, match="does not have the expected images"):
        write_splits(images, 9 - labels, order, splits, tmp_path)


def test_the_order_restores_the_files_of_the_results(shared: Path, tmp_path: Path) -> None:
    """The real images, shuffled, with 5,000 others in place of the rest of the test set."""
    parts = {}
    for name in data.SPLITS:
        with np.load(shared / "data" / "cifar10" / f"{name}.npz") as file:
            parts[name] = file["images"], file["labels"].astype(np.uint8)
    others = random_cifar(5000)
    images = np.concatenate([*(part[0] for part in parts.values()), others[0]])
    labels = np.concatenate([*(part[1] for part in parts.values()), others[1]])
    shuffled = np.random.default_rng(0).permutation(len(images))
    write_splits(images[shuffled], labels[shuffled], data.ORDER.read_bytes(), data.SPLITS, tmp_path)
    for name, (expected, classes) in parts.items():
        with np.load(tmp_path / f"{name}.npz") as file:
            np.testing.assert_array_equal(file["images"], expected)
            np.testing.assert_array_equal(file["labels"], classes)


def test_local_copies_have_the_pinned_content(shared: Path) -> None:
    for download in data.NETWORKS.values():
        content = (shared / download.place).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (download.bytes, download.sha256)


def test_list_prints_licence_address_and_digest() -> None:
    text = CliRunner().invoke(data.main, ["--list"]).output
    for download in (data.CIFAR10, *data.NETWORKS.values()):
        assert download.url in text
        assert download.licence in text
        assert download.sha256 in text
