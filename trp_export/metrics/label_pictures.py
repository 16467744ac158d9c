"""Pictures that belong to images by name: labels of classes, or targets."""

from __future__ import annotations

from pathlib import Path

from trp_export.errors import LoadError
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.images import LABEL_PICTURE, size_if_image
from trp_export.metrics.sample import image_names
from trp_export.system.files import files_below


def beside(images: ImageSet) -> bool:
    """True where images have label pictures beside them: frame.label.png beside frame.jpg."""
    return isinstance(images.pixels, tuple) and any(label_of(path).is_file() for path in images.pixels)


def label_of(image: Path) -> Path:
    """Where the label picture of an image would lie beside it."""
    return image.with_name(f"{image.stem}{LABEL_PICTURE}")


def matching(images: ImageSet, folder: Path | None) -> list[Path]:
    """The picture in `folder` for each image, by its name without the ending.

    Without a folder, those beside the images. Raises LoadError for an image without a picture, or with two.
    """
    if not isinstance(images.pixels, tuple):
        raise LoadError(f"{images.name} is an array: a folder of images is needed where labels are pictures.")
    if folder is None:
        paths = [label_of(path) for path in images.pixels]
    else:
        pictures = _pictures(folder)
        paths = [pictures.get(_key(Path(name)), folder / name) for name in image_names(images)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise LoadError(
            f"{len(missing):,} of {len(paths):,} images have no picture of that name, such as {missing[0]}."
        )
    return paths


def _pictures(folder: Path) -> dict[str, Path]:
    """The pictures below a folder by their key; other files of the same name, such as notes, are left out."""
    pictures: dict[str, Path] = {}
    for path in files_below(folder):
        if size_if_image(path) is not None:
            other = pictures.setdefault(_key(path.relative_to(folder)), path)
            if other != path:
                raise LoadError(f"{other} and {path.name} are both pictures of one name: remove one of them.")
    return pictures


def _key(path: Path) -> str:
    return path.with_suffix("").as_posix().removesuffix(".label")
