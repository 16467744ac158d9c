"""Convert a model to ORT format, for apps that build onnxruntime with only the operators they need.

onnxruntime's own tools convert, in a separate process: they print and log freely, and their native code can crash or
hang.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx

from trp_export.errors import first_line
from trp_export.graph.precision_of import precision_of
from trp_export.options import Target
from trp_export.runtime.distance import distance
from trp_export.runtime.sessions import CannotRunError, noise, run
from trp_export.ship.manifest import Ort
from trp_export.system.privacy import without_paths
from trp_export.system.processes import ending_with_us

MODEL, OPERATORS = "model.ort", "required_operators.config"
_WORKER = Path(__file__).with_name("ort_worker.py")
_TIMEOUT_S = 300
# Relative L2 between two layouts of one model. In int8, a different rounding moves a value by a whole step.
_TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "int8": 5e-2}


def convert(
    model: Path, target: Target, shapes: Mapping[str, Sequence[int | None]]
) -> tuple[Ort | None, tuple[str, ...]]:
    """Write `model.ort` and the list of its operators beside a model. Returns what was written, or None, and notes.

    `shapes` are the shapes of the inputs by name. Without a result, the first note gives the reason.
    """
    try:
        done = subprocess.run(
            ending_with_us([sys.executable, str(_WORKER), model.name, ".", target]),
            cwd=model.parent,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return _refuse(model, f"onnxruntime's converter took longer than {_TIMEOUT_S} s")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return _refuse(model, lines[-1][:300] if lines else f"exit status {done.returncode}")
    try:
        inputs = noise(model, shapes)
        apart = distance(run(model, [inputs]), run(model.with_name(MODEL), [inputs]))
    except CannotRunError as error:
        return _refuse(model, first_line(error))
    if not apart.relative_l2 <= _TOLERANCE[precision_of(onnx.load(model, load_external_data=False))]:
        return _refuse(model, f"its outputs differ from the ONNX model's by {apart.relative_l2:.2g} (relative L2)")
    usability = json.loads(done.stdout)["usability"]
    outputs = f"within {apart.relative_l2:.1e} relative L2 of" if apart.relative_l2 else "equal to"
    ort = Ort(MODEL, OPERATORS, target, version("onnxruntime"), apart.max_abs, apart.relative_l2, usability)
    return ort, (
        f"{MODEL} is for {target} and onnxruntime {ort.onnxruntime}: other versions may not open it, and it is slower "
        f"on other processors; its outputs are {outputs} those of {model.name}",
        f"onnxruntime's check for mobile use: {usability}",
    )


def _refuse(model: Path, reason: str) -> tuple[None, tuple[str, ...]]:
    for name in (MODEL, OPERATORS, f"{model.stem}.ort", f"{model.stem}.required_operators.config"):
        model.with_name(name).unlink(missing_ok=True)
    return None, (f"no ORT format: {without_paths(reason)}; {model.name} is complete without it",)
