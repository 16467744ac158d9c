"""The result in each precision side by side, and which of them ships."""

from __future__ import annotations

from dataclasses import dataclass

from trp_export.precision.convert import Variant


@dataclass(frozen=True, slots=True)
class Precisions:
    """The result in every precision, the float model first, and the index of the variant that ships.

    `rejected_because` says why the precision that was asked for cannot ship; `passed_over` what --precision best may
    not ship, and why.
    """

    variants: tuple[Variant, ...]
    shipped: int
    rejected_because: str | None = None
    passed_over: tuple[str, ...] = ()

    @property
    def chosen(self) -> Variant:
        return self.variants[self.shipped]

    def alone(self, precision: str) -> Variant | None:
        """The same precision without low rank."""
        return next((one for one in self.variants if (one.precision, one.low_rank) == (precision, False)), None)
