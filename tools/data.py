"""Fetch the data and the networks that the results were measured with. Each file has a pinned sha256.

    python tools/data.py                      # everything: 170 MB to download, 180 MB on disk
    python tools/data.py resnet20 ultraface   # some of it
    python tools/data.py --list               # licence, address and sha256 of each

The files go to the cache folder of the user; the environment variable TRP_DATA names another folder, such as one with
copies that are there already. The scripts in tools/ fetch what they need by themselves.

CIFAR-10 becomes data/cifar10/train_1.npz to train_5.npz, with 10,000 images each, test_half.npz and test_rest.npz, with
5,000 test images each. The results use test_half; test_rest is for final claims only, so never choose anything by it.
cifar10_order.bin says which images are in which file, in which order: it holds the first 5 bytes of the sha256 of each
image (32 x 32 x 3 bytes), for test_half and then train_1 to train_5. test_rest holds the others, ordered by sha256.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import platformdirs
from numpy.typing import NDArray

from trp_export.errors import LoadError, TrpError
from trp_export.system.files import atomic_write

ORDER = Path(__file__).with_name("cifar10_order.bin")
_KEY_BYTES = 5
_CHUNK_BYTES = 2**20
_TIMEOUT_S = 60

Images = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Download:
    """A public file: its address, size, sha256 and licence, and its place below the data folder."""

    place: str
    url: str
    bytes: int
    sha256: str
    licence: str


_RESNETS = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
_OCR = "https://www.modelscope.cn/models/RapidAI/RapidOCR/resolve/v3.7.0/onnx/PP-OCRv4"
_EXAMPLES = "https://github.com/microsoft/onnxruntime-inference-examples/raw/d9e1a944b940e698539c4c3986e35d8dc633c88f"
_FACES = (
    "https://github.com/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB/raw/442599cebf11307bc231e2e5c3c6c869369fee48"
)
NETWORKS = {
    "resnet20": Download(
        "models/resnet20-12fca82f.th",
        f"{_RESNETS}/resnet20-12fca82f.th",
        1_099_231,
        "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
        "BSD-2-Clause, Yerlan Idelbayev",
    ),
    "resnet32": Download(
        "models/resnet32-d509ac18.th",
        f"{_RESNETS}/resnet32-d509ac18.th",
        1_890_043,
        "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850",
        "BSD-2-Clause, Yerlan Idelbayev",
    ),
    "super_resolution": Download(
        "models/super_resolution_prepost_op18.onnx",
        f"{_EXAMPLES}/mobile/examples/super_resolution/android/app/src/main/res/raw/"
        "pytorch_superresolution_with_pre_post_processing_op18.onnx",
        248_823,
        "2d56fcee2a3efcd6bad954357e8e176244e9122fca7d777451492c2cfcd5de09",
        "MIT, Microsoft",
    ),
    "ultraface": Download(
        "models/ultraface_slim_320.onnx",
        f"{_FACES}/models/onnx/version-slim-320_simplified.onnx",
        1_047_549,
        "0863d8fedffb8692c3fef345193c7befc9b513a66ac4ff87bdecf47452fa272f",
        "MIT, linzai",
    ),
    "text_detector": Download(
        "models/real/ch_PP-OCRv4_det_infer.onnx",
        f"{_OCR}/det/ch_PP-OCRv4_det_infer.onnx",
        4_745_517,
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        "Apache-2.0, PaddlePaddle and RapidAI",
    ),
    "text_angle": Download(
        "models/real/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        f"{_OCR}/cls/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        585_532,
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        "Apache-2.0, PaddlePaddle and RapidAI",
    ),
}
CIFAR10 = Download(
    "data/cifar10/cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "no licence stated; Alex Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
)
_MEMBERS = (
    *(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)),
    "cifar-10-batches-bin/test_batch.bin",
)
# The sha256 of the bytes of images and labels of each file, in the order of cifar10_order.bin.
SPLITS = {
    "test_half": (5_000, "e710b5c4ec6d075e051da9fde9448e6209484d8c0f7fecf398da28f9d630f7ab"),
    "train_1": (10_000, "83b0aa619b694cc0070b91ff66172d176a9d89d56c180ad3217c7d400a497379"),
    "train_2": (10_000, "6d48b983c18d20b1937f518ab327aeaaa8ec676f46fb8f452f7e0f385783bdcd"),
    "train_3": (10_000, "b7cee8560b9de84734c91565195979bc7edb37e01b91162c15b204dcf9867064"),
    "train_4": (10_000, "6c5e76523cf1191522d4d2c5c7cab10ac323dc910f19acf224b3ab4ca7c5d143"),
    "train_5": (10_000, "c79804cd73fbd9d40bf173c9630e14ec4890debc9292b304ad560ba845af802e"),
}


def data_folder() -> Path:
    """$TRP_DATA, or the folder `data` in the user's cache of trp-export."""
    return Path(os.environ.get("TRP_DATA") or platformdirs.user_cache_path("trp-export") / "data")


def network(name: str) -> Path:
    """The file of a network in NETWORKS, fetched if it is missing. Raises LoadError."""
    return fetch(NETWORKS[name], data_folder())


def cifar10() -> Path:
    """The folder of the CIFAR-10 files, which are made if one is missing. Raises LoadError."""
    folder = data_folder() / "data" / "cifar10"
    if not all((folder / f"{name}.npz").is_file() for name in SPLITS):
        archive = fetch(CIFAR10, data_folder())
        write_splits(*read_archive(archive), ORDER.read_bytes(), SPLITS, folder)
        archive.unlink()
    return folder


def fetch(download: Download, folder: Path) -> Path:
    """The file, downloaded unless it is there. Raises LoadError if its content is not the expected one."""
    path = folder / download.place
    if path.is_file():
        return path
    digest, size = hashlib.sha256(), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(download.url, timeout=_TIMEOUT_S) as source, atomic_write(path) as part:
            with part.open("wb") as target:
                while size <= download.bytes and (chunk := source.read(_CHUNK_BYTES)):
                    target.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
            if digest.hexdigest() != download.sha256:
                raise LoadError(
                    f"{download.url} is not the expected file: {size:,} bytes with the sha256 {digest.hexdigest()}, "
                    f"not {download.bytes:,} with {download.sha256}."
                )
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{download.url} cannot be fetched ({error}).\nPut the file into {path}, or name your copies by TRP_DATA."
        ) from error
    return path


def read_archive(archive: Path) -> tuple[Images, Images]:
    """All images (N, 32, 32, 3) and labels (N,) of the binary version of CIFAR-10. Raises LoadError."""
    records = []
    try:
        with tarfile.open(archive) as members:
            for name in _MEMBERS:
                member = members.extractfile(name)
                if member is None:
                    raise LoadError(f"{archive}: {name} is not a file.")
                records.append(np.frombuffer(member.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32))
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise LoadError(f"{archive} is not the binary version of CIFAR-10 ({error}).") from error
    table = np.concatenate(records)
    images = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), table[:, 0].copy()


def write_splits(
    images: Images, labels: Images, order: bytes, splits: Mapping[str, tuple[int, str]], folder: Path
) -> None:
    """Write each split as `<name>.npz`, and the images in none of them as test_rest.npz.

    Raises LoadError if an image is missing or a split does not have its sha256.
    """
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    places = {digest[:_KEY_BYTES]: index for index, digest in enumerate(digests)}
    keys = [order[start : start + _KEY_BYTES] for start in range(0, len(order), _KEY_BYTES)]
    if not places.keys() >= set(keys):
        raise LoadError("an image of cifar10_order.bin is not in this CIFAR-10.")
    start = 0
    for name, (count, expected) in splits.items():
        chosen = np.array([places[key] for key in keys[start : start + count]])
        start += count
        if content_digest(images[chosen], labels[chosen]) != expected:
            raise LoadError(f"{name} does not have the expected images and labels.")
        _write(folder / f"{name}.npz", images[chosen], labels[chosen])
    rest = sorted(places.keys() - set(keys))
    chosen = np.array(sorted((places[key] for key in rest), key=digests.__getitem__), dtype=np.int64)
    _write(folder / "test_rest.npz", images[chosen], labels[chosen])


def content_digest(images: Images, labels: Images) -> str:
    """The sha256 of the bytes of images and labels, whatever file they are in."""
    return hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()


def _write(path: Path, images: Images, labels: Images) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez(file, images=images, labels=labels)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(["cifar10", *NETWORKS]))
@click.option("--list", "listed", is_flag=True, help="Print licence, address and sha256 of each file.")
def main(names: tuple[str, ...], listed: bool) -> None:
    """Fetch the data and the networks of the results into the cache, or into $TRP_DATA."""
    if listed:
        for name, download in {"cifar10": CIFAR10, **NETWORKS}.items():
            click.echo(f"{name}: {download.licence}\n    {download.url}\n    sha256 {download.sha256}")
        return
    failed = False
    for name in names or ("cifar10", *NETWORKS):
        try:
            click.echo(f"{name}: {cifar10() if name == 'cifar10' else network(name)}")
        except TrpError as error:
            click.echo(f"error: {error}", err=True)
            failed = True
    sys.exit(3 if failed else 0)


if __name__ == "__main__":
    main()
