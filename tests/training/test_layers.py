"""Sites of a torch network, and which of them take part."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.prune
from tiny_networks import Tiny
from torch import Tensor, nn
from torch.nn import functional

from models_zoo.cifar_resnet import CifarResNet
from training.layers import find_layers, total_macs, unwrapped
from training.settings import ByName, paper_choice


def test_sites_of_a_resnet_count_its_multiply_adds() -> None:
    layers = find_layers(CifarResNet(20), (1, 3, 32, 32))
    assert len(layers) == 20
    # 3x3 convs: the stem, then 18 of 2,359,296 except the first of stages 2 and 3, which have half the channels.
    assert total_macs(layers) == 32 * 32 * 27 * 16 + 16 * 2_359_296 + 2 * 1_179_648 + 640
    assert [layer.name for layer in layers][:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    strided = next(layer.site for layer in layers if layer.name == "layer2.0.conv1")
    assert strided.uses[0].in_extents == (32, 32)
    assert strided.uses[0].out_extents == (16, 16)
    assert strided.uses[0].pads == (1, 1, 1, 1)


def test_find_layers_does_not_change_the_model() -> None:
    model = Tiny()
    model.norm.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    find_layers(model, (1, 3, 8, 8))
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_asymmetric_same_padding_is_read_in_the_order_of_onnx() -> None:
    layers = find_layers(nn.Sequential(nn.Conv2d(1, 1, (2, 3), padding="same")), (1, 1, 6, 7))
    assert layers[0].site.uses[0].pads == (0, 1, 1, 1)


def test_a_shared_weight_is_refused_and_a_layer_used_twice_counted_twice() -> None:
    first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    second.weight = first.weight
    layers = find_layers(nn.Sequential(first, second), (1, 4, 5, 5))
    assert [layer.site.refusal for layer in layers] == ["its weight is shared with another layer"] * 2
    once = nn.Conv2d(4, 4, 3, padding=1)
    (layer,) = find_layers(nn.Sequential(once, nn.ReLU(), once), (1, 4, 5, 5))
    assert layer.site.macs == 2 * 4 * 4 * 9 * 25


class SameConv(nn.Conv2d):
    """Pads its input itself, as networks converted from TensorFlow do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


class StandardisedConv(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class NamedConv(nn.Conv2d):
    """Another name for the same."""


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "made",
    [
        lambda: nn.utils.weight_norm(nn.Conv2d(4, 4, 3)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)),
        lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)),
        lambda: nn.utils.prune.l1_unstructured(nn.Conv2d(4, 4, 3), "weight", 0.5),
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(6, 6)),
        lambda: SameConv(4, 4, 3),
        lambda: StandardisedConv(4, 4, 3),
    ],
)
def test_a_layer_that_does_not_apply_a_weight_of_its_own_is_refused(made: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), made(), NamedConv(4, 4, 1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    layers = find_layers(model, (1, 4, 6, 6))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    refusals = [layer.site.refusal for layer in layers]
    assert refusals[0] is refusals[2] is None
    assert refusals[1] is not None
    assert "computed from other parameters" in refusals[1] or "in a way of its own" in refusals[1]


def test_a_weight_that_an_embedding_shares_is_refused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.table.weight[0])

    (layer,) = find_layers(Tied(), (1, 5))
    assert layer.site.refusal == "its weight is shared with another layer"


def test_filters_choose_the_layers_of_the_paper_or_by_name() -> None:
    layers = find_layers(Tiny(), (1, 3, 8, 8))
    names = [layer.name for layer in layers]
    assert names == ["stem", "conv1", "conv2", "point", "head"]
    chosen = [layer.name for index, layer in enumerate(layers) if paper_choice(layer.site, index)]
    assert chosen == ["conv1", "conv2"]
    by_name = ByName(only=("conv*", "head"), skip=("conv2",))
    assert [layer.name for index, layer in enumerate(layers) if by_name(layer.site, index)] == ["conv1", "head"]


def test_unwrapped_returns_the_network_inside_wrappers() -> None:
    model = Tiny()
    assert unwrapped(torch.compile(model)) is model
