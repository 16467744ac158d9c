"""How a network is trained for low rank, as one value, and which of its layers take part.

Fields that trp-train offers carry their flags (see `trp_export.flags`). torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from trp_export.flags import InvalidOptionError, flag
from trp_export.lowrank.names import SCHEME_CHOICES
from trp_export.rules import Energy, Macs, Rank, Threshold

if TYPE_CHECKING:
    from trp_export.lowrank.site import Site

LOW_RANK = "Low rank"
_LARGEST = 1e37  # torch refuses factors beyond 3.4e38, and Adam divides by 0.1 first.
RankRule = Energy | Threshold | Rank | Macs
Ramp = Literal["none", "linear", "cosine"]
MomentumTreatment = Literal["keep", "project", "reset"]


class LayerFilter(Protocol):
    """Which layers are trained for low rank. `index` counts the sites of the network from 0."""

    def __call__(self, site: Site, index: int) -> bool: ...


def paper_choice(site: Site, index: int) -> bool:
    """Every conv with a kernel larger than 1x1, except the first layer (Xu et al. 2020, section 4)."""
    return not site.is_matrix and index > 0


@dataclass(frozen=True, slots=True)
class ByName:
    """Layers whose name matches a pattern of `only` (all, where that is empty) and none of `skip`."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __call__(self, site: Site, index: int) -> bool:
        return self.matches(site.name)

    def matches(self, name: str) -> bool:
        """Whether the layer of this name takes part."""
        wanted = any(fnmatchcase(name, pattern) for pattern in self.only) if self.only else True
        return wanted and not any(fnmatchcase(name, pattern) for pattern in self.skip)


@dataclass(frozen=True, slots=True)
class Layers:
    """Which layers are trained for low rank, and how they are decomposed."""

    scheme: str = flag(
        "--scheme",
        "How a layer is decomposed. auto, sliced and all take the best of several for each layer.",
        section=LOW_RANK,
        choices=SCHEME_CHOICES,
        default="spatial",
    )
    only: tuple[str, ...] = flag(
        "--only",
        "Train only layers whose name matches; may be repeated. Default: all convs with kernels larger than 1x1, "
        "except the first.",
        section=LOW_RANK,
        kind="many",
        metavar="PATTERN",
        default=(),
    )
    skip: tuple[str, ...] = flag(
        "--skip",
        "Leave out layers whose name matches; may be repeated.",
        section=LOW_RANK,
        kind="many",
        metavar="PATTERN",
        default=(),
    )

    def __post_init__(self) -> None:
        require_choice("scheme", self.scheme, SCHEME_CHOICES)

    @property
    def filter(self) -> LayerFilter:
        return ByName(self.only, self.skip) if self.only or self.skip else paper_choice


@dataclass(frozen=True, slots=True)
class TRPSettings:
    """How a network is trained for low rank. The defaults are the paper's method, with a projection every 20 steps.

    `schemes` maps patterns of layer names to a decomposition or a set of them, as --scheme does; the first match
    counts. `nuclear` is lambda. As in the authors' code its gradient is added on projection steps only, so at period m
    it acts 1/m as strongly as at m = 1; with `nuclear_every_step` it is added on every step, each of which then needs a
    decomposition. `ramp` brings the rule in over the first `ramp_steps` optimizer steps, 0 at once. With `exact_every`
    above 1, only every n-th projection decomposes in full and chooses ranks; the projections between follow the
    subspace of the last one, which makes a projection on every step affordable. `layer_weights` say how much lost
    energy harms in each layer when a budget is shared out.
    """

    rule: RankRule = field(default_factory=lambda: Energy(0.98))
    schemes: Mapping[str, str] = field(default_factory=lambda: {"*": "spatial"})
    layers: LayerFilter = paper_choice
    align: int = flag(
        "--align",
        "Round ranks up to a multiple of N, such as the channels that the processor computes at once.",
        section=LOW_RANK,
        read=int,
        metavar="N",
        default=1,
    )
    period: int = flag("--period", "Project every N steps.", section=LOW_RANK, read=int, metavar="N", default=20)
    exact_every: int = flag(
        "--exact-every",
        "Choose ranks on every N-th projection only; the others keep the ranks and follow the subspaces.",
        section=LOW_RANK,
        read=int,
        metavar="N",
        default=1,
    )
    ramp: Ramp = flag(
        "--ramp",
        "How the rule takes effect over the first three quarters of the dense epochs.",
        section=LOW_RANK,
        choices=get_args(Ramp),
        default="cosine",
    )
    ramp_steps: int = 0
    nuclear: float = flag(
        "--nuclear",
        "Weight of the nuclear norm, added on projection steps; scale it with --period.",
        section=LOW_RANK,
        read=float,
        metavar="WEIGHT",
        default=0.0,
    )
    nuclear_every_step: bool = flag(
        "--nuclear-every-step",
        "Add the nuclear norm on every step, which needs a decomposition on every step.",
        section=LOW_RANK,
        kind="on",
        default=False,
    )
    project: bool = flag(
        "--no-project",
        "Never project: the nuclear norm alone lowers the ranks.",
        section=LOW_RANK,
        kind="off",
        default=True,
    )
    momentum: MomentumTreatment = flag(
        "--momentum-at-projection",
        "What a projection does to the optimizer's momentum: keep it, project it onto the kept subspace, or reset it.",
        section=LOW_RANK,
        choices=get_args(MomentumTreatment),
        default="keep",
    )
    preserve_energy: bool = flag(
        "--preserve-energy",
        "After a projection, rescale the weight to the norm it had before.",
        section=LOW_RANK,
        kind="on",
        default=False,
    )
    layer_weights: Mapping[str, float] | None = None

    @property
    def has_ramp(self) -> bool:
        """Whether the rule takes effect step by step."""
        return self.ramp != "none" and self.ramp_steps > 0

    def __post_init__(self) -> None:
        for name in ("align", "period", "exact_every"):
            if getattr(self, name) < 1:
                raise InvalidOptionError(f"{{{name}}} must be at least 1, not {getattr(self, name)}.")
        require_at_least_zero("nuclear", self.nuclear)
        require_choice("ramp", self.ramp, get_args(Ramp))
        require_choice("momentum", self.momentum, get_args(MomentumTreatment))
        for choice in self.schemes.values():
            require_choice("schemes", choice, SCHEME_CHOICES)

    def choice(self, name: str) -> str:
        """The decomposition or set of decompositions for a layer."""
        return next((choice for pattern, choice in self.schemes.items() if fnmatchcase(name, pattern)), "auto")


def require_above_zero(name: str, value: float) -> None:
    """Raise InvalidOptionError where the field called `name` is not a positive number that float32 can hold."""
    if not 0 < value < _LARGEST:
        raise InvalidOptionError(f"{{{name}}} must be a number above 0 and below {_LARGEST:g}, not {value:g}.")


def require_at_least_zero(name: str, value: float) -> None:
    """The same with 0 allowed."""
    if not 0 <= value < _LARGEST:
        raise InvalidOptionError(f"{{{name}}} must be a number from 0 to {_LARGEST:g}, not {value:g}.")


def require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise InvalidOptionError where the field called `name` has a value that is not allowed."""
    if value not in allowed:
        raise InvalidOptionError(f"{{{name}}} must be one of {', '.join(allowed)}, not {value}.")
