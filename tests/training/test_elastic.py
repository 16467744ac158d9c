"""torchrun starts a run again after one of its processes was killed; it ends with the weights of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_streamed import folder

from training.checkpoint import TrainedNetwork, load_network

__all__ = ["folder"]  # A fixture.
HERE = Path(__file__).parent
NETWORK = "dying_networks:dies_once"


def launch(
    folder: Path, output: Path, processes: int, *more: object, marker: Path | None = None, restarts: int = 2
) -> None:
    """Run trp-train under torchrun with gloo. `marker` is where a death is noted, which without restarts is the end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--max-restarts", str(restarts), f"--nproc-per-node={processes}", "-m", "training.cli", *map(str, more)]
    command += ["--workers", "1", "--device", "cpu", "-o", str(output)]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "OMP_NUM_THREADS": "1"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    environment |= {"DIES_AT": str(marker)} if marker else {}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode == 0) == (restarts > 0), done.stderr


def options(folder: Path) -> list[str]:
    given = ["--arch", NETWORK, "--shape", "1,3,8,8", "--data", f"imagefolder:{folder}", "--macs", "1.5"]
    given += ["--period", "2", "--epochs", "3", "--batch", "4", "--validation", "6", "--lr", "0.02", "--keep", "last"]
    return [*given, "--save-every", "1steps"]


def load(output: Path) -> TrainedNetwork:
    return load_network(output / "model.pt", NETWORK)


def assert_same(first: TrainedNetwork, second: TrainedNetwork) -> None:
    for name, value in first.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[name], value), name


@pytest.mark.slow
def test_a_run_goes_on_after_a_process_was_killed_in_mid_epoch(folder: Path, tmp_path: Path) -> None:
    launch(folder, tmp_path / "whole", 2, *options(folder))
    marker = tmp_path / "died"
    launch(folder, tmp_path / "run", 2, *options(folder), marker=marker)
    assert marker.exists(), "no process was killed"
    assert_same(load(tmp_path / "whole"), load(tmp_path / "run"))


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_processes(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "died"
    marker.mkdir()  # It dies at every start.
    launch(folder, tmp_path / "run", 1, *options(folder), marker=marker, restarts=0)
    assert (tmp_path / "run" / "last.pt").exists()
    launch(folder, tmp_path / "run", 2, "--resume", "--arch", NETWORK)
    launch(folder, tmp_path / "whole", 1, *options(folder))
    one, two = load(tmp_path / "whole"), load(tmp_path / "run")
    for name, value in one.module.state_dict().items():
        torch.testing.assert_close(two.module.state_dict()[name], value, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_job_is_saved(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    given = [*options(folder), "--epochs", "400", "--workers", "2", "--device", "cpu", "-o", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "training.cli", *given],
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "run" / "last.pt").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline, "nothing was saved"
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "stopped and saved; the same command with --resume goes on."
    assert "Traceback" not in errors
