"""How often trp-bench is right: two copies of one file, and a difference of 5 % made on purpose.

    python tools/bench_verdicts.py [--trials 20] [--budget 20] [--threads 1]

The verdict on copies must be `no difference` in at least 19 of 20 trials. The slower model has 21 equal convolutions
instead of 20, and must be found slower as often. Prints each trial and both results; exit code 1 if one fails.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trp_export.bench import Ratio, compare, ratio

CHANNELS, SIZE, LAYERS = 64, 56, 20


def save_stack(path: Path, layers: int) -> Path:
    """`layers` equal convolutions in a row: 0.116 GMAC each."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(layers):
        kernel = rng.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / np.float32(np.sqrt(9 * CHANNELS))
        weights.append(numpy_helper.from_array(kernel, f"w{i}"))
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], pads=[1] * 4, name=f"conv{i}"))
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CHANNELS, SIZE, SIZE])
        for name in ("x0", f"x{layers}")
    ]
    graph = helper.make_graph(nodes, "stack", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@click.command()
@click.option("--trials", default=20, show_default=True)
@click.option("--budget", default=20.0, show_default=True, help="Seconds of each comparison.")
@click.option("--threads", default=1, show_default=True)
def main(trials: int, budget: float, threads: int) -> None:
    """How often trp-bench is right."""
    same: list[Ratio] = []
    slower: list[Ratio] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, two = save_stack(folder / "a.onnx", LAYERS), save_stack(folder / "b.onnx", LAYERS)
        more = save_stack(folder / "more.onnx", LAYERS + 1)
        for trial in range(trials):
            for models, results in (((one, two), same), ((one, more), slower)):
                found = compare(models, threads=threads, budget_s=budget)
                results.append(ratio(*found.measurements))
                notes = f"  ({'; '.join(found.noise)})" if found.noise else ""
                print(f"{trial + 1:3} {models[1].name:9} {results[-1]} {results[-1].verdict}{notes}", flush=True)
    right = sum(one.verdict == "no difference" for one in same)
    caught = sum(one.verdict == "slower" for one in slower)
    environment = found.environment
    print(f"copies: no difference in {right} of {len(same)}; 5 % slower: found in {caught} of {len(slower)}")
    where = f"{environment.cpu}, onnxruntime {environment.onnxruntime}"
    print(f"budget {budget:g} s, {threads} thread{'s' if threads > 1 else ''}, {where}")
    sys.exit(int(right < 0.95 * len(same) or caught < 0.95 * len(slower)))


if __name__ == "__main__":
    main()
