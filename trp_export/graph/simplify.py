"""onnxsim where it can work: constants folded, dead ends cut. Weights stay outside, so size is no limit.

It runs in a process of its own: importing it takes in torch where that is installed, and a crash or a hang
of native code on an unusual graph must not be ours.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import onnx_ir as ir

from trp_export.graph.skeleton import fill_skeleton, make_skeleton

_OWN_DOMAINS = ("", "ai.onnx")
_WORKER = Path(__file__).with_name("simplify_worker.py")
_TIMEOUT_S = 300


def simplify(model: ir.Model) -> tuple[ir.Model, str | None]:
    """The simplified model and None, or the model as it was and the reason why."""
    foreign = sorted({node.domain for node in model.graph.all_nodes()} - set(_OWN_DOMAINS))
    if foreign:
        return model, f"operators of {foreign[0]} are unknown to onnxsim"
    skeleton, weights = make_skeleton(model)
    try:
        done = subprocess.run(
            [sys.executable, str(_WORKER)], input=skeleton.SerializeToString(), capture_output=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return model, f"onnxsim took longer than {_TIMEOUT_S} s"
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return model, f"onnxsim failed: {last[0][:120] if last else f'exit status {done.returncode}'}"
    return fill_skeleton(onnx.load_model_from_string(done.stdout), weights), None
