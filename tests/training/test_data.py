"""Data by specification, splits and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.augmentation import Augmentation
from training.data.images import LabelledImages, load_labelled_images, require_every_class, require_fit, split
from training.data.in_memory import BatchesInMemory, ValidationInMemory
from training.data.normalisation import Normalisation
from training.data.transforms import BatchMix
from training.loss import training_loss
from training.schedule import learning_rate
from trp_export.errors import LoadError, OptionError

NORMALISE = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CPU = torch.device("cpu")


def image_set(count: int = 40, extent: int = 16) -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, extent, extent, 3), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(count), ("a",) * count)


def test_npz_shards_and_folders_hold_the_same_images(stripes: Path, tmp_path: Path) -> None:
    from_npz = load_labelled_images(f"npz:{stripes}")
    assert from_npz.images.shape == (320, 8, 8, 3)
    root = tmp_path / "folder"
    for index, (image, label) in enumerate(zip(from_npz.images[:20], from_npz.labels[:20], strict=True)):
        path = root / "train" / str(int(label)) / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)
    from_folder = load_labelled_images(f"imagefolder:{root}")
    order = sorted(range(20), key=lambda i: (int(from_npz.labels[i]), i))
    assert from_folder.classes == tuple(sorted({str(int(label)) for label in from_npz.labels[:20]}))
    assert torch.equal(from_folder.images, from_npz.images[order])


def test_bad_data_is_refused_in_a_line(stripes: Path, tmp_path: Path) -> None:
    for spec in ("stripes", "npz:", "torchvision:CIFAR10", "torchvision:Nothing:x"):
        with pytest.raises(OptionError, match="--data"):
            load_labelled_images(spec)
    with pytest.raises(LoadError, match="is not a folder"):
        load_labelled_images("npz:/nowhere")
    with pytest.raises(LoadError, match=r"holds no train\*\.npz"):
        load_labelled_images(f"npz:{tmp_path}")
    with pytest.raises(LoadError, match="does not hold torchvision's CIFAR10"):
        load_labelled_images(f"torchvision:CIFAR10:{tmp_path}")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(LoadError, match="holds no images"):
        load_labelled_images(f"imagefolder:{empty}")
    (empty / "train_1.npz").write_bytes(b"PK no archive")
    with pytest.raises(LoadError, match="or a damaged one"):
        load_labelled_images(f"npz:{empty}")
    for images, labels in (
        (np.zeros((2, 8, 8, 3), np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros(3, np.int64)),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2)),
    ):
        np.savez(empty / "train_1.npz", images=images, labels=labels)
        with pytest.raises(LoadError, match="must be"):
            load_labelled_images(f"npz:{empty}")
    np.savez(empty / "train_1.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.array([0, -1]))
    with pytest.raises(LoadError, match="label -1 is below 0"):
        load_labelled_images(f"npz:{empty}")
    np.savez(empty / "train_1.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.array([0, 200_000]))
    with pytest.raises(LoadError, match="label 200000 is above 99999"):
        load_labelled_images(f"npz:{empty}")
    for name, extent in (("a", 4), ("b", 5)):
        (empty / name).mkdir()
        Image.new("RGB", (extent, 4)).save(empty / name / "x.png")
    with pytest.raises(LoadError, match="Resize all to one size"):
        load_labelled_images(f"imagefolder:{empty}")
    images = load_labelled_images(f"npz:{stripes}")
    with pytest.raises(LoadError, match="8x8, and the network takes 32x32"):
        require_fit(images, (1, 3, 32, 32), 4)
    with pytest.raises(LoadError, match="a network of 3 classes needs 0 to 2"):
        require_fit(images, (1, 3, 8, 8), 3)


def test_a_network_from_scratch_needs_images_of_every_class(stripes: Path) -> None:
    images = load_labelled_images(f"npz:{stripes}")
    require_every_class(images)
    stray = images.labels.clone()
    stray[0] = 9
    with pytest.raises(LoadError, match="there is no image of class 4, 5, 6 and 2 more"):
        require_every_class(LabelledImages(images.images, stray, tuple(map(str, range(10)))))


def test_a_split_is_drawn_by_seed_and_shares_nothing() -> None:
    train, held = split(image_set(), 10, seed=3)
    assert sorted([*train.labels.tolist(), *held.labels.tolist()]) == list(range(40))
    assert len(held) == 10
    again = split(image_set(), 10, seed=3)
    assert torch.equal(again[1].labels, held.labels)
    assert not torch.equal(split(image_set(), 10, seed=4)[1].labels, held.labels)
    with pytest.raises(OptionError, match="--validation 40"):
        split(image_set(), 40, seed=0)


def test_every_crop_is_a_window_of_its_padded_image() -> None:
    images = image_set()
    batches = BatchesInMemory(images, NORMALISE, 8, seed=0, device=CPU)
    padded = NORMALISE.neutral_pixel().expand(40, 20, 20, 3).clone()
    padded[:, 2:18, 2:18] = images.images
    shifts = set()
    for x, y in batches.epoch(0):
        for crop, label in zip(x, y, strict=True):
            matches = [
                (top, left, flip)
                for top in range(5)
                for left in range(5)
                for flip in (False, True)
                if torch.equal(crop, _window(padded[label], top, left, flip))
            ]
            assert len(matches) == 1
            shifts.add(matches[0])
    assert len(shifts) > 20


def _window(padded: torch.Tensor, top: int, left: int, flip: bool) -> torch.Tensor:
    window = NORMALISE(padded[None, top : top + 16, left : left + 16])[0]
    return window.flip(2) if flip else window


def test_an_epoch_has_each_image_once_and_resumes_at_any_step() -> None:
    batches = BatchesInMemory(image_set(), NORMALISE, 8, seed=1, device=CPU)
    whole = list(batches.epoch(2))
    assert sorted(torch.cat([y for _, y in whole]).tolist()) == list(range(40))
    assert whole[0][0].is_contiguous(memory_format=torch.channels_last)
    for (x, y), (again_x, again_y) in zip(whole[3:], batches.epoch(2, first_step=3), strict=True):
        assert torch.equal(x, again_x)
        assert torch.equal(y, again_y)
    assert not torch.equal(whole[0][1], next(batches.epoch(3))[1])


def test_two_processes_share_one_batch() -> None:
    single = BatchesInMemory(image_set(), NORMALISE, 8, seed=1, device=CPU)
    halves = [BatchesInMemory(image_set(), NORMALISE, 8, seed=1, device=CPU, share=(i, 2)) for i in range(2)]
    for (x, y), (x0, y0), (x1, y1) in zip(single.epoch(0), *(half.epoch(0) for half in halves), strict=True):
        assert torch.equal(x[0::2], x0)
        assert torch.equal(x[1::2], x1)
        assert torch.equal(y[1::2], y1)
        assert len(y0) == len(y1)


def test_normalisation_is_the_textbook_one() -> None:
    images = image_set()
    ((x, _), *_) = ValidationInMemory(images, NORMALISE, CPU).batches()
    mean, std = torch.tensor(NORMALISE.mean), torch.tensor(NORMALISE.std)
    expected = ((images.images.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-5)


def test_learning_rates_follow_their_schedules() -> None:
    assert [learning_rate("step", 0.1, epoch / 164) for epoch in (0, 80, 81, 121, 122, 163)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )
    assert learning_rate("cosine", 0.1, 0.0) == 0
    assert learning_rate("cosine", 0.1, 0.05) == pytest.approx(0.1)
    assert learning_rate("cosine", 0.1, 1.0) == pytest.approx(0.0)


def test_distillation_has_its_minimum_at_the_teacher() -> None:
    teacher, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    student = teacher.clone().requires_grad_()
    loss = training_loss(student, labels, teacher, temperature=3.0, share=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6
    assert training_loss(teacher, labels, None, temperature=3.0, share=0.9) == torch.nn.functional.cross_entropy(
        teacher, labels
    )


def test_label_smoothing_spreads_a_share_of_each_label_over_all_classes() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    surprise = -torch.log_softmax(logits, 1)
    expected = 0.8 * surprise[torch.arange(5), labels].mean() + 0.2 * surprise.mean()
    assert training_loss(logits, labels, None, smoothing=0.2).item() == pytest.approx(expected.item(), rel=1e-6)


def test_mixed_batches_blend_each_image_with_the_one_before_it() -> None:
    plain = BatchesInMemory(image_set(), NORMALISE, 8, seed=1, device=CPU)
    mix = BatchMix(Augmentation(mixup=1.0), classes=40)
    mixed = BatchesInMemory(image_set(), NORMALISE, 8, seed=1, device=CPU, mix=mix)
    for (x, y), (blend, shares) in zip(plain.epoch(2), mixed.epoch(2), strict=True):
        part, labels = shares[0, y[0]], torch.nn.functional.one_hot(y, 40).float()
        assert 0 < part < 1
        torch.testing.assert_close(blend, part * x + (1 - part) * x.roll(1, 0))
        torch.testing.assert_close(shares, part * labels + (1 - part) * labels.roll(1, 0))


def test_mixed_batches_follow_from_the_seed_and_the_step() -> None:
    batches = BatchesInMemory(image_set(), NORMALISE, 8, seed=1, device=CPU, mix=BatchMix(Augmentation(cutmix=1.0), 40))
    whole = list(batches.epoch(1))
    for (x, y), (again, shares) in zip(whole[1:], batches.epoch(1, first_step=1), strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, shares)
    assert next(iter(batches.inputs(1))).shape == whole[0][0].shape
