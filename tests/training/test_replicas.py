"""Two gloo processes on a CPU train as one does, and stay bit-identical."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from training.checkpoint import load_network
from training.replicas import share_out

HERE = Path(__file__).parent


def train(data: Path, output: Path, processes: int) -> dict[str, torch.Tensor]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    start = [sys.executable, *(launcher if processes > 1 else []), "-m", "training.cli"]
    options = ["--arch", "tiny_networks:tiny_without_norm", "--input-shape", "1,3,8,8", "--data", f"npz:{data}"]
    options += ["--macs", "1.6", "--period", "3", "--nuclear", "0.01", "--epochs", "2", "--batch", "16"]
    options += ["--validation", "64", "--device", "cpu", "--keep", "last", "-o", str(output)]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *options], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_network(output / "model.pt", "tiny_networks:tiny_without_norm", ()).module.state_dict()


def test_two_processes_equal_one(stripes: Path, tmp_path: Path) -> None:
    one, two = train(stripes, tmp_path / "one", 1), train(stripes, tmp_path / "two", 2)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)


def test_work_is_shared_out_dearest_first() -> None:
    assert share_out([3.0, 1.0, 2.0]) == (0, 0, 0)
