"""The name of an architecture, and how to build the network.

A name of the form `package.module:factory` imports that module, which runs its code. `require_repeated` is the only
place that decides whether a name out of a file may do so.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from models_zoo.cifar_resnet import CifarResNet
from models_zoo.cifar_vgg import CifarVGG
from models_zoo.gated import DistributedGates, Gated, RecurrentGates
from models_zoo.segmentation import SegmentationResNet
from trp_export.errors import OptionError
from trp_export.system.extras import is_installed, require

CIFAR_SHAPE = (1, 3, 32, 32)
IMAGENET_SHAPE = (1, 3, 224, 224)
INCEPTION_SHAPE = (1, 3, 299, 299)

CAMVID_SHAPE = (1, 3, 120, 160)

VGG = "vgg8"
CIFAR_DEPTHS = {f"resnet{depth}": depth for depth in (14, 20, 32, 44, 56, 110)}
# resnet20, resnet20x1.6 (1.6 times as wide), resnet14-seg (segmentation), resnet14-rignet-t2 (gates, two iterations).
_NAME = re.compile(
    r"(?P<trunk>resnet\d+)(?:x(?P<width>\d{1,2}(?:\.\d{1,4})?))?(?P<seg>-seg)?"
    r"(?:-(?P<gates>rignet-nearest|rignet|dignet)-t(?P<iterations>\d{1,2}))?"
)
# Wider networks and more iterations would fill memory.
_WIDEST, _MOST_ITERATIONS = 8.0, 16
_GATES: dict[str, Callable[[Sequence[int]], nn.Module]] = {
    "rignet": RecurrentGates,
    "rignet-nearest": partial(RecurrentGates, nearest=True),
    "dignet": DistributedGates,
}
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
    """A name of this package (see _NAME), `torchvision:resnet50` or `package.module:factory`.

    Raises LookupError with similar names for an unknown name, ImportError where a module is missing.
    """
    match = _NAME.fullmatch(name)
    if match is not None and match["trunk"] in CIFAR_DEPTHS:
        _require_in_range(match)
        return Architecture(name, CAMVID_SHAPE if match["seg"] else CIFAR_SHAPE, partial(_build_own, match))
    if name == VGG:
        return Architecture(name, CIFAR_SHAPE, lambda classes: CifarVGG(classes or 10))
    if name.startswith(TORCHVISION):
        return _torchvision(name)
    if ":" in name:
        return Architecture(name, None, partial(_build_imported, _import_factory(name)))
    raise LookupError(f"unknown architecture {name!r}{_suggest(name)}")


def with_iterations(name: str, iterations: int) -> str:
    """The name of the same gated network at another number of iterations. Raises LookupError for other networks."""
    match = _NAME.fullmatch(name)
    if match is None or match["trunk"] not in CIFAR_DEPTHS or match["gates"] is None:
        raise LookupError(f"{name} does not run in iterations; networks such as resnet14-rignet-t2 do")
    renamed = name[: match.start("iterations")] + str(iterations)
    find_architecture(renamed)
    return renamed


def iterations_of(name: str) -> int | None:
    """How often the trunk of a gated network runs; None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match["iterations"]) if match is not None and match["iterations"] else None


def _require_in_range(match: re.Match[str]) -> None:
    """Raise LookupError for a width or a number of iterations that no network here has."""
    if match["width"] is not None and not 0 < float(match["width"]) <= _WIDEST:
        raise LookupError(f"the width of {match[0]!r} must be above 0 and at most {_WIDEST:g}")
    if match["iterations"] is not None and not 1 <= int(match["iterations"]) <= _MOST_ITERATIONS:
        raise LookupError(f"the iterations of {match[0]!r} must be between 1 and {_MOST_ITERATIONS}")


def _build_own(match: re.Match[str], classes: int | None) -> nn.Module:
    depth, width = CIFAR_DEPTHS[match["trunk"]], float(match["width"] or 1)
    trunk = (
        SegmentationResNet(depth, classes or 11, width) if match["seg"] else CifarResNet(depth, classes or 10, width)
    )
    if match["gates"] is None:
        return trunk
    return Gated(trunk, _GATES[match["gates"]](trunk.channels), int(match["iterations"]))


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
    known = [*CIFAR_DEPTHS, VGG]
    if is_installed("torchvision"):
        import torchvision

        known += [f"torchvision:{model}" for model in torchvision.models.list_models(torchvision.models)]
    near = [f"torchvision:{name}"] if f"torchvision:{name}" in known else difflib.get_close_matches(name, known, 3, 0.5)
    if not near:
        names = "resnet14, 20, 32, 44, 56, 110, resnet20x1.6 (wider), resnet14-seg, resnet14-rignet-t2, vgg8"
        return f"; known are {names}, torchvision:NAME and package.module:factory"
    return f"; did you mean {' or '.join(near)}?"
