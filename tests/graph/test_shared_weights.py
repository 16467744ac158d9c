"""A weight that several convs read becomes factors once, whatever its uses; multiply-adds count every execution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from models import relative_l2, run
from shared import CHANNELS, USES, USES_AND_LOOP, SharedUse, shared_images, shared_network

from trp_export.graph.cost import count_macs, count_params
from trp_export.graph.prepare import remove_unused
from trp_export.graph.rewrite import rewrite
from trp_export.graph.sites import find_sites
from trp_export.lowrank.branches import factorise_branches
from trp_export.lowrank.schemes import CHANNEL_WISE, SPATIAL_WISE, Branch, Scheme
from trp_export.planning.plan import Decision, Plan
from trp_export.runtime.measured_shapes import measure_shapes


def runs_of(model: ir.Model) -> dict[str, tuple]:
    """The shapes of a real run, from which the rounds of a Loop are known."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(ir.serde.serialize_model(model), file)
        return measure_shapes(file, {"x": (1, CHANNELS, 12, 12)})


def positions(use: SharedUse) -> int:
    """Output positions of all executions of a use, by the formula of the conv."""
    total, side = 0, 12 // use.pool
    for _ in range(use.trips or 1):
        side = (side + 2 * use.pad - 3) // use.stride + 1
        total += side**2
    return total


@settings(max_examples=15)
@given(
    uses=st.one_of(USES, USES_AND_LOOP),
    scheme=st.sampled_from([CHANNEL_WISE, SPATIAL_WISE]),
    rank=st.integers(1, 9),
)
def test_factors_are_made_once_and_used_everywhere(uses: Sequence[SharedUse], scheme: Scheme, rank: int) -> None:
    model, x = shared_network(uses), shared_images(2)
    (place,) = find_sites(model, runs_of(model))
    assert place.site.refusal is None
    assert place.site.macs == count_macs(model, runs_of(model)) == 81 * sum(map(positions, uses))
    full = place.site.full_rank(scheme)
    branch = Branch(scheme, min(rank, full))
    plan = Plan((Decision(place.site, (branch,), reason="by hand"),), "by hand")
    wanted = run(ir.serde.serialize_model(model), {"x": x})[0]
    factors = {place.site.name: factorise_branches(place.kernel(), (branch,), 1)}
    rewrite(model, plan, [place], factors)
    remove_unused(model)
    assert count_params(model) == CHANNELS + branch.rank * place.site.params_per_rank(scheme)
    assert count_macs(model, runs_of(model)) == branch.rank * place.site.macs_per_rank(scheme)
    if branch.rank == full:
        assert relative_l2(wanted, run(ir.serde.serialize_model(model), {"x": x})[0]) < 1e-5
