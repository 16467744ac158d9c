"""onnxsim where it can work: constants folded, dead ends cut. Weights stay outside, so size is no limit."""

from __future__ import annotations

import onnx_ir as ir

from trp_export.graph.skeleton import fill_skeleton, make_skeleton

_OWN_DOMAINS = ("", "ai.onnx")


def simplify(model: ir.Model) -> tuple[ir.Model, str | None]:
    """The simplified model and None, or the model as it was and the reason why."""
    foreign = sorted({node.domain for node in model.graph.all_nodes()} - set(_OWN_DOMAINS))
    if foreign:
        return model, f"operators of {foreign[0]} are unknown to onnxsim"
    import onnxsim

    skeleton, weights = make_skeleton(model)
    try:
        simplified, sound = onnxsim.simplify(skeleton, check_n=0)
    except Exception as error:  # onnxsim raises whatever its C++ parts raise.
        return model, f"onnxsim failed: {str(error).splitlines()[0][:120] if str(error) else type(error).__name__}"
    if not sound:
        return model, "onnxsim reported an unsound result"
    return fill_skeleton(simplified, weights), None
