"""How a network is trained for equal filters, as one value. torch is not imported here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from training.settings import require_at_least_zero, require_choice
from trp_export.flags import InvalidOptionError, flag
from trp_export.rules import SIZE, Macs

CHANNELS = "Fewer channels (--method csgd)"
Clustering = Literal["kmeans", "even"]


@dataclass(frozen=True, slots=True)
class Widths:
    """Every layer keeps this fraction of its filters, rounded down, and at least one."""

    fraction: float = flag(
        "--widths",
        "Keep FRACTION of the filters of every layer, for example 0.625; needs --method csgd.",
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
        "How strongly filters of a cluster are drawn together: their distance shrinks by RATE times the learning rate "
        "in each step, and momentum adds to that.",
        section=CHANNELS,
        read=float,
        metavar="RATE",
        default=3e-3,
    )
    clustering: Clustering = flag(
        "--clusters",
        "Which filters are drawn together: similar ones (kmeans), or neighbours in clusters of even size.",
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
