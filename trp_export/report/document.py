"""The report as a value, and as the document that lies beside every exported model."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trp_export.graph.cost import Cost
from trp_export.latency.forecast import Forecast
from trp_export.load import Source
from trp_export.options import Options
from trp_export.planning.frontier import Frontier
from trp_export.planning.plan import Decision, Plan
from trp_export.rules import Rule
from trp_export.system.privacy import without_paths
from trp_export.verify import Deviation

if TYPE_CHECKING:
    from trp_export.bench import Comparison, Measurement, Ratio
    from trp_export.precision.forms import Precisions
    from trp_export.ship.manifest import Ort

SCHEMA = 1
_PACKAGES = ("trp-export", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxsim", "torch", "torchvision")


@dataclass(frozen=True, slots=True)
class Report:
    """Before, after, plan, deviation, measurement. What is None has not been done.

    `layer_ms` are the times of layers in the cleaned-up original and in the float result, by name.
    """

    source: Source
    options: Options
    plan: Plan
    before: Cost
    after: Cost | None = None
    deviation: Deviation | None = None
    latency: Comparison | None = None
    layer_ms: Mapping[str, tuple[float, float]] | None = None
    frontier: Frontier | None = None
    forecast: Forecast | None = None
    forms: Precisions | None = None
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    ort: Ort | None = None
    digest: str | None = None

    @property
    def ratio(self) -> Ratio | None:
        """How many times faster the result is, with its interval."""
        if self.latency is None:
            return None
        from trp_export.bench import ratio

        return ratio(*self.latency.measurements[:2])

    @property
    def without_low_rank(self) -> Measurement | None:
        """The original cleaned up, in the precision of the result: all that the result gains without low rank."""
        chosen = self.forms.chosen if self.forms else None
        alone = self.forms.alone(chosen.precision) if self.forms and chosen else None
        if alone is not None:
            return alone.latency if alone is not chosen else None
        return self.latency.measurements[2] if self.latency and len(self.latency.measurements) > 2 else None

    @property
    def low_rank_ratio(self) -> Ratio | None:
        """The same against what there is without low rank: what low rank itself gains."""
        if self.latency is None or self.without_low_rank is None:
            return None
        from trp_export.bench import ratio

        return ratio(self.without_low_rank, self.latency.measurements[1])

    def without_paths(self, known: Sequence[Path]) -> Report:
        """The same with files by their names alone in everything that was said on the way."""

        def cut(text: str) -> str:
            return without_paths(text, known)

        deviation = self.deviation and replace(self.deviation, how=cut(self.deviation.how))
        latency = self.latency and replace(_named(self.latency), noise=tuple(map(cut, self.latency.noise)))
        return replace(self, deviation=deviation, latency=latency, notes=tuple(map(cut, self.notes)))

    def to_json(self) -> dict[str, Any]:
        """The document. Times in ms, extents as they are; None where a thing was not done."""
        return {
            "schema": SCHEMA,
            "source": {"name": self.source.name, "arch": self.source.arch},
            "options": _plain(self.options),
            "versions": versions(),
            "environment": {"system": platform.platform(), "machine": platform.machine()},
            "before": asdict(self.before),
            "after": asdict(self.after) if self.after else None,
            "layers": [_layer(decision, self.layer_ms or {}) for decision in self.plan.decisions],
            "deviation": _plain(self.deviation),
            "latency": self.latency.to_json(samples=False) if self.latency else None,
            "frontier": asdict(self.frontier) if self.frontier else None,
            "forecast": asdict(self.forecast) if self.forecast else None,
            "variants": [one.to_json(one is self.forms.chosen) for one in self.forms.variants] if self.forms else [],
            "notes": list(self.notes),
            "digest": self.digest,
            "plan": self.plan.to_json(),
        }


def _named(latency: Comparison) -> Comparison:
    """Models by the names of their files, which may be the same for original and result."""
    names = [Path(one.model).name for one in latency.measurements]
    if names[0] in names[1:]:
        names[0] += " (original)"
    named = (replace(one, model=name) for one, name in zip(latency.measurements, names, strict=True))
    return replace(latency, measurements=tuple(named))


def versions() -> dict[str, str]:
    """Installed versions of what an export depends on; what is not installed is left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **found}


def _layer(decision: Decision, layer_ms: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    site = decision.site
    dense_ms, pair_ms = layer_ms.get(site.name, (None, None))
    first = decision.branches[0] if decision.branches else None
    return {
        "name": site.name,
        "op": site.op,
        "kernel": list(site.kernel_shape),
        "group": site.group,
        "scheme": first.scheme.name if first else None,
        "rank": first.rank if first else None,
        "full_rank": site.full_rank(first.scheme) if first else None,
        "added": [{"scheme": pair.scheme.name, "rank": pair.rank} for pair in decision.branches[1:]],
        "energy": decision.energy,
        "params_before": site.params,
        "params_after": decision.params,
        "macs_before": site.macs,
        "macs_after": decision.macs,
        "ms_before": dense_ms,
        "ms_after": pair_ms,
        "reason": decision.reason,
    }


def _plain(value: object) -> Any:
    """Values as JSON knows them: paths by name only, so that no folder of the user's leaves the machine."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is not None:
        named = {name: _plain(getattr(value, name)) for name in fields}
        return {"kind": type(value).__name__, **named} if isinstance(value, Rule) else named
    return value
