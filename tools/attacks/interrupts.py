"""Signals at random moments: Ctrl-C while a command starts and while it works, and SIGKILL."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from attempt import Attempt, Call, Ended, is_too_early
from kit import EXPORT, TRAIN, Kit

PROGRAMS = {
    "trp-export": ("base.onnx", *EXPORT, "-o", "o.onnx"),
    "trp-bench": ("base.onnx", "--budget", "5", "--processes", "4"),
    "trp-bundle": ("verify", "bundle"),
    "trp-train": (*TRAIN, "-o", "new"),
    "trp-search": ("--arch", "resnet20", "--data", "npz:data", "-o", "s.json"),
}
INTERRUPTS_EACH, STOPS, KILLS = 12, 16, 24


def attempts(kit: Kit) -> Iterator[Attempt]:
    """The moments are always the same; what they meet depends on the machine."""
    rng = np.random.default_rng(0)
    for program in PROGRAMS:
        for delay in (*rng.uniform(0, 0.02, INTERRUPTS_EACH // 2), *rng.uniform(0, 0.3, INTERRUPTS_EACH // 2)):
            yield Attempt(
                "Ctrl-C while starting", f"{program} after {delay:.4f} s", partial(_start, kit, program, delay)
            )
    for delay in rng.uniform(0.3, 6, STOPS):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[: 1 + int(delay * 100) % 3]:
            yield Attempt("stopped exports", f"{number.name} after {delay:.2f} s", partial(_stop, kit, number, delay))
    for index, delay in enumerate(rng.uniform(0.5, 7, KILLS)):
        more = ((), ("--report", "r.html"), ("--calib", "good.npz"))[index % 3]
        yield Attempt("killed exports", f"after {delay:.2f} s {' '.join(more)}", partial(_kill, kit, delay, more))


def _start(kit: Kit, program: str, delay: float, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "bundle", "data")
    codes = (0, 2, 3, 130, -signal.SIGINT)
    return Call(program, PROGRAMS[program], codes=codes, signal=signal.SIGINT, delay=delay, check=_one_line)


def _stop(kit: Kit, number: signal.Signals, delay: float, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    arguments = ["base.onnx", *EXPORT, "-o", "o.onnx", "--report", "r.html"]
    return Call("trp-export", arguments, codes=(0, 130, -number), signal=number, delay=delay, check=_one_line)


def _one_line(ended: Ended) -> str | None:
    """The signal may come before Python can handle any, or after the command has ended."""
    lines = ended.err.splitlines()
    if ended.code == 130 and len(lines) != 1:
        return f"exit 130 with {len(lines)} lines: {ended.err[-300:]!r}"
    wordy = ended.code < 0 and not is_too_early(ended) and lines and not lines[0].startswith("error: ")
    return f"ended by the signal with words: {ended.err[-300:]!r}" if wordy else None


def _kill(kit: Kit, delay: float, more: tuple[str, ...], folder: Path) -> Call:
    kit.copy_beside_old_outputs(folder)
    return Call(
        "trp-export",
        ["base.onnx", *EXPORT, *more, "-o", "o.onnx"],
        codes=(0, -signal.SIGKILL),
        signal=signal.SIGKILL,
        delay=delay,
        writes=("o.*", "r.html", ".trp-export.*", "scratch", "*"),
        check=_old_or_new,
    )


def _old_or_new(ended: Ended) -> str | None:
    """Whole files, all of one export. The hidden folder that stays is swept by a later run."""
    old = {name: (ended.folder / name).read_bytes() == f"old {name}".encode() for name in ("o.onnx", "o.json")}
    if len(set(old.values())) > 1:
        return f"mixed outputs: {old}"
    if not old["o.onnx"]:
        onnx.checker.check_model(onnx.load(ended.folder / "o.onnx"))
    return None
