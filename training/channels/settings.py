"""How a network is trained for fewer channels, as one value for each method. torch is not imported here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from training.settings import require_above_zero, require_at_least_zero, require_choice
from trp_export.flags import InvalidOptionError, flag
from trp_export.rules import SIZE, Macs

CHANNELS = "Fewer channels (--method csgd, dagger, magnitude)"
Clustering = Literal["kmeans", "even"]


@dataclass(frozen=True, slots=True)
class Widths:
    """Every layer keeps this fraction of its filters, rounded down, and at least one."""

    fraction: float = flag(
        "--widths",
        "Keep FRACTION of the filters of every layer, for example 0.625; needs a method for channels.",
        section=SIZE,
        read=float,
        metavar="FRACTION",
    )

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise InvalidOptionError(f"{{fraction}} must be above 0 and below 1, not {self.fraction:g}.")

    def __str__(self) -> str:
        return f"widths {self.fraction:g}"


def _every_layer(name: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class CSGDSettings:
    """How a network is trained by Centripetal SGD. The defaults are those of the paper for ResNet-56.

    `strength` is epsilon: how fast filters of a cluster approach their mean. `decay` is eta, the weight decay of the
    clustered filters; None takes that of the optimizer. `layers` says by its name whether a layer may lose filters.
    """

    rule: Macs | Widths = field(default_factory=lambda: Widths(0.625))
    strength: float = flag(
        "--strength",
        "csgd: how strongly filters of a cluster are drawn together: their distance shrinks by RATE times the learning "
        "rate in each step, and momentum adds to that.",
        section=CHANNELS,
        read=float,
        metavar="RATE",
        default=3e-3,
    )
    clustering: Clustering = flag(
        "--clusters",
        "csgd: which filters are drawn together: similar ones (kmeans), or neighbours in clusters of even size.",
        section=CHANNELS,
        choices=get_args(Clustering),
        default="kmeans",
    )
    decay: float | None = None
    seed: int = 0
    layers: Callable[[str], bool] = _every_layer

    def __post_init__(self) -> None:
        require_at_least_zero("strength", self.strength)
        require_choice("clustering", self.clustering, get_args(Clustering))
        if self.decay is not None:
            require_at_least_zero("decay", self.decay)


@dataclass(frozen=True, slots=True)
class DaggerSettings:
    """How gates are trained that read weights, before the weights of what they leave are trained.

    `gate_steps` optimizer steps train gates alone, by Adam at a rate that falls from `gate_lr` to 0. `penalty` is the
    weight of the distance to the rule. `layers` says by its name whether a layer may lose filters.
    """

    rule: Macs | Widths = field(default_factory=lambda: Macs(2.0))
    gate_steps: int = flag(
        "--gate-steps",
        "dagger: train gates alone for the first N steps, then the weights of the filters that they leave.",
        section=CHANNELS,
        read=int,
        metavar="N",
        default=400,
    )
    penalty: float = flag(
        "--penalty",
        "dagger: how strongly gates are pulled to the number of filters or multiply-adds.",
        section=CHANNELS,
        read=float,
        metavar="WEIGHT",
        default=4.0,
    )
    gate_lr: float = flag(
        "--gate-lr",
        "dagger: learning rate of the gates at first; it falls to 0.",
        section=CHANNELS,
        read=float,
        metavar="RATE",
        default=5e-3,
    )
    seed: int = 0
    layers: Callable[[str], bool] = _every_layer

    def __post_init__(self) -> None:
        if self.gate_steps < 1:
            raise InvalidOptionError(f"{{gate_steps}} must be at least 1, not {self.gate_steps}.")
        require_above_zero("penalty", self.penalty)
        require_above_zero("gate_lr", self.gate_lr)


@dataclass(frozen=True, slots=True)
class MagnitudeSettings:
    """How many of the largest filters stay. `layers` says by its name whether a layer may lose filters."""

    rule: Macs | Widths = field(default_factory=lambda: Widths(0.625))
    layers: Callable[[str], bool] = _every_layer
