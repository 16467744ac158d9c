"""What the worker of trp_export/graph/simplify.py imports, without torch as there."""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]

import onnx  # noqa: E402, F401
import onnxsim  # noqa: E402, F401

import trp_export.graph.simplify_worker  # noqa: E402, F401
