"""Put factors into a network that is only walked, to see what they do."""

from __future__ import annotations

import onnx_ir as ir

from trp_export.calibration.memory import has_room_for_moments
from trp_export.graph.rewrite import rewrite_layer, set_product
from trp_export.graph.sites import LocatedSite
from trp_export.lowrank.branches import Pairs
from trp_export.planning.plan import Change


def stand_in(model: ir.Model, change: Change, place: LocatedSite, pairs: Pairs) -> None:
    """Put the product of a layer's factors in the place of its kernel, or the pairs where that is too large."""
    if has_room_for_moments(change.site):
        set_product(change, place, pairs)
    else:
        rewrite_layer(model, change, place, pairs)
