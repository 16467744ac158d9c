"""A machine in a bad state: no home, no place for temporary files, closed streams, odd variables, few descriptors."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from attempt import Attempt, Call, Ended
from kit import EXPORT, TRAIN, Kit

Setup = Callable[[], object]
SHADOWED = ("numpy", "onnx", "onnxruntime", "onnxsim", "torch", "scipy", "signal", "json", "random", "simplify_worker")


def attempts(kit: Kit) -> Iterator[Attempt]:
    """Each state, with an export and where it matters with other commands."""
    for name, variables in _variables().items():
        yield Attempt("surroundings", name, partial(_with_variables, kit, variables))
    for name, variables in _variables_of_training().items():
        yield Attempt("surroundings", f"trp-train with {name}", partial(_training, kit, variables))
    for name, setup in _setups().items():
        for program in ("trp-export", "trp-bench", "trp-bundle"):
            yield Attempt("surroundings", f"{program} with {name}", partial(_with_setup, kit, program, setup))
    for name, content in {
        "LaTeX": b"text.usetex: True\n",
        "nonsense": b"\xff\x00[",
        "a backend": b"backend: x\n",
    }.items():
        yield Attempt("surroundings", f"a matplotlibrc with {name}", partial(_styled, kit, content))
    for name in SHADOWED:
        yield Attempt("surroundings", f"a file {name}.py in the current folder", partial(_shadowed, kit, name))
    for name, seconds in {"1901": -(2**31), "1970": 0, "2106": 2**32, "2446": 15 * 10**9}.items():
        yield Attempt("surroundings", f"files of the year {name}", partial(_dated, kit, seconds))
    for place in ("/proc/o.onnx", "/sys/o.onnx", "/dev/null/o.onnx", "/proc/self/fd/1"):
        yield Attempt("surroundings", f"-o {place}", partial(_output, kit, place))


def _variables() -> dict[str, dict[str, str | None]]:
    return {
        "no HOME": {"HOME": None, "XDG_CACHE_HOME": None},
        "an empty HOME": {"HOME": "", "XDG_CACHE_HOME": ""},
        "a HOME that does not exist": {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent/cache"},
        "a HOME that is a file": {"HOME": "/etc/hostname", "XDG_CACHE_HOME": "/etc/hostname"},
        "a TMPDIR that does not exist": {"TMPDIR": "/nonexistent"},
        "a TMPDIR that is a file": {"TMPDIR": "/etc/hostname"},
        "a TMPDIR that cannot be written": {"TMPDIR": "/proc"},
        "no TMPDIR": {"TMPDIR": None},
        "a locale of ASCII": {
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONIOENCODING": "ascii",
            "PYTHONCOERCECLOCALE": "0",
        },
        "a locale that does not exist": {"LC_ALL": "xx_YY.UTF-99"},
        "a terminal of no width": {"COLUMNS": "0", "LINES": "0"},
        "a terminal of negative width": {"COLUMNS": "-5"},
        "a terminal of huge width": {"COLUMNS": "1000000000"},
        "a terminal of odd width": {"COLUMNS": "abc", "TERM": "\x1b]0;x\x07"},
        "threads that are no number": {"OMP_NUM_THREADS": "abc", "OPENBLAS_NUM_THREADS": "-1"},
        "telemetry asked for": {"ORT_DISABLE_TELEMETRY": "0"},
        "odd variables of ours": {"TRP_TRACEBACK": "\x1b[2J", "TRP_FUZZ_SECONDS": "x"},
        "a completion without words": {"_TRP_EXPORT_COMPLETE": "bash_complete"},
        "a completion for no shell": {"_TRP_EXPORT_COMPLETE": "\x1b[2J"},
        "a TMPDIR with line ends": {"TMPDIR": "\n"},
        "a cache at a relative place": {"XDG_CACHE_HOME": "cache"},
        "an odd time of builds": {"SOURCE_DATE_EPOCH": "-99999999999999"},
    }


def _variables_of_training() -> dict[str, dict[str, str | None]]:
    return {
        "a WORLD_SIZE that is not a number": {"WORLD_SIZE": "abc"},
        "a WORLD_SIZE of 0": {"WORLD_SIZE": "0"},
        "a WORLD_SIZE without torchrun": {"WORLD_SIZE": "2"},
        "a RANK of control characters": {"RANK": "\x1b[2J"},
        "a LOCAL_WORLD_SIZE of 0": {"LOCAL_WORLD_SIZE": "0"},
        "restarts that are not a number": {"TORCHELASTIC_RESTART_COUNT": "1e9"},
        "a backend of matplotlib that does not exist": {"MPLBACKEND": "nonsense"},
        "settings of matplotlib that cannot be written": {"MPLCONFIGDIR": "/proc"},
        "no HOME": {"HOME": None, "XDG_CACHE_HOME": None},
        "a HOME that does not exist": {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent/cache"},
        "a TMPDIR that does not exist": {"TMPDIR": "/nonexistent"},
        "a locale of ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    }


def _training(kit: Kit, variables: dict[str, str | None], folder: Path) -> Call:
    kit.copy(folder, "data")
    return Call("trp-train", [*TRAIN, "-o", "run"], codes=(0, 2, 7), environment=variables, signal=0)


def _setups() -> dict[str, Setup]:
    """What runs in the process before it becomes the command."""
    return {
        "closed stdin": partial(os.close, 0),
        "closed stdout": partial(os.close, 1),
        "closed stderr": partial(os.close, 2),
        "all streams closed": partial(os.closerange, 0, 3),
        "a full stdout": partial(_to_device, 1, "/dev/full"),
        "a full stderr": partial(_to_device, 2, "/dev/full"),
        "a stdout that nobody reads": partial(_to_nobody, 1),
        "a stderr that nobody reads": partial(_to_nobody, 2),
        "a current folder that is gone": _leave_folder,
        "an umask of 777": partial(os.umask, 0o777),
        "20 descriptors": partial(resource.setrlimit, resource.RLIMIT_NOFILE, (20, 20)),
        "a small stack": partial(resource.setrlimit, resource.RLIMIT_STACK, (2**17, 2**17)),
        "few processes": partial(resource.setrlimit, resource.RLIMIT_NPROC, (1, 1)),
        "1 GB of address space": partial(resource.setrlimit, resource.RLIMIT_AS, (10**9, 10**9)),
    }


def _to_device(number: int, device: str) -> None:
    os.dup2(os.open(device, os.O_WRONLY), number)


def _to_nobody(number: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, number)


def _leave_folder() -> None:
    Path("gone").mkdir()
    os.chdir("gone")
    Path("../gone").rmdir()


COMMANDS = {
    "trp-export": ("{}/base.onnx", "--rank", "2", "--calib", "none", "--no-bench", "-o", "{}/o.onnx"),
    "trp-bench": ("{}/base.onnx", "--budget", "0.2", "--processes", "1"),
    "trp-bundle": ("verify", "{}/bundle"),
}


def _with_variables(kit: Kit, variables: dict[str, str | None], folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz")
    arguments = ["base.onnx", "--rank", "2", "--calib", "none", "--no-bench", "--calib", "good.npz", "-o", "o.onnx"]
    return Call("trp-export", arguments, codes=(0, 2, 7), environment=variables, signal=0)


def _with_setup(kit: Kit, program: str, setup: Setup, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "bundle")
    arguments = [part.format(folder) for part in COMMANDS[program]]
    return Call(
        program,
        arguments,
        codes=(0, 1, 2, 3, 7, 8),
        writes=("o.*",),
        setup=setup,
        signal=0,
        check=_explained,
        is_silent=isinstance(setup, partial) and setup.func in (_to_device, _to_nobody, os.close, os.closerange),
    )


def _explained(ended: Ended) -> str | None:
    """Exit 1 only where the machine has no room left, and says so."""
    return f"exit 1: {ended.err[-300:]!r}" if ended.code == 1 and "report it" in ended.err else None


def _shadowed(kit: Kit, name: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz")
    (folder / f"{name}.py").write_text("open('PWNED', 'w').write('x')\n")
    arguments = ["base.onnx", "--energy", "0.9", "--calib", "good.npz", "--budget", "0.2", "-o", "o.onnx"]
    return Call("trp-export", arguments, codes=(0,), signal=0, check=_not_run)


def _not_run(ended: Ended) -> str | None:
    return "code was run" if (ended.folder / "PWNED").exists() else None


def _styled(kit: Kit, content: bytes, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    (folder / "matplotlibrc").write_bytes(content)
    arguments = ["base.onnx", "--budget", "0.1", "--processes", "1", "--plot", "p.svg"]
    return Call("trp-bench", arguments, codes=(0, 2), signal=0)


def _dated(kit: Kit, seconds: int, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz", "bundle")
    for path in folder.rglob("*"):
        os.utime(path, (seconds, seconds))
    return Call("trp-export", ["base.onnx", *EXPORT, "--calib", "good.npz", "--bundle", "b"], codes=(0,))


def _output(kit: Kit, place: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    return Call("trp-export", ["base.onnx", *EXPORT, "-o", place], codes=(2, 7))
