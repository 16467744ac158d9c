"""Pictures: PSNR and SSIM to target pictures, or to what the original itself gives.

Z. Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004), for SSIM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from trp_export.errors import LoadError
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.pictures import read_picture
from trp_export.metrics.label_pictures import matching
from trp_export.metrics.sample import Array, Outputs, Sample, Span
from trp_export.metrics.score import Detail, Score, Unit, paired_error

Picture = NDArray[np.float32]
# Equal pictures have an infinite PSNR; from here on nobody sees a difference.
LARGEST_PSNR = 100.0
_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03
# Values up to this are taken for 0..1, up to the next for 0..255.
_MOST_SHARE, _MOST_PIXEL = 2.0, 512.0
# Values so far below 0, as a share of white, are no overshoot: black is at -1.
_BELOW_BLACK = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """The mean PSNR or SSIM over images. White is `peak` in the network's outputs, black is `black`.

    A target may be larger than the output by the same border on all sides, which is left out, as networks without
    padding need.
    """

    metric: Literal["psnr", "ssim"]
    peak: float
    black: float
    channels_last: bool
    targets: Sequence[Path] | None
    bgr: bool

    def predict(self, outputs: Outputs, span: Span) -> list[Any]:
        """With targets, PSNR and SSIM of each image; without, its picture (H, W, C), white at 1."""
        output = outputs[0] if self.channels_last else np.moveaxis(outputs[0], 1, -1)
        pictures = list(((output - self.black) / (self.peak - self.black)).astype(np.float32))
        if self.targets is None:
            return pictures
        return [
            np.array(likeness(np.clip(own, 0, 1), self._target(self.targets[span.start + index], own)))
            for index, own in enumerate(pictures)
        ]

    def score(self, before: Sequence[Any], after: Sequence[Any]) -> Score:
        """The means over images, and the error of the mean change."""
        labelled = self.targets is not None
        if labelled:
            first, second = np.stack(before), np.stack(after)
        else:
            first = np.tile([LARGEST_PSNR, 1.0], (len(before), 1))
            second = np.array([likeness(own, truth) for own, truth in zip(after, before, strict=True)])
        own = 0 if self.metric == "psnr" else 1
        figures = [
            Detail(f"{name}{'' if labelled else _TO_ORIGINAL}", float(old.mean()), float(new.mean()), unit)
            for (name, unit), old, new in zip(_FIGURES, first.T, second.T, strict=True)
        ]
        main, other = figures[own], figures[1 - own]
        return Score(
            metric=self.metric,
            what=main.what,
            before=main.before,
            after=main.after,
            unit=main.unit,
            images=len(before),
            error=paired_error(first[:, own], second[:, own]),
            labelled=labelled,
            details=(other,),
        )

    def _target(self, path: Path, own: Picture) -> Picture:
        """The target as the network would give it: (H, W, C), white at 1. Raises LoadError for one of another shape."""
        pixels = np.asarray(read_picture(path, grey=own.shape[2] == 1))
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if pixels.shape[2] != own.shape[2]:
            raise LoadError(f"{path} has {pixels.shape[2]} channels, and the network's pictures have {own.shape[2]}.")
        wider = np.array(pixels.shape[:2]) - np.array(own.shape[:2])
        if (wider < 0).any() or (wider % 2).any() or wider[0] != wider[1]:
            raise LoadError(
                f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, and the network gives {own.shape[1]} x "
                f"{own.shape[0]}."
            )
        border = int(wider[0]) // 2
        cut = pixels[border : pixels.shape[0] - border, border : pixels.shape[1] - border]
        return np.asarray(cut[..., ::-1] if self.bgr else cut, dtype=np.float32) / np.float32(255)


_FIGURES: tuple[tuple[str, Unit], ...] = (("PSNR", "dB"), ("SSIM", "%"))
_TO_ORIGINAL = " to the original's output"


def open_pictures(metric: str, images: ImageSet, sample: Sample, targets: Path | None) -> Pictures:
    """The metric, with targets from a folder. Raises LoadError for targets that are missing or of another scale."""
    values = np.nan_to_num(sample.first, posinf=0, neginf=0)
    largest = float(np.abs(values).max(initial=0))
    if largest > _MOST_PIXEL and targets is not None:
        raise LoadError(f"the network's pictures reach {largest:.3g}; values of 0..1 or 0..255 can be compared.")
    peak = 1.0 if largest <= _MOST_SHARE else 255.0 if largest <= _MOST_PIXEL else largest
    black = -peak if float(values.min(initial=0)) < -_BELOW_BLACK * peak else 0.0
    files = None if targets is None else matching(images, targets)
    bgr = not images.as_is and images.steps.colour == "bgr"
    return Pictures("ssim" if metric == "ssim" else "psnr", peak, black, sample.channels_last, files, bgr)


def likeness(own: Picture, truth: Picture) -> tuple[float, float]:
    """PSNR in dB and SSIM of two pictures (H, W, C), white at 1; 0 where they are not finite or differ in size."""
    if own.shape != truth.shape or not np.isfinite(own).all():
        return 0.0, 0.0
    first, second = own.astype(np.float64), truth.astype(np.float64)
    error = float(np.mean(np.square(first - second)))
    psnr = min(LARGEST_PSNR, -10 * np.log10(error)) if error > 0 else LARGEST_PSNR
    return float(psnr), ssim(first, second)


def ssim(first: Array, second: Array) -> float:
    """Structural similarity of pictures (H, W, C), white at 1: the mean over places and channels."""
    mean_a, mean_b = _blur(first), _blur(second)
    var_a, var_b = _blur(first**2) - mean_a**2, _blur(second**2) - mean_b**2
    both = _blur(first * second) - mean_a * mean_b
    c1, c2 = _K1**2, _K2**2
    above = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float(np.mean(above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def _blur(picture: Array) -> Array:
    """Gaussian weighted means over windows of 11 x 11 pixels, smaller ones in smaller pictures, without borders."""
    for axis in (0, 1):
        length = min(_WINDOW, picture.shape[axis])
        weights = np.exp(-np.square(np.arange(length) - (length - 1) / 2) / (2 * _SIGMA**2))
        picture = sliding_window_view(picture, length, axis=axis) @ (weights / weights.sum())
    return picture
