"""A CIFAR ResNet with one channel of each cluster, built as the plain network of a smaller width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models_zoo.cifar_resnet import CifarResNet
from training.channels.groups import ChannelPlan


@torch.no_grad()
def thin_resnet(model: nn.Module, plan: ChannelPlan, width: float) -> CifarResNet:
    """The network of `width` that computes what `model` computes once filters of a cluster are equal.

    Option A pads the channels of a stage on both sides, so those that stage makes itself lie around the inherited ones.
    """
    blocks = len(model.layer1)
    thin = CifarResNet(6 * blocks + 2, model.linear.out_features, width).eval()
    clusters = {name: merge.clusters(name) for merge in plan.merges for name in merge.group.layers}
    by_group = [(merge.group, merge) for merge in plan.merges]

    def streams(layer: str) -> list[tuple[int, ...]]:
        """The clusters of a layer that writes into a residual sum: inherited ones between its own."""
        parts = [merge.clusters(layer) for group, merge in by_group if layer in group.layers]
        inner, *outer = parts
        for own in outer:
            half = len(own) // 2
            inner = (*own[:half], *inner, *own[half:])
        return list(inner)

    state = dict(model.state_dict())
    reads: list[tuple[int, ...]] = [(0,), (1,), (2,)]
    made: dict[str, Tensor] = {}

    def layer(name: str, norm: str, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]) -> None:
        weight = torch.stack([state[f"{name}.weight"][list(group)].mean(0) for group in outputs])
        made[f"{name}.weight"] = torch.stack([weight[:, list(group)].sum(1) for group in inputs], 1)
        for key in ("weight", "bias", "running_mean", "running_var"):
            made[f"{norm}.{key}"] = state[f"{norm}.{key}"][[group[0] for group in outputs]]

    layer("conv1", "bn1", reads, streams("conv1"))
    reads = streams("conv1")
    for stage in (1, 2, 3):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            inner = list(clusters[f"{name}.conv1"])
            layer(f"{name}.conv1", f"{name}.bn1", reads, inner)
            reads = streams(f"{name}.conv2")
            layer(f"{name}.conv2", f"{name}.bn2", inner, reads)
    made["linear.weight"] = torch.stack([state["linear.weight"][:, list(group)].sum(1) for group in reads], 1)
    made["linear.bias"] = state["linear.bias"]
    return _loaded(thin, made)


def _loaded(thin: CifarResNet, made: Mapping[str, Tensor]) -> CifarResNet:
    missing, unexpected = thin.load_state_dict(dict(made), strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return thin
