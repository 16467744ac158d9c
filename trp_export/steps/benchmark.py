"""How fast the result is beside the original, and how much of that low rank contributes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trp_export.errors import LoadError, NotFasterError, OptionError, TrpError, UnsupportedError
from trp_export.graph.exact import write_timed
from trp_export.graph.large_files import read_model
from trp_export.graph.model_files import save_model
from trp_export.inputs.samples import Batch, input_types
from trp_export.inputs.spec import Array
from trp_export.network import Network
from trp_export.options import Options
from trp_export.planning.plan import Plan
from trp_export.precision.convert import Variant
from trp_export.precision.forms import Precisions
from trp_export.steps.build import Built, finish
from trp_export.steps.knowledge import Knowledge
from trp_export.workspace import Workspace

if TYPE_CHECKING:
    from trp_export.bench import Comparison, Environment, Measurement
    from trp_export.bench.profile import Profile

# A speed-up that was asked for is measured even where no benchmark is wanted, as shortly as shows it.
_SHORT_S = 2.0
_FEW_PROCESSES = 4


@dataclass(frozen=True, slots=True)
class Timing:
    """Measurements of model files side by side, or the reason why there are none.

    `layer_ms` are times of layers in the cleaned-up original and in the float result, by name.
    """

    comparison: Comparison | None = None
    not_measured: str | None = None
    by_file: Mapping[Path, Measurement] = field(default_factory=dict)
    layer_ms: Mapping[str, tuple[float, float]] | None = None

    def of_variants(self, variants: Sequence[Variant]) -> tuple[Variant, ...]:
        """The variants with their measurements, where they were measured."""
        return tuple(replace(one, latency=self.by_file.get(one.file) if one.file else None) for one in variants)


def benchmark(
    plan: Plan, built: Built, variants: Sequence[Variant], knowledge: Knowledge, options: Options, work: Workspace
) -> Timing:
    """Time the original, the result, the original cleaned up without low rank, and all variants, side by side.

    Each gets a calibration sample where there is one, and must give on the device what it gives here: on noise an
    answer may be zero whatever the device computes.
    """
    if not options.is_timed:
        return Timing(not_measured="not measured: --no-bench")
    network = knowledge.network
    # Where only channels were removed, the clean-up alone leaves them.
    wide = network.thinned.wide if network.thinned is not None and not plan.changed else built.files.dense
    cleaned = without_low_rank(built.files.wide or wide, network.rewrites, work.scratch)
    files = [built.files.original, built.files.result, cleaned]
    files = list(dict.fromkeys([*files, *(one.file for one in variants if one.file is not None)]))
    try:
        comparison = _compare(files, network, _sample(knowledge), options, work)
    except (LoadError, UnsupportedError, OptionError) as error:
        if options.benchmark.require or options.effective_rule.needs_latency:
            raise
        return Timing(not_measured=f"not measured: {str(error).replace(str(files[0]), files[0].name)}")
    by_file = dict(zip(files, comparison.measurements, strict=True))
    layer_ms = None
    if plan.changed and work.outputs is not None and work.outputs.page is not None:
        layer_ms = layer_times(network, cleaned, built.files.result, comparison.environment)
    return Timing(comparison, None, by_file, layer_ms)


def without_low_rank(dense: Path, rewrites: Collection[str], folder: Path) -> Path:
    """The original cleaned up, in `folder`; written once. What cleaning up gains is not low rank's gain."""
    cleaned = folder / "cleaned.onnx"
    if not cleaned.exists():
        model, _ = finish(read_model(dense))
        write_timed(model, rewrites)
        save_model(model, cleaned)
    return cleaned


def compared(timing: Timing, built: Built, precisions: Precisions | None, folder: Path) -> Comparison | None:
    """Original, what ships, and the original cleaned up without low rank: the three that the report compares."""
    if timing.comparison is None:
        return None
    shipped = precisions.chosen.latency if precisions is not None else None
    original, result = timing.by_file[built.files.original], timing.by_file[built.files.result]
    cleaned = timing.by_file[folder / "cleaned.onnx"]
    return replace(timing.comparison, measurements=(original, shipped or result, cleaned))


def require_faster(comparison: Comparison | None, plan: Plan, options: Options) -> None:
    """Raises NotFasterError where the options require the result to be faster and it is not.

    --require-speedup wants it faster than the original and, where layers became pairs, than the original cleaned up
    without low rank; a rule that asks for a speed-up wants it faster than the original.
    """
    if comparison is None or not (options.benchmark.require or options.effective_rule.needs_latency):
        return
    from trp_export import bench

    original, result, cleaned = comparison.measurements
    references = [(original, "the original")]
    if options.benchmark.require and plan.changed:
        references.append((cleaned, "the original cleaned up without low rank"))
    for reference, what in references:
        ratio = bench.ratio(reference, result)
        if ratio.verdict != "faster":
            raise NotFasterError(f"the result is not faster than {what}: {ratio}; nothing was written.")


def share_of_speedup(comparison: Comparison | None, plan: Plan) -> tuple[str, ...]:
    """Where cleaning up alone changes the speed: how much low rank, and channels that went by images, add to it."""
    if comparison is None:
        return ()
    from trp_export import bench

    original, result, cleaned = comparison.measurements
    alone = bench.ratio(original, cleaned)
    if alone.verdict in ("no difference", "unknown"):
        return ()
    added = bench.ratio(cleaned, result)
    adds = "adds" if plan.reduction == "low rank" else "add"
    return (f"cleaning up alone makes the original {alone} as fast; {plan.reduction} {adds} {added}",)


def layer_times(
    network: Network, dense: Path, result: Path, environment: Environment
) -> Mapping[str, tuple[float, float]] | None:
    """Milliseconds of each layer in the dense network and in the result, by name; a few seconds of work.

    A layer that one of the profiles does not tell apart is left out. None where the network was timed on another
    device, and where this computer cannot profile, which is no reason to fail.
    """
    if environment.device != "local":
        return None
    from trp_export.bench.devices.base import Start
    from trp_export.bench.models import read_cases
    from trp_export.bench.profile import profile_models

    start = Start(environment.threads, environment.cores, environment.provider, timeout_s=120)
    try:
        before, after = map(_by_name, profile_models(read_cases([dense, result], shapes=_shapes(network)), start))
    except TrpError:
        return None
    sites = [located.site.name for located in network.located]
    return {name: (before[name], after[name]) for name in sites if name in before and name in after}


def _sample(knowledge: Knowledge) -> Mapping[str, Array] | None:
    """What the user's file is fed, of the sizes that are measured: the user's inputs, or a calibration sample.

    None where there is neither.
    """
    data, network = knowledge.calibration, knowledge.network
    if network.described.arrays:
        sample = Batch(network.described.feeds())
    elif data is not None and data.samples is not None:
        sample = data.samples.largest
    else:
        return None
    arrays = sample.in_types(input_types(network.source.model)).arrays
    return arrays if {name: array.shape for name, array in arrays.items()} == _shapes(network) else None


def _compare(
    files: Sequence[Path],
    network: Network,
    sample: Mapping[str, Array] | None,
    options: Options,
    work: Workspace,
) -> Comparison:
    from trp_export import bench

    wanted = options.benchmark
    return bench.compare(
        files,
        device=wanted.device,
        threads=wanted.threads,
        budget_s=wanted.budget_s if wanted.run else _SHORT_S,
        processes=None if wanted.run else _FEW_PROCESSES,
        inputs=sample,
        shapes=_shapes(network),
        progress=partial(work.progress, "measure"),
    )


def _shapes(network: Network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(size or 1 for size in shape) for name, shape in network.inputs.items()}


def _by_name(profile: Profile) -> dict[str, float]:
    return {layer.name: layer.ms for layer in profile.layers}
