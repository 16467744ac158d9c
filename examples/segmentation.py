"""A segmentation network trained for low rank by its own loss, with mIoU before and after the cut.

    python examples/segmentation.py out/ [CAMVID] [EPOCHS]

CAMVID holds `train/` and `val/` with images NAME.jpg and, for each, its classes by pixel, NAME.label.png (11 is void),
as CamVid does at 160x120. Without it the example makes itself pictures of coloured shapes.
"""

from __future__ import annotations

import copy
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional

from training import TRP, Macs, TRPSettings, low_rank_copy

CLASSES, VOID, BATCH, RATIO = 11, 11, 8, 2.0
SHAPE = (1, 3, 120, 160)


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Segmenter(nn.Module):
    """(n, 3, h, w) -> (n, classes, h, w): four stages down, and up again with what the stages saw (U-Net)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 6 * width]
        self.stem = block(3, width)
        self.down = nn.ModuleList(nn.Sequential(block(a, b, stride=2), block(b, b)) for a, b in pairwise(widths))
        self.up = nn.ModuleList(block(a + b, b) for a, b in pairwise(reversed(widths)))
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        stages = [self.stem(x)]
        for down in self.down:
            stages.append(down(stages[-1]))
        x = stages.pop()
        for up in self.up:
            skipped = stages.pop()
            x = up(torch.cat([functional.interpolate(x, size=skipped.shape[2:]), skipped], 1))
        return self.head(x)


def load_part(folder: Path) -> tuple[Tensor, Tensor]:
    """Images (n, 3, h, w) from -1 to 1, and the class of each pixel (n, h, w)."""
    files = sorted(folder.glob("*.label.png"))
    images = [np.asarray(Image.open(file.with_name(file.name.replace(".label.png", ".jpg")))) for file in files]
    labels = [np.asarray(Image.open(file)) for file in files]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1, torch.from_numpy(np.stack(labels)).long()


def make_pictures(folder: Path, count: int, seed: int) -> None:
    """Discs on a background, a colour for each class, in noise."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        labels = Image.new("L", (160, 120))
        draw = ImageDraw.Draw(labels)
        for kind in random.permutation(CLASSES)[:6]:
            x, y, radius = random.integers(0, 160), random.integers(0, 120), random.integers(12, 36)
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=int(kind))
        classes = np.asarray(labels).astype(np.int64)
        shades = np.stack([20 * classes, 255 - 20 * classes, 97 * classes % 256], axis=2)
        pixels = np.clip(shades + random.normal(0, 30, shades.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.jpg")
        labels.save(folder / f"{number:03}.label.png")


@torch.no_grad()
def mean_iou(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The mean over classes of intersection by union, over all pixels that are not void."""
    counts = torch.zeros(CLASSES, CLASSES)
    network.eval()
    for x, y in zip(images.split(16), labels.split(16), strict=True):
        kept = y != VOID
        pairs = CLASSES * y[kept] + network(x).argmax(1)[kept]
        counts += torch.bincount(pairs, minlength=CLASSES**2).view(CLASSES, CLASSES)
    both = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - both
    return float((both / union)[union > 0].mean())


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float, low_rank: bool) -> TRP | None:
    """The usual loop: pixel-wise cross-entropy, random flips, a cosine. `low_rank` adds the two lines of TRP."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    settings = TRPSettings(rule=Macs(RATIO), period=10, ramp="cosine", ramp_steps=steps // 2)
    trp = TRP(network, optimizer, settings, SHAPE) if low_rank else None
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            flip = torch.rand(len(chosen)) < 0.5
            x = torch.where(flip[:, None, None, None], images[chosen].flip(3), images[chosen])
            y = torch.where(flip[:, None, None], labels[chosen].flip(2), labels[chosen])
            optimizer.zero_grad()
            functional.cross_entropy(network(x), y, ignore_index=VOID).backward()
            optimizer.step()
            schedule.step()
    return trp


def main(folder: Path, data: Path | None = None, epochs: int = 4) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if data is None:
        data = folder / "pictures"
        make_pictures(data / "train", 64, seed=0)
        make_pictures(data / "val", 16, seed=1)
    images, labels = load_part(data / "train")
    network = Segmenter()
    train(network, images, labels, epochs, rate=0.05, low_rank=False)
    held_out = load_part(data / "val")
    print(f"{len(images)} images to train on, {len(held_out[0])} to measure on; mIoU:")
    print(f"dense                             {mean_iou(network, *held_out):.1%}")

    direct = copy.deepcopy(network)
    optimizer = torch.optim.SGD(direct.parameters(), lr=0.0)
    plan = TRP(direct, optimizer, TRPSettings(rule=Macs(RATIO), project=False), SHAPE).measure()
    print(f"cut by {RATIO:g}x without training       {mean_iou(low_rank_copy(network, plan), *held_out):.1%}")

    trp = train(network, images, labels, epochs, rate=0.02, low_rank=True)
    print(f"trained for the cut, before it    {mean_iou(network, *held_out):.1%}")
    shuffled = images[torch.randperm(len(images))]  # Batch norm is re-estimated on batches as varied as in training.
    plan = trp.finish(shuffled.split(BATCH))
    ratio = sum(decision.site.macs for decision in plan.decisions) / sum(decision.macs for decision in plan.decisions)
    print(f"and after it, {ratio:.2f}x fewer MACs   {mean_iou(low_rank_copy(network, plan), *held_out):.1%}")
    torch.save(network.state_dict(), folder / "segmenter.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(Path, sys.argv[2:3]), *map(int, sys.argv[3:4]))
