"""The names of metrics, and what `--metric` may say. Nothing heavy is imported: options read this."""

from __future__ import annotations

from pathlib import PurePath
from typing import Final

AUTO: Final = "auto"
METRICS: Final = ("top1", "top5", "map", "miou", "psnr", "ssim", "pairs", "sequences", "outputs")
HEADS: Final = ("yolov5", "yolov8", "yolox", "fastestdet", "nanodet", "ssd", "nms")


def read_metric(text: str) -> str:
    """`auto`, a metric, `map:HEAD`, `sequences:FILE`, or `module:function`. Raises ValueError."""
    name, colon, rest = text.rpartition(":")
    if text in (AUTO, *METRICS) or (name == "map" and rest in HEADS) or (name == "sequences" and rest):
        return text
    if name == "map":
        raise ValueError(f"{text!r}: the head must be one of {', '.join(HEADS)}.")
    if colon and name and rest.isidentifier():
        return text
    raise ValueError(
        f"{text!r} is not one of {', '.join((AUTO, *METRICS))}, map:HEAD, sequences:FILE or FILE.py:FUNCTION."
    )


def is_function(metric: str) -> bool:
    """True for `module:function` or `FILE.py:FUNCTION`."""
    return ":" in metric and not metric.startswith(("map:", "sequences:"))


def without_folder(metric: str) -> str:
    """The same with a file by its name only."""
    kind, colon, rest = metric.partition(":")
    return f"{kind}:{PurePath(rest).name}" if kind == "sequences" and colon else PurePath(metric).name
