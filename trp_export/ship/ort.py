"""The model once more in ORT format, for apps that build onnxruntime with the operators they need and no more.

onnxruntime's own tools do it, in a process of their own: they print and log as they like, and a crash or a hang of
native code must not be ours.
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
from trp_export.options import Target
from trp_export.runtime.distance import distance
from trp_export.runtime.sessions import CannotRunError, noise, run
from trp_export.ship.bundle import precision_of
from trp_export.ship.manifest import Ort
from trp_export.system.privacy import without_paths

MODEL, OPERATORS = "model.ort", "required_operators.config"
_WORKER = Path(__file__).with_name("ort_worker.py")
_TIMEOUT_S = 300
# Relative L2 between two layouts of one model. In int8, rounding the other way moves a value by a whole step.
_TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "int8": 5e-2}


def convert(
    model: Path, target: Target, shapes: Mapping[str, Sequence[int | None]]
) -> tuple[Ort | None, tuple[str, ...]]:
    """Write `model.ort` and the operators it needs beside a model; None and the reason where that cannot be done."""
    try:
        done = subprocess.run(
            [sys.executable, str(_WORKER), model.name, ".", target],
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
    made = model.with_name(MODEL)
    try:
        inputs = noise(model, shapes)
        apart = distance(run(model, [inputs]), run(made, [inputs]))
    except CannotRunError as error:
        return _refuse(model, first_line(error))
    if not apart.relative_l2 <= _TOLERANCE[precision_of(onnx.load(model, load_external_data=False))]:
        return _refuse(model, f"loaded back, its outputs are {apart.relative_l2:.2g} apart (relative L2)")
    usability = json.loads(done.stdout)["usability"]
    near = f"within {apart.relative_l2:.1e} relative L2 of" if apart.relative_l2 else "equal to"
    ort = Ort(MODEL, OPERATORS, target, version("onnxruntime"), apart.max_abs, apart.relative_l2, usability)
    return ort, (
        f"{MODEL} is for {target} and onnxruntime {ort.onnxruntime}: other versions may not open it, and on another "
        f"kind of processor it is slower; its outputs are {near} those of {model.name}",
        f"onnxruntime's check for mobile use: {usability}",
    )


def _refuse(model: Path, reason: str) -> tuple[None, tuple[str, ...]]:
    for name in (MODEL, OPERATORS, f"{model.stem}.ort", f"{model.stem}.required_operators.config"):
        model.with_name(name).unlink(missing_ok=True)
    return None, (f"not in ORT format: {without_paths(reason)}; {model.name} is as it should be",)
