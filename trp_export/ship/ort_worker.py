"""Run as a program with MODEL FOLDER TARGET: writes model.ort and required_operators.config, prints a verdict as JSON.

See ort.py: onnxruntime's tools print, log and call sys.exit, so they run in a process of their own.
"""

import json
import logging
import os
import re
import sys
from pathlib import Path


def main() -> None:
    model, folder, target = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # Keep what the tools print out of the answer.
    _convert(model, folder, {"arm": "arm", "x86": "amd64"}[target])
    json.dump({"usability": _usability(model)}, answer)
    answer.close()


def _convert(model: Path, folder: Path, platform: str) -> None:
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    convert_onnx_models_to_ort(model, folder, [OptimizationStyle.Fixed], target_platform=platform)
    (folder / f"{model.stem}.ort").replace(folder / "model.ort")
    config = folder / f"{model.stem}.required_operators.config"
    lines = config.read_text(encoding="utf-8").splitlines()
    # The comments name a local folder.
    kept = "\n".join(line for line in lines if line and not line.startswith("#"))
    (folder / "required_operators.config").write_text(kept + "\n", encoding="utf-8")
    config.unlink()


def _usability(model: Path) -> str:
    """The verdict of onnxruntime's check for mobile use on each provider, in one line."""
    from onnxruntime.tools.mobile_helpers import usability_checker

    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = logging.getLogger("usability")
    logger.handlers, logger.propagate = [Keep()], False
    logger.setLevel(logging.INFO)
    try:
        usability_checker.analyze_model(model, logger=logger)
    except Exception as error:  # The tool raises errors of any kind.
        return f"the check failed ({type(error).__name__})"
    verdicts: dict[str, str] = {}
    for line in messages:
        if match := re.match(r"Model should perform well with (.+?) (as is|if modified.*): (\w+)$", line):
            verdict = match[3].lower() + ("" if match[2] == "as is" else " with fixed input shapes")
            verdicts[match[1]] = f"{verdicts[match[1]]}, {verdict}" if match[1] in verdicts else verdict
    return "; ".join(f"{provider}: {verdict}" for provider, verdict in verdicts.items()) or "no verdict"


if __name__ == "__main__":
    main()
