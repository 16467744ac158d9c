"""Signals during a short training, which is then resumed: its weights are those of the run that nothing stopped."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from attempt import Attempt, Call, Ended, run
from kit import TRAIN, Kit, make

# Sums depend on the number of threads.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
THREE_EPOCHS = (*TRAIN[:-1], "3")
MOMENTS, LONGEST_S = 6, 8


def attempts(kit: Kit) -> Iterator[Attempt]:
    """Each signal at some moments after the folder of the run was made."""
    make(Call("trp-train", [*THREE_EPOCHS, "-o", "whole"], environment=ONE_THREAD), kit)
    rng = np.random.default_rng(0)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        for delay in rng.uniform(0, LONGEST_S, MOMENTS):
            yield Attempt(
                "stopped trainings", f"{number.name} after {delay:.2f} s", partial(_resume, kit, number, delay)
            )


def _resume(kit: Kit, number: signal.Signals, delay: float, folder: Path) -> Call:
    """Stop a training, and say how it goes on: it begins again where nothing was saved."""
    kit.copy(folder, "data")
    training = Call(
        "trp-train", [*THREE_EPOCHS, "-o", "run"], environment=ONE_THREAD, signal=number, after="work/run", delay=delay
    )
    stopped = run(training, folder.parent)
    if number is signal.SIGKILL:
        for name in ("home", "tmp"):
            shutil.rmtree(folder.parent / name)
            (folder.parent / name).mkdir()
    goes_on = ["--resume"] if (folder / "run" / "last.pt").exists() else THREE_EPOCHS
    return Call(
        "trp-train",
        [*goes_on, "-o", "run"],
        codes=(0,),
        writes=("run/*",),
        environment=ONE_THREAD,
        check=partial(_same_weights, kit, stopped, -number),
    )


def _same_weights(kit: Kit, stopped: Ended, by_signal: int, ended: Ended) -> str | None:
    # Once the last epoch is saved, the signal may end the interpreter while that ends by itself.
    may_die = by_signal == -signal.SIGKILL or "epoch 3" in stopped.err
    if stopped.code not in (0, by_signal if may_die else 130) or "Traceback" in stopped.err:
        return f"was stopped with exit {stopped.code}: {stopped.err[-300:]!r}"
    hidden = [path.name for path in (ended.folder / "run").glob(".*")]
    if hidden and by_signal != -signal.SIGKILL:
        return f"left {', '.join(hidden)}"
    weights, whole = (
        torch.load(folder / "model.pt", weights_only=True)["state_dict"]
        for folder in (ended.folder / "run", kit["whole"])
    )
    unlike = [name for name, tensor in whole.items() if not torch.equal(tensor, weights[name])]
    return f"other weights than without a stop: {', '.join(unlike[:3])}" if unlike else None
