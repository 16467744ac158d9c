"""Classes of images and of networks, matched by their names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trp_export.errors import LoadError
from trp_export.system.text import name_some


def are_named(classes: Sequence[str]) -> bool:
    """Whether classes have names, not only numbers in their order."""
    return list(classes) != list(map(str, range(len(classes))))


def numbers_by_name(of_images: Sequence[str], of_network: Sequence[str]) -> Tensor | None:
    """The network's number of each class of the images (classes,); None where labels are the network's already.

    Where one side has no names, classes go by their numbers. Raises LoadError for names that the network lacks.
    """
    unknown = [name for name in of_images if name not in of_network]
    if unknown and are_named(of_images) and are_named(of_network):
        raise LoadError(
            f"the network has no class {name_some(unknown)}; its classes are {name_some(list(of_network))}. "
            "Name the classes of the images as the network does."
        )
    if unknown or list(of_images) == list(of_network[: len(of_images)]):
        return None
    return torch.tensor([of_network.index(name) for name in of_images])
