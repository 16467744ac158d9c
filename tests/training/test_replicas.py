"""Two gloo processes on a CPU train as one does, and stay bit-identical."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.checkpoint import TrainedNetwork, load_network
from training.cli import main
from training.replicas import share_out

HERE = Path(__file__).parent


def options(data: Path, output: Path, method: list[str]) -> list[str]:
    network = ["--arch", "tiny_networks:tiny_without_norm", "--shape", "1,3,8,8", "--data", f"npz:{data}"]
    how = ["--epochs", "2", "--batch", "16", "--validation", "64", "--device", "cpu", "--keep", "last"]
    return [*network, *method, *how, "-o", str(output)]


def trained_here(data: Path, output: Path, method: list[str], monkeypatch: pytest.MonkeyPatch) -> TrainedNetwork:
    """The network of one process: this one."""
    monkeypatch.setattr(sys, "argv", ["trp-train", *options(data, output, method)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    return load_network(output / "model.pt", "tiny_networks:tiny_without_norm")


# By address, since the name of this machine need not resolve.
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
LAUNCHER += ["--nproc-per-node=2"]


def in_two_processes(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "OMP_NUM_THREADS": "1"}
    environment["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    start = [*LAUNCHER, *map(str, arguments)]
    return subprocess.run(start, env=environment, capture_output=True, text=True, check=False, timeout=240)


def trained_by_two(data: Path, output: Path, method: list[str]) -> TrainedNetwork:
    for _ in range(2):
        shutil.rmtree(output, ignore_errors=True)
        done = in_two_processes("-m", "training.cli", *options(data, output, method))
        # torch now and then aborts while gloo's threads end.
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    return load_network(output / "model.pt", "tiny_networks:tiny_without_norm")


LOW_RANK = ["--energy", "0.8", "--period", "3", "--nuclear", "0.01", "--ramp", "none", "--factors", "0"]
FEWER_CHANNELS = ["--method", "csgd", "--widths", "0.5", "--strength", "0.1"]
GATES = ["--method", "dagger", "--macs", "2", "--gate-steps", "10"]


@pytest.mark.parametrize(
    "method", [LOW_RANK, *(pytest.param(one, marks=pytest.mark.slow) for one in (FEWER_CHANNELS, GATES))]
)
def test_two_processes_equal_one(
    method: list[str], stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trained_here(stripes, tmp_path / "one", method, monkeypatch)
    two = trained_by_two(stripes, tmp_path / "two", method)
    if method is LOW_RANK:
        assert one.plan is not None
        assert any(layer["rank"] for layer in one.plan["layers"])
    assert two.plan == one.plan
    for name, value in one.module.state_dict().items():
        torch.testing.assert_close(two.module.state_dict()[name], value, rtol=0, atol=1e-5)


LEAVING = """
import sys
import torch, torch.distributed as dist
from torch import nn
from training.replicas import world
from training.validation import accuracy
from trp_export.errors import LoadError, StoppedEarly, TrpError

dist.init_process_group("gloo")
rank = world()[0]

def batches(fails):
    if fails:
        raise LoadError("the images are gone.")
    yield torch.eye(2), torch.arange(2)

def attempt(fails, stops):
    try:
        return accuracy(nn.Identity(), batches(fails and rank == 1), lambda: stops and rank == 1)
    except (TrpError, StoppedEarly) as error:
        return type(error).__name__

# In one write: both processes share the pipe.
sys.stdout.write(f"{attempt(False, False)} {attempt(False, True)} {attempt(True, False)}\\n")
dist.destroy_process_group()
"""


def test_two_processes_leave_the_validation_together() -> None:
    done = in_two_processes("--no-python", sys.executable, "-c", LEAVING)
    assert sorted(done.stdout.splitlines()) == ["1.0 StoppedEarly LoadError", "1.0 StoppedEarly TrpError"], done.stderr


def test_share_out_assigns_the_largest_cost_first() -> None:
    assert share_out([3.0, 1.0, 2.0]) == (0, 0, 0)
