"""How a network is trained for low rank, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from training.layers import LayerFilter, paper_choice
from training.ranks import RAMPS, RankRule
from trp_export.errors import OptionError
from trp_export.lowrank.names import SCHEME_CHOICES
from trp_export.rules import Energy


@dataclass(frozen=True, slots=True)
class TRPSettings:
    """How a network is trained for low rank. The defaults are the paper's method at a period that costs nothing.

    `schemes` maps patterns of layer names to a name of --scheme, the first match counts. `nuclear` is lambda: on
    projection steps only, as the authors have it, its pull is 1/m as strong as at m = 1; with `nuclear_every_step`
    it pulls at every step, at the price of a decomposition per step. A rule's `ramp` is over the first
    `ramp_steps` optimizer steps. With `exact_every` above 1, only every so many projections decompose in full and
    choose ranks; those between follow the space they left, which is what projecting on every step can afford.
    `layer_weights` say how much lost energy hurts in each layer under a budget.
    """

    rule: RankRule = field(default_factory=lambda: Energy(0.98))
    schemes: Mapping[str, str] = field(default_factory=lambda: {"*": "spatial"})
    layers: LayerFilter = paper_choice
    period: int = 20
    nuclear: float = 0.0
    nuclear_every_step: bool = False
    ramp: str = "none"
    ramp_steps: int = 0
    momentum: str = "keep"
    preserve_energy: bool = False
    project: bool = True
    exact_every: int = 1
    layer_weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.period < 1 or self.exact_every < 1:
            raise OptionError(f"--period {self.period} and --exact-every {self.exact_every} must be 1 or more.")
        if self.nuclear < 0:
            raise OptionError(f"--nuclear {self.nuclear:g} is below 0.")
        if self.ramp not in RAMPS:
            raise OptionError(f"unknown ramp {self.ramp!r}; one of {', '.join(RAMPS)}.")
        if self.momentum not in ("keep", "project", "reset"):
            raise OptionError(f"unknown momentum treatment {self.momentum!r}; one of keep, project, reset.")
        for choice in self.schemes.values():
            if choice not in SCHEME_CHOICES:
                raise OptionError(f"unknown scheme {choice!r}; one of {', '.join(SCHEME_CHOICES)}.")

    def choice(self, name: str) -> str:
        """The --scheme of a layer."""
        return next((choice for pattern, choice in self.schemes.items() if fnmatchcase(name, pattern)), "auto")
