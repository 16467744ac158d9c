"""Networks trained side by side take the steps of torch's optimizer, and views are crops and flips."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from side_by_side import MARGIN, Recipe, Trainee, Views, train  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from train_cifar_resnet import learning_rate  # noqa: E402


def views() -> Views:
    pixels = torch.randint(0, 256, (32, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Views(pixels, torch.arange(32) % 4, torch.zeros(3), torch.ones(3), torch.device("cpu"))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))


def test_a_view_is_a_crop_of_the_padded_image_or_its_mirror() -> None:
    data = views()
    assert data.count == 2 * 41
    images = torch.arange(32)
    plain = data.pixels(images, torch.full_like(images, data.plain))
    inner = data.padded[:, MARGIN:-MARGIN, MARGIN:-MARGIN].permute(0, 3, 1, 2)
    assert torch.equal(plain, inner)
    mirrored = data.pixels(images, torch.full_like(images, data.plain + 1))
    assert torch.equal(mirrored, plain.flip(3))


@pytest.mark.parametrize("until", [None, 0.0])
def test_steps_are_those_of_stochastic_gradient_descent(until: float | None) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def loss(module: nn.Module, pixels: Tensor, labels: Tensor, images: Tensor, drawn: Tensor) -> Tensor:
        seen.append((pixels, labels))
        return nn.functional.cross_entropy(module(pixels).float(), labels)

    recipe = Recipe(epochs=1, batch=8, average=0.0)  # The average is the last weights.
    trainee = Trainee("small", network(), loss, seed=0)
    assert train([trainee], views(), recipe, lambda line: None, until) == 1
    expected = network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(expected.parameters(), 1.0, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for step, (pixels, labels) in enumerate(seen[-4:]):
        optimizer.param_groups[0]["lr"] = learning_rate(step / 4, recipe.peak)
        with torch.autocast("cpu", torch.bfloat16):
            value = nn.functional.cross_entropy(expected(pixels).float(), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    for got, wanted in zip(trainee.module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
