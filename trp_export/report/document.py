"""The report as a value and as JSON; every exported model has its JSON report beside it."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trp_export.graph.cost import Cost
from trp_export.latency.forecast import Forecast
from trp_export.load import Source
from trp_export.metrics.names import without_folder
from trp_export.options import Options
from trp_export.planning.frontier import Frontier
from trp_export.planning.plan import Decision, Plan
from trp_export.rules import Macs, Rule
from trp_export.system.privacy import without_paths
from trp_export.verify import Deviation

if TYPE_CHECKING:
    from trp_export.bench import Comparison, Measurement, Ratio
    from trp_export.precision.forms import Precisions
    from trp_export.ship.manifest import Ort

SCHEMA = 1
# What the plan in the metadata, the names and notes of layers, and the nodes and scales of 8 bits may take.
_REWRITE_SHARE = 0.05
_METADATA_BYTES, _LAYER_BYTES, _INT8_LAYER_BYTES = 2**12, 2**8, 2**11
_PACKAGES = ("trp-export", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxsim", "torch", "torchvision")


@dataclass(frozen=True, slots=True)
class Timings:
    """The measurements of one comparison, by model. `cleaned` is the original cleaned up, without low rank."""

    original: Measurement
    result: Measurement
    cleaned: Measurement | None


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of an export: size before and after, plan, deviation, latency. None means: not done.

    `layer_ms` are the times of layers in the cleaned-up original and in the float result, by name. `fewer_macs` says
    how many times fewer multiply-adds the removal of channels alone leaves.
    """

    source: Source
    options: Options
    plan: Plan
    before: Cost
    fewer_macs: float = 1.0
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
    def is_larger(self) -> bool:
        """Whether the result takes more bytes than the original.

        Beyond what the plan in its metadata takes, and a little more for operators that a rewrite adds for speed.
        """
        before, after = self.before.bytes, self.after.bytes if self.after is not None else None
        each = _INT8_LAYER_BYTES if self.precision == "int8" else _LAYER_BYTES
        allowed = _METADATA_BYTES + each * len(self.plan.decisions)
        allowed += int(_REWRITE_SHARE * (before or 0)) if self.plan.rewrites else 0
        return before is not None and after is not None and after > before + allowed

    @property
    def shortfall(self) -> str | None:
        """What a user would not expect of a result that was written: a larger file, or a budget left unchecked."""
        rule, after = self.options.effective_rule, self.after
        if after is None:
            return None
        if isinstance(rule, Macs) and (self.before.macs is None or after.macs is None):
            return f"--macs {rule.ratio:g} was planned on each layer alone and could not be checked: MACs are unknown"
        if self.is_larger:
            return f"the file is larger than the original: {after.bytes:,} instead of {self.before.bytes:,} bytes"
        return None

    @property
    def gains_nothing(self) -> bool:
        """Whether the result is larger, needs no fewer multiply-adds and was not measured to be faster."""
        before, after = self.before.macs, self.after.macs if self.after is not None else None
        is_cheaper = before is not None and after is not None and after < before
        is_faster = self.ratio is not None and self.ratio.verdict == "faster"
        return self.is_larger and not is_cheaper and not is_faster

    @property
    def precision(self) -> str:
        """The precision of the result."""
        return self.forms.chosen.precision if self.forms is not None else "fp32"

    @property
    def timings(self) -> Timings | None:
        """The measured latencies, None without a benchmark."""
        if self.latency is None:
            return None
        original, result, *cleaned = self.latency.measurements
        return Timings(original, result, cleaned[0] if cleaned else None)

    @property
    def ratio(self) -> Ratio | None:
        """How many times as fast as the original the result is, with its interval."""
        if self.timings is None:
            return None
        from trp_export.bench import ratio

        return ratio(self.timings.original, self.timings.result)

    @property
    def without_low_rank(self) -> Measurement | None:
        """The original cleaned up, in the precision of the result; low rank is judged against this."""
        if self.forms is not None:
            chosen, alone = self.forms.chosen, self.forms.alone(self.precision)
            if alone is chosen:
                return None
            if alone is not None:
                return alone.latency
        return self.timings.cleaned if self.timings is not None else None

    @property
    def low_rank_ratio(self) -> Ratio | None:
        """How many times as fast low rank makes the network, beyond the gain of clean-up and precision."""
        if self.timings is None or self.without_low_rank is None:
            return None
        from trp_export.bench import ratio

        return ratio(self.without_low_rank, self.timings.result)

    def without_paths(self, known: Sequence[Path]) -> Report:
        """The same report with file names instead of paths in all messages. `known` are paths that may occur."""

        def cut(text: str) -> str:
            return without_paths(text, known)

        deviation = self.deviation and replace(
            self.deviation,
            how=cut(self.deviation.how),
            not_compared=tuple(map(cut, self.deviation.not_compared)),
            not_run=tuple(map(cut, self.deviation.not_run)),
        )
        latency = self.latency and replace(_named(self.latency), noise=tuple(map(cut, self.latency.noise)))
        return replace(self, deviation=deviation, latency=latency, notes=tuple(map(cut, self.notes)))

    def to_json(self) -> dict[str, Any]:
        """The JSON document. Times are in ms; null means: not done."""
        return {
            "schema": SCHEMA,
            "source": {"name": self.source.name, "arch": self.source.arch},
            "options": _plain(_without_folders(self.options)),
            "versions": versions(),
            "environment": {"system": platform.platform(), "machine": platform.machine()},
            "before": asdict(self.before),
            "after": asdict(self.after) if self.after else None,
            "layers": [_layer(decision, self.layer_ms or {}) for decision in self.plan.decisions],
            "channels": [decision.to_json() for decision in self.plan.channels],
            "deviation": _plain(self.deviation),
            "latency": _latency(self.latency),
            "frontier": asdict(self.frontier) if self.frontier else None,
            "forecast": asdict(self.forecast) if self.forecast else None,
            "variants": self._variants(),
            "notes": list(self.notes),
            "digest": self.digest,
            "plan": self.plan.to_json(),
        }

    def _variants(self) -> list[dict[str, Any]]:
        if self.forms is None:
            return []
        return [variant.to_json(variant is self.forms.chosen) for variant in self.forms.variants]


def _latency(latency: Comparison | None) -> dict[str, Any] | None:
    if latency is None:
        return None
    from trp_export.bench import to_json

    return to_json(latency, samples=False)


def _named(latency: Comparison) -> Comparison:
    """The comparison with file names instead of paths; original and result may have the same name."""
    names = [Path(measurement.model).name for measurement in latency.measurements]
    if names[0] in names[1:]:
        names[0] += " (original)"
    pairs = zip(latency.measurements, names, strict=True)
    return replace(latency, measurements=tuple(replace(measurement, model=name) for measurement, name in pairs))


def versions() -> dict[str, str]:
    """The installed versions of the packages that an export depends on."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


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
        "macs_before": site.macs if site.is_known else None,
        "macs_after": decision.macs if site.is_known else None,
        "ms_before": dense_ms,
        "ms_after": pair_ms,
        "reason": decision.reason,
    }


def _without_folders(options: Options) -> Options:
    """The options with files named in the metric by name only."""
    images = options.images
    return options if images is None else replace(options, images=replace(images, metric=without_folder(images.metric)))


def _plain(value: object) -> Any:
    """A value as plain JSON. Paths become names, so that no local folder leaves the machine."""
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
