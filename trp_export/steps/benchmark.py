"""How fast the result is beside the original, and how much of that is owed to low rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from trp_export.errors import LoadError, NotFasterError, OptionError, TrpError, UnsupportedError
from trp_export.graph.model_files import save_model
from trp_export.network import Network
from trp_export.options import Options, Speedup
from trp_export.planning.plan import Plan
from trp_export.steps.build import finish
from trp_export.system.progress import Progress
from trp_export.verify import Files

if TYPE_CHECKING:
    from trp_export.bench import Comparison, Environment
    from trp_export.bench.profile import Profile


# A speed-up that was asked for is measured even where no benchmark is wanted, with as little as shows it.
_SHORT_S = 2.0
_FEW_PROCESSES = 4


def without_low_rank(files: Files, folder: Path) -> Path:
    """The original cleaned up without low rank, in `folder`: it keeps the figures honest, since what cleaning up alone
    gains is not owed to low rank."""
    cleaned = folder / "cleaned.onnx"
    save_model(finish(ir.load(files.dense))[0], cleaned)
    return cleaned


def benchmark(
    network: Network, models: Sequence[Path], options: Options, progress: Progress
) -> tuple[Comparison | None, str | None]:
    """The models side by side, the original first; or the reason why not. Without the benchmark, shortly."""
    from trp_export import bench

    benchmark = options.benchmark
    shapes = {name: tuple(size or 1 for size in shape) for name, shape in network.inputs.items()}
    try:
        comparison = bench.compare(
            models,
            device=benchmark.device,
            threads=benchmark.threads,
            budget_s=benchmark.budget_s if benchmark.run else _SHORT_S,
            processes=None if benchmark.run else _FEW_PROCESSES,
            shapes=shapes,
            progress=partial(progress, "measure"),
        )
    except (LoadError, UnsupportedError, OptionError) as error:
        if benchmark.require or isinstance(options.rule, Speedup):
            raise
        return None, f"not measured: {str(error).replace(str(models[0]), models[0].name)}"
    return comparison, None


def why_not_benchmarked(plan: Plan, options: Options) -> str | None:
    """Why there is nothing to measure, where that is so. Raises NotFasterError on request."""
    if not plan.changed and not options.precisions:
        if options.benchmark.require:
            raise NotFasterError("no layer gains, so the result is not faster; nothing was written.")
        return "not measured: no layer changed"
    measured = options.benchmark.run or isinstance(options.rule, Speedup)
    return None if measured else "not measured: --no-bench"


def require_faster(comparison: Comparison, low_rank: bool = True) -> None:
    """Of original, result, and the original cleaned up the second must be the fastest. Raises NotFasterError.

    Without `low_rank` it must only be faster than the original.
    """
    from trp_export import bench

    original, result, dense = comparison.measurements
    for reference, what in ((original, "the original"), (dense, "the original cleaned up without low rank")):
        if reference is dense and not low_rank:
            continue
        ratio = bench.ratio(reference, result)
        if ratio.verdict != "faster":
            raise NotFasterError(f"the result is not faster than {what}: {ratio}; nothing was written.")


def low_rank_share_of_speedup(latency: Comparison | None) -> str | None:
    """Where cleaning up alone changes the speed, how much of the gain is low rank's."""
    if latency is None:
        return None
    from trp_export import bench

    original, result, dense = latency.measurements
    alone = bench.ratio(original, dense)
    if alone.verdict in ("no difference", "unknown"):
        return None
    return (
        f"cleaning up without low rank makes the original {alone} as fast; low rank adds {bench.ratio(dense, result)}"
    )


def layer_times(
    network: Network, dense: Path, result: Path, taken_in: Environment
) -> Mapping[str, tuple[float, float]] | None:
    """Milliseconds of each layer in the dense network and in the result, by name; a few seconds of work.

    `taken_in` tells threads and cores. A layer that one of the profiles does not tell apart is left out; None where
    the network was timed on another device, and where this computer cannot profile, which is no reason to fail.
    """
    if taken_in.device != "local":
        return None
    from trp_export.bench.devices.base import Start
    from trp_export.bench.models import read_cases
    from trp_export.bench.profile import profile_models

    shapes = {name: tuple(size or 1 for size in shape) for name, shape in network.inputs.items()}
    start = Start(taken_in.threads, taken_in.cores, taken_in.provider, timeout_s=120)
    try:
        before, after = map(_by_name, profile_models(read_cases([dense, result], shapes=shapes), start))
    except TrpError:
        return None
    sites = [located.site.name for located in network.located]
    return {name: (before[name], after[name]) for name in sites if name in before and name in after}


def _by_name(profile: Profile) -> dict[str, float]:
    return {layer.name: layer.ms for layer in profile.layers}
