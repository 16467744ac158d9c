"""How images are read that are not held in memory, as one value. Its fields carry the flags of trp-train."""

from __future__ import annotations

from dataclasses import dataclass

from training.data.augmentation import Augmentation, read_augmentation, write_augmentation
from trp_export.flags import InvalidOptionError, flag

DATA = "Data"


@dataclass(frozen=True, slots=True)
class Loading:
    """How images are read that are not held in memory."""

    augment: Augmentation = flag(
        "--augment",
        "Augmentation of training images: crop=0.08,jitter=0.4,randaugment=9,mixup=0.2,cutmix=1,repeat=3, "
        "or some of these; for a set held in memory mixup and cutmix alone. Default: a random crop of 0.08 to 1 of the "
        "area, flipped at random.",
        section=DATA,
        read=read_augmentation,
        write=write_augmentation,
        metavar="LIST",
        default=Augmentation(),
    )
    workers: int | None = flag(
        "--workers",
        "Processes that read images. Default: one for each core but one, at most 8.",
        section=DATA,
        read=int,
        metavar="N",
        default=None,
    )
    epoch_images: int | None = flag(
        "--epoch-images",
        "Images in all shards of webdataset, which are then not counted; needed for shards that are not local files.",
        section=DATA,
        read=int,
        metavar="N",
        default=None,
    )

    def __post_init__(self) -> None:
        if self.workers is not None and not 0 <= self.workers <= 1024:
            raise InvalidOptionError(f"{{workers}} must lie between 0 and 1024, not {self.workers}.")
        if self.epoch_images is not None and self.epoch_images < 1:
            raise InvalidOptionError(f"{{epoch_images}} must be at least 1, not {self.epoch_images}.")
