"""How fast the result is beside the original, and how much of that is owed to low rank."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir

from trp_export.build import finish
from trp_export.errors import LoadError, NotFasterError, OptionError, UnsupportedError
from trp_export.network import Network
from trp_export.options import Benchmark
from trp_export.planning.plan import Plan
from trp_export.save import Stage, save_model
from trp_export.verify import Files

if TYPE_CHECKING:
    from trp_export.bench import Comparison

Progress = Callable[[str, float], None]


def measure(
    network: Network, plan: Plan, files: Files, benchmark: Benchmark, stage: Stage, progress: Progress
) -> tuple[Comparison | None, str | None]:
    """Original, result, and the original cleaned up without low rank, side by side; or the reason why not.

    The third keeps the figures honest: what cleaning up alone gains is not owed to low rank.
    Raises NotFasterError on request.
    """
    if not plan.changed:
        if benchmark.require:
            raise NotFasterError("no layer gains, so the result is not faster; nothing was written.")
        return None, "not measured: no layer changed"
    if not benchmark.run:
        return None, "not measured: --no-bench"
    from trp_export import bench

    cleaned = stage.scratch / "cleaned.onnx"
    save_model(finish(ir.load(files.dense))[0], cleaned)
    shapes = {name: tuple(size or 1 for size in shape) for name, shape in network.inputs.items()}
    try:
        comparison = bench.compare(
            [files.original, files.result, cleaned],
            threads=benchmark.threads,
            budget_s=benchmark.budget_s,
            shapes=shapes,
            progress=partial(progress, "measure"),
        )
    except (LoadError, UnsupportedError, OptionError) as error:
        if benchmark.require:
            raise
        return None, f"not measured: {str(error).replace(str(files.original), files.original.name)}"
    original, result, dense = comparison.measurements
    for reference, what in ((original, "the original"), (dense, "the original cleaned up without low rank")):
        ratio = bench.ratio(reference, result)
        if benchmark.require and ratio.verdict != "faster":
            raise NotFasterError(f"the result is not faster than {what}: {ratio}; nothing was written.")
    return comparison, None


def whole_story(latency: Comparison | None) -> str | None:
    """Where cleaning up alone changes the speed, how much of the gain is low rank's."""
    if latency is None:
        return None
    from trp_export import bench

    original, result, dense = latency.measurements
    alone = bench.ratio(original, dense)
    if alone.verdict == "no difference":
        return None
    return (
        f"cleaning up without low rank makes the original {alone} as fast; low rank adds {bench.ratio(dense, result)}"
    )
