"""From the name of an architecture to a way to build it."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from models_zoo.cifar_resnet import CifarResNet
from trp_export.system.extras import is_installed, require

CIFAR_SHAPE = (1, 3, 32, 32)
IMAGENET_SHAPE = (1, 3, 224, 224)
INCEPTION_SHAPE = (1, 3, 299, 299)

CIFAR_DEPTHS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A name, the input shape it is made for (None: unknown), and a builder that takes a class count or None."""

    name: str
    input_shape: tuple[int, ...] | None
    build: Callable[[int | None], nn.Module]


def find_architecture(name: str) -> Architecture:
    """`resnet20`, `torchvision:resnet50` or `package.module:factory`.

    Raises LookupError with near names where nothing of that name is known, ImportError where a module is missing.
    """
    if name in CIFAR_DEPTHS:
        return Architecture(name, CIFAR_SHAPE, partial(_build_cifar, CIFAR_DEPTHS[name]))
    if name.startswith("torchvision:"):
        return _torchvision(name)
    if ":" in name:
        return Architecture(name, None, partial(_build_foreign, _import_factory(name)))
    raise LookupError(f"unknown architecture {name!r}{_suggest(name)}")


def _build_cifar(depth: int, classes: int | None) -> nn.Module:
    return CifarResNet(depth, classes or 10)


def _torchvision(name: str) -> Architecture:
    require(f"--arch {name}", "torchvision")
    import torchvision

    model = name.removeprefix("torchvision:")
    if model not in torchvision.models.list_models(torchvision.models):
        raise LookupError(f"torchvision has no classification model {model!r}{_suggest(name)}")
    # Without this the two build their auxiliary heads with a slow initialisation, and warn.
    extra = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}

    def build(classes: int | None) -> nn.Module:
        known = {} if classes is None else {"num_classes": classes}
        network: nn.Module = torchvision.models.get_model(model, weights=None, **extra, **known)
        return network

    return Architecture(name, INCEPTION_SHAPE if model == "inception_v3" else IMAGENET_SHAPE, build)


def _import_factory(name: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = name.partition(":")
    sys.path.insert(0, "")  # As `python -m` does: the user's own modules lie in the current folder.
    try:
        factory = getattr(importlib.import_module(module_name), attribute, None)
    finally:
        sys.path.remove("")
    if not callable(factory):
        raise LookupError(f"{module_name} has no factory {attribute!r}")
    result: Callable[..., nn.Module] = factory
    return result


def _build_foreign(factory: Callable[..., nn.Module], classes: int | None) -> nn.Module:
    return factory() if classes is None else factory(num_classes=classes)


def _suggest(name: str) -> str:
    known = list(CIFAR_DEPTHS)
    if is_installed("torchvision"):
        import torchvision

        known += [f"torchvision:{model}" for model in torchvision.models.list_models(torchvision.models)]
    near = [f"torchvision:{name}"] if f"torchvision:{name}" in known else difflib.get_close_matches(name, known, 3, 0.5)
    if not near:
        return "; known are resnet20, 32, 44, 56, 110, torchvision:NAME and package.module:factory"
    return f"; did you mean {' or '.join(near)}?"
