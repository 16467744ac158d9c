"""Where the whole model cannot be run: each layer, cut out of both graphs and run alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from trp_export.errors import VerifyError
from trp_export.graph.model_files import save_model
from trp_export.graph.shapes import input_shapes
from trp_export.graph.sites import find_sites
from trp_export.lowrank.site import Site
from trp_export.planning.plan import Plan
from trp_export.runtime.distance import Distance
from trp_export.runtime.sessions import CannotRunError, noise, run
from trp_export.verify.compare import require_equal

# Extents that the file leaves open. Any size will do: a pair is exact at every size.
_EXTENT = 24


def verify_layers(products: Path, result: Path, plan: Plan, tolerance: float) -> Distance:
    """The largest distance over all layers, kept ones too, since batch norm may have been folded into them.

    Raises VerifyError where one is wrong or cannot be cut out.
    """
    worst = Distance(0.0, 0.0)
    sites = {decision.site.name: decision.site for decision in plan.decisions}
    there = _value_names(ir.load(result))
    for place in find_sites(ir.load(products), {}):
        site = sites.get(place.site.name, place.site)
        for node in place.nodes if site.uses else ():
            start, end = _ends(node, there)
            apart = _compare(products, result, start, end, site, tolerance)
            worst = Distance(max(worst.relative_l2, apart.relative_l2), max(worst.max_abs, apart.max_abs))
    return worst


def _value_names(model: ir.Model) -> set[str]:
    return {value.name or "" for node in model.graph.all_nodes() for value in (*node.inputs, *node.outputs) if value}


def _ends(node: ir.Node, there: set[str]) -> tuple[str, str]:
    """The values around a layer that both graphs have: past the batch norm where that was folded."""
    data, output = node.inputs[0], node.outputs[0]
    while output.name not in there and len(output.consumers()) == 1:
        output = output.consumers()[0].outputs[0]
    if data is None or data.name not in there or output.name not in there:
        raise VerifyError(f"{node.name} cannot be found in the result; nothing was written. Leave it out with --skip.")
    return data.name or "", output.name or ""


def _compare(products: Path, result: Path, start: str, end: str, site: Site, tolerance: float) -> Distance:
    with tempfile.TemporaryDirectory() as folder:
        answers = []
        inputs = None
        for name, whole in (("products", products), ("result", result)):
            part = Path(folder, f"{name}.onnx")
            try:
                save_model(_cut_out(ir.load(whole), start, end, site), part)
                if inputs is None:
                    inputs = noise(part, input_shapes(ir.load(part)))
                answers.append(run(part, [inputs]))
            except (CannotRunError, ValueError) as error:  # ValueError: the layer lies in the body of an If or a Loop.
                raise VerifyError(f"{site.name} cannot be verified: {error}. Leave it out with --skip.") from error
        return require_equal(answers[0], answers[1], tolerance, f"layer {site.name}")


def _cut_out(model: ir.Model, start: str, end: str, site: Site) -> ir.Model:
    graph = ir.convenience.extract(model.graph, [start], [end])
    data = graph.inputs[0]
    channels, kernel = site.kernel_shape[1] * site.group, site.kernel_shape[2:]
    use = site.uses[0]
    extents = [min(extent, _EXTENT) + size for extent, size in zip(use.in_extents, kernel, strict=False)]
    data.shape = ir.Shape([1, channels, *extents] if kernel else [2, channels])
    data.type = data.type or ir.TensorType(ir.DataType.FLOAT)
    for value in graph.outputs:
        value.shape = None
        value.type = value.type or data.type
    return ir.Model(graph, ir_version=model.ir_version)
