"""The name of an architecture, and how to build the network.

A name of the form `package.module:factory` imports that module, which runs its code. `require_repeated` is the only
place that decides whether a name out of a file may do so.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from models_zoo.cifar_resnet import CifarResNet
from trp_export.errors import OptionError
from trp_export.system.extras import is_installed, require

CIFAR_SHAPE = (1, 3, 32, 32)
IMAGENET_SHAPE = (1, 3, 224, 224)
INCEPTION_SHAPE = (1, 3, 299, 299)

CIFAR_DEPTHS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}
# A name may end in how many times as wide the network is, as in resnet20x1.6. Wider ones would fill memory.
_WIDTH = re.compile(r"(resnet\d+)x(\d{1,2}(?:\.\d{1,4})?)")
_WIDEST = 8.0
TORCHVISION = "torchvision:"
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A name, the input shape of the network (None: unknown), and a builder that takes a class count or None."""

    name: str
    input_shape: tuple[int, ...] | None
    build: Callable[[int | None], nn.Module]


def imports_code(name: str) -> bool:
    """Whether building this architecture imports a module that is not part of this package or of torchvision."""
    return ":" in name and not name.startswith(TORCHVISION)


def require_repeated(name: str, where: str, repeated: str | None, option: str = "--arch") -> None:
    """Raise OptionError where a file names code to import and the user has not repeated that name on the command line.

    `where` is the file, `repeated` the value of `option` on this command line.
    """
    if imports_code(name) and repeated != name:
        raise OptionError(f"{where} asks to import {name}. If you trust it, repeat the name: {option} {name}.")


def find_architecture(name: str) -> Architecture:
    """`resnet20`, `resnet20x1.6` for 1.6 times its channels, `torchvision:resnet50` or `package.module:factory`.

    Raises LookupError with similar names for an unknown name, ImportError where a module is missing.
    """
    plain, width = _width(name)
    if plain in CIFAR_DEPTHS:
        return Architecture(name, CIFAR_SHAPE, partial(_build_cifar, CIFAR_DEPTHS[plain], width))
    if name.startswith(TORCHVISION):
        return _torchvision(name)
    if ":" in name:
        return Architecture(name, None, partial(_build_imported, _import_factory(name)))
    raise LookupError(f"unknown architecture {name!r}{_suggest(name)}")


def _width(name: str) -> tuple[str, float]:
    """`resnet20x1.6` -> `resnet20` and 1.6; other names have width 1. Raises LookupError for one out of range."""
    match = _WIDTH.fullmatch(name)
    if match is None:
        return name, 1.0
    width = float(match[2])
    if not 0 < width <= _WIDEST:
        raise LookupError(f"the width of {name!r} must be above 0 and at most {_WIDEST:g}")
    return match[1], width


def _build_cifar(depth: int, width: float, classes: int | None) -> nn.Module:
    return CifarResNet(depth, classes or 10, width)


def _torchvision(name: str) -> Architecture:
    require(f"--arch {name}", "torchvision")
    import torchvision

    model = name.removeprefix(TORCHVISION)
    if model not in torchvision.models.list_models(torchvision.models):
        raise LookupError(f"torchvision has no classification model {model!r}{_suggest(name)}")
    # By default these two initialise their weights slowly and warn about it.
    extra = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}

    def build(classes: int | None) -> nn.Module:
        head = {} if classes is None else {"num_classes": classes}
        network: nn.Module = torchvision.models.get_model(model, weights=None, **extra, **head)
        return network

    return Architecture(name, INCEPTION_SHAPE if model == "inception_v3" else IMAGENET_SHAPE, build)


def _import_factory(name: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = name.partition(":")
    sys.path.insert(0, "")  # The current folder, where users keep their own modules; `python -m` does the same.
    try:
        factory = getattr(importlib.import_module(module_name), attribute, None)
    finally:
        sys.path.remove("")
    if not callable(factory):
        raise LookupError(f"{module_name} has no factory {attribute!r}")
    result: Callable[..., nn.Module] = factory
    return result


def _build_imported(factory: Callable[..., nn.Module], classes: int | None) -> nn.Module:
    return factory() if classes is None else factory(num_classes=classes)


def _suggest(name: str) -> str:
    known = list(CIFAR_DEPTHS)
    if is_installed("torchvision"):
        import torchvision

        known += [f"torchvision:{model}" for model in torchvision.models.list_models(torchvision.models)]
    near = [f"torchvision:{name}"] if f"torchvision:{name}" in known else difflib.get_close_matches(name, known, 3, 0.5)
    if not near:
        names = "resnet20, 32, 44, 56, 110, with a width as in resnet20x1.6"
        return f"; known are {names}, torchvision:NAME and package.module:factory"
    return f"; did you mean {' or '.join(near)}?"
