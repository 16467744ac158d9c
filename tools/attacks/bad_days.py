"""Days on which more goes wrong: two runs at once, files that shrink, clocks that jump, odd users, old links."""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from attempt import ROOT, Attempt, Call, Ended
from kit import EXPORT, TRAIN, Kit, in_turn
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

Prepare = Callable[[Path], Call]
Setup = Callable[[], object]
BENCH = ("base.onnx", "--budget", "0.1", "--processes", "1")
SEARCH = ("base.onnx", "--data", "good.npz", "--macs", "1.5", "--epochs", "1", "-o", "s.json")
ESCAPE = "\x1b]0;PWNED\x07\x1b[2J\u202e"
# What files and folders may be called.
NAMES = {
    "control characters": ESCAPE,
    "no UTF-8": "\udcff\udcfe",
    "a line end": "a\nerror: forged",
    "200 bytes": "é" * 100,
    "300 bytes": "é" * 150,
    "spaces": "  two  spaces ",
    "many scripts": "模型 модель 🦆 e\u0301",
    "a leading dash": "-rank",
    "a hidden name": ".hidden",
    "braces and percents": "{0} %s $HOME `id` [a-z]* &lt;",
    "a backslash": "C:\\x",
}


def attempts(kit: Kit) -> Iterator[Attempt]:
    """The whole family."""
    groups = (_at_once, _links, _inputs, _streams_and_signals, _limits, _variables, _clocks, _planted, _shards, _names)
    for group in groups:
        for name, prepare in group(kit):
            yield Attempt("bad days", name, prepare)


# --- two runs at once


def _at_once(kit: Kit) -> Iterator[tuple[str, Prepare]]:
    commands: dict[str, tuple[str, tuple[str, ...], tuple[int, ...]]] = {
        "exports onto one model": ("trp-export", ("base.onnx", *EXPORT, "-o", "o.onnx", "--report", "r.html"), (0,)),
        "exports into one bundle": ("trp-export", ("base.onnx", *EXPORT, "--bundle", "b"), (0, 2, 7)),
        "exports that share statistics": (
            "trp-export",
            ("base.onnx", *EXPORT, "--calib", "good.npz", "--calib-stats", "s.npz", "-o", "o.onnx"),
            (0,),
        ),
        "benchmarks that save to one file": ("trp-bench", (*BENCH, "--save", "s.json", "--plot", "p.svg"), (0,)),
        "trainings in one folder": ("trp-train", (*TRAIN, "-o", "new"), (0, 2, 7)),
        "resumes of one training": ("trp-train", ("--resume", "-o", "run"), (0, 2, 7)),
        "searches of one plan": ("trp-search", SEARCH, (0, 2, 7)),
    }
    for name, (program, arguments, codes) in commands.items():
        yield f"two {name}", partial(_two, kit, program, arguments, codes)


def _two(kit: Kit, program: str, arguments: tuple[str, ...], codes: tuple[int, ...], folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz", "data", "run")
    other = _start(program, arguments, folder)
    time.sleep(1)
    writes = ("o.*", "r.html", "b", "b/*", "s.*", "s.search/*", "p.svg", "run/*", "new", "new/*")
    return Call(program, arguments, codes=codes, writes=writes, signal=0, check=partial(_both_whole, other))


def _start(program: str, arguments: tuple[str, ...], folder: Path, modules: str = str(ROOT)) -> subprocess.Popen[str]:
    """A command beside the attempt."""
    apart = folder.parent / "apart"
    apart.mkdir(exist_ok=True)
    module = "training.start" if program in ("trp-train", "trp-search") else "trp_export.cli.start"
    script = f"import sys; sys.argv[0] = {program!r}; from {module} import {program[4:]} as run; sys.exit(run())"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": modules, "TMPDIR": str(apart)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _both_whole(other: subprocess.Popen[str], ended: Ended) -> str | None:
    """Both ended well or said why not, one of them at least well, and what is there can be read."""
    _, said = other.communicate(timeout=300)
    if "Traceback" in said or "report it" in said:
        return f"the other ended with {other.returncode}: {said[-300:]!r}"
    if 0 not in (other.returncode, ended.code):
        return f"none succeeded: {ended.code}, {other.returncode}: {ended.err[-200:]!r} {said[-200:]!r}"
    for path in ended.folder.rglob("*"):
        if path.suffix == ".onnx":
            onnx.checker.check_model(onnx.load(path))
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".npz":
            np.load(path).close()
        elif path.name.startswith("."):
            return f"left {path.name}"
    return None


# --- links of every sort, also to what another user reads


def _links(kit: Kit) -> Iterator[tuple[str, Prepare]]:
    for option, name, target in (
        ("--save", "s.json", "base.onnx"),
        ("--save", "s.json", "input.npz"),
        ("--plot", "p.svg", "input.npz"),
    ):
        yield f"trp-bench {option} onto another name of {target}", partial(_second_name, kit, option, name, target)
    for target in ("base.onnx", "good.npz", "plan.json"):
        yield (
            f"--latency-table that is another name of {target}",
            partial(_second_name_of_table, kit, target),
        )
    for name in ("run/model.pt", "run/last.pt", "run/history.jsonl", "run/history.png"):
        yield f"{name} is another name of the data", partial(_second_name_of_data, kit, name)
    yield "trp-search -o onto another name of its model", partial(_search_onto, kit)
    yield "s.search is a link to a folder, which is written through", partial(_linked_search, kit)
    for what, make in {
        "a file": lambda path: path.write_text("kept"),
        "a pipe": os.mkfifo,
    }.items():
        yield f"s.search is {what}", partial(_odd_search, kit, make)


def _second_name(kit: Kit, option: str, name: str, target: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "input.npz")
    os.link(folder / target, folder / name)
    return Call("trp-bench", [*BENCH, "--input", "input.npz", option, name], codes=(2, 7))


def _second_name_of_table(kit: Kit, target: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz", "plan.json")
    os.link(folder / target, folder / "t.json")
    arguments = ["base.onnx", *EXPORT[2:], "--speedup", "1.05", "--calib", "good.npz", "--latency-table", "t.json"]
    return Call("trp-export", [*arguments, "--budget", "1", "-o", "o.onnx"], codes=(2, 3, 7))


def _second_name_of_data(kit: Kit, name: str, folder: Path) -> Call:
    """The file is replaced or refused; the data stay."""
    kit.copy(folder, "data", "run")
    (folder / name).unlink(missing_ok=True)
    os.link(folder / "data" / "train.npz", folder / name)
    return Call("trp-train", ["--resume", "-o", "run"], codes=(0, 2, 3, 7), writes=("run/*",))


def _search_onto(kit: Kit, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz")
    os.link(folder / "base.onnx", folder / "s.json")
    arguments = ["base.onnx", "--data", "good.npz", "--macs", "1.5", "--epochs", "1", "-o", "s.json"]
    return Call("trp-search", arguments, codes=(2, 7))


def _linked_search(kit: Kit, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz")
    (folder / "kept").mkdir()
    (folder / "s.search").symlink_to("kept")
    return Call("trp-search", SEARCH, codes=(0,), writes=("s.json", "kept/*"))


def _odd_search(kit: Kit, make: Callable[[Path], object], folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz")
    make(folder / "s.search")
    return Call("trp-search", SEARCH, codes=(2, 3, 7))


# --- what is no plain file, or stops being one


def _inputs(kit: Kit) -> Iterator[tuple[str, Prepare]]:
    commands: dict[str, tuple[str, list[str]]] = {
        "trp-export": ("trp-export", ["x.onnx", *EXPORT]),
        "--calib": ("trp-export", ["base.onnx", *EXPORT, "--calib", "x.npz"]),
        "--labels": ("trp-export", ["base.onnx", *EXPORT, "--eval", "images", "--labels", "x.csv"]),
        "--calib-stats": ("trp-export", ["base.onnx", *EXPORT, "--calib", "good.npz", "--calib-stats", "x.npz"]),
        "--latency-table": ("trp-export", ["base.onnx", "--speedup", "1.1", "--latency-table", "x.json"]),
        "--against": ("trp-bench", [*BENCH, "--against", "x.json"]),
        "--config": ("trp-train", ["--config", "x.toml", *TRAIN, "-o", "new"]),
        "--init": ("trp-train", [*TRAIN, "--init", "x.pt", "-o", "new"]),
        "trp-bench": ("trp-bench", ["x.ort", "--budget", "0.1", "--processes", "1"]),
        "trp-bundle": ("trp-bundle", ["verify", "x"]),
    }
    makes: dict[str, Callable[[Path], object]] = {
        "a socket": _socket,
        "the standard input": lambda path: path.symlink_to("/dev/stdin"),
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "the memory of a process": lambda path: path.symlink_to("/proc/self/mem"),
        "a file that nobody may read": in_turn(lambda path: path.write_bytes(b"x"), lambda path: path.chmod(0)),
    }
    for (option, command), (what, make) in ((c, m) for c in commands.items() for m in makes.items()):
        yield f"{option} {what}", partial(_odd_input, kit, command, make)
    for turn in range(6):
        yield f"a large model that shrinks while it is exported, turn {turn}", partial(_shrinking, kit, 0.4 * turn)
    for name in ("images.npy", "apart.onnx.data"):
        for turn in range(3):
            yield (
                f"{name} that shrinks while it is read, turn {turn}",
                partial(_shrinking_beside, kit, name, 0.5 * turn),
            )
    for name in ("its middle changed", "zeros", "half of it", "a page of noise"):
        yield f"a model in the format of ORT, {name}", partial(_damaged_ort, kit, name)
    yield "a sound model in the format of ORT", partial(_damaged_ort, kit, "")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # Names of sockets are short.
        made.bind(path.name)
        os.chdir(here)


def _odd_input(kit: Kit, command: tuple[str, list[str]], make: Callable[[Path], object], folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz", "images", "data")
    program, arguments = command
    make(folder / next(part for part in arguments if Path(part).stem == "x"))
    return Call(program, arguments, codes=(2, 3, 7), setup=_give_up_rights, signal=0)


def _give_up_rights() -> None:
    """Let the modes of files hold for root, too: PR_CAPBSET_DROP of all rights that override them."""
    for right in (1, 2, 3):
        ctypes.CDLL(None).prctl(24, right, 0, 0, 0)


def _shrinking(kit: Kit, delay: float, folder: Path) -> Call:
    """A file of 100 MB loses its end while it is read."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal((5000, 5000), dtype=np.float32), "fc.weight")]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "fc.weight"], ["y"], name="fc", transB=1)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5000])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    shrink = f"import os, time; time.sleep({1 + delay}); os.truncate('m.onnx', 5000)"
    other = subprocess.Popen([sys.executable, "-c", shrink], cwd=folder)
    arguments = ["m.onnx", "--rank", "2", "--calib", "none", "--no-bench", "--quiet", "-o", "o.onnx"]
    return Call(
        "trp-export",
        arguments,
        codes=(0, 3, 4, 5, 7),
        writes=("m.onnx", "o.*"),
        signal=0,
        check=lambda ended: "no end" if other.wait() else None,
    )


def _shrinking_beside(kit: Kit, name: str, delay: float, folder: Path) -> Call:
    """Images, or the weights of a model, in a file of their own. What is mapped into memory may end the program."""
    rng = np.random.default_rng(0)
    kit.copy(folder, "base.onnx")
    np.save(folder / "images.npy", rng.integers(0, 256, (20_000, 12, 12, 3), dtype=np.uint8))
    model = onnx.load(folder / "base.onnx")
    onnx.save(model, folder / "apart.onnx", save_as_external_data=True, location="apart.onnx.data", size_threshold=0)
    shrink = f"import os, time; time.sleep({1 + delay}); os.truncate({name!r}, 50)"
    other = subprocess.Popen([sys.executable, "-c", shrink], cwd=folder)
    return Call(
        "trp-export",
        ["apart.onnx", "--rank", "2", "--calib", "images.npy", "--no-bench", "--quiet", "-o", "o.onnx"],
        codes=(0, 3, 4, 5, 7),
        writes=(name, "o.*"),
        signal=0,
        check=lambda ended: "no end" if other.wait() else None,
    )


def _damaged_ort(kit: Kit, damage: str, folder: Path) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(kit["base.onnx"]), options, providers=["CPUExecutionProvider"])
    content = bytearray((folder / "m.ort").read_bytes())
    middle, rng = len(content) // 2, np.random.default_rng(0)
    if damage == "its middle changed":
        content[middle : middle + 8] = b"\xff" * 8
    elif damage == "zeros":
        content = bytearray(len(content))
    elif damage == "half of it":
        content = content[:middle]
    elif damage == "a page of noise":
        content[200:1200] = rng.bytes(1000)
    (folder / "m.ort").write_bytes(content)
    codes = (3,)  # Weights of such a model cannot be compared.
    return Call("trp-bench", ["m.ort", "--budget", "0.1", "--processes", "1"], codes=codes, signal=0)


# --- streams and signals


def _streams_and_signals(kit: Kit) -> Iterator[tuple[str, Prepare]]:
    commands = _commands()
    for program, stream in ((program, stream) for program in ("trp-train", "trp-search") for stream in (1, 2)):
        yield (
            f"{program} with a stream {stream} that nobody reads",
            partial(_ending, kit, program, partial(_to_nobody, stream), 0, 0.0),
        )
        yield (
            f"{program} with a full stream {stream}",
            partial(_ending, kit, program, partial(_to_full, stream), 0, 0.0),
        )
    for program in commands:
        for number in (signal.SIGPIPE, signal.SIGTSTP, signal.SIGWINCH, signal.SIGUSR1, signal.SIGXCPU):
            yield f"{program} and {number.name}", partial(_ending, kit, program, None, number, 1.5)
        yield f"{program} with ignored signals", partial(_ending, kit, program, _ignore_signals, signal.SIGHUP, 1.5)
        yield f"{program} with blocked signals", partial(_ending, kit, program, _block_signals, 0, 0.0)
        yield f"{program} with ignored ends of children", partial(_ending, kit, program, _ignore_children, 0, 0.0)


def _commands() -> dict[str, tuple[str, ...]]:
    return {
        "trp-export": ("base.onnx", *EXPORT, "--calib", "good.npz", "-o", "o.onnx"),
        "trp-bench": (*BENCH, "--save", "b.json"),
        "trp-train": (*TRAIN, "-o", "new"),
        "trp-search": SEARCH,
    }


WRITES = ("o.*", "b.json", "new", "new/*", "s.json", "s.search", "s.search/*", ".trp-export.*", "*")


def _ending(kit: Kit, program: str, setup: Setup | None, number: int, delay: float, folder: Path) -> Call:
    """A signal that ends a program by default may do so: nothing half-written stays under a name that was asked for."""
    kit.copy(folder, "base.onnx", "good.npz", "data")
    ends = number in (signal.SIGUSR1, signal.SIGXCPU)
    if number == signal.SIGTSTP:
        _go_on_later(folder, delay + 1)
    return Call(
        program,
        _commands()[program],
        codes=(0, 1, 2, 7, 130, *((-number,) if ends else ())),
        writes=WRITES if ends else WRITES[:-2],
        setup=setup,
        signal=number,
        delay=delay,
        is_silent=setup is not None,
        check=_whole,
    )


def _go_on_later(folder: Path, delay: float) -> None:
    """Let what was stopped in this folder go on."""
    script = (
        "import os, signal, sys, time\n"
        f"time.sleep({delay})\n"
        "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    try:\n"
        f"        if os.readlink(f'/proc/{{pid}}/cwd') == {str(folder)!r}: os.kill(int(pid), signal.SIGCONT)\n"
        "    except OSError: pass\n"
    )
    subprocess.Popen([sys.executable, "-c", script], cwd="/")


def _whole(ended: Ended) -> str | None:
    for name in ("o.onnx", "small.onnx"):
        if (ended.folder / name).exists():
            onnx.checker.check_model(onnx.load(ended.folder / name))
    for name in ("b.json", "s.json"):
        if (ended.folder / name).exists():
            json.loads((ended.folder / name).read_text())
    return None


def _to_nobody(number: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, number)


def _to_full(number: int) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def _ignore_signals() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _ignore_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


# --- little of everything


def _limits(kit: Kit) -> Iterator[tuple[str, Prepare]]:
    limits: dict[str, tuple[int, int]] = {
        **{f"{count} descriptors": (resource.RLIMIT_NOFILE, count) for count in (8, 12, 30)},
        **{f"{size} MB of address space": (resource.RLIMIT_AS, size * 10**6) for size in (100, 600, 2000)},
        **{f"{size} MB of data": (resource.RLIMIT_DATA, size * 10**6) for size in (100, 400)},
        "a second of computing": (resource.RLIMIT_CPU, 1),
        "files of 1000 bytes": (resource.RLIMIT_FSIZE, 1000),
        "no locked memory": (resource.RLIMIT_MEMLOCK, 0),
    }
    for program in _commands():
        for name, (kind, value) in limits.items():
            yield f"{program} with {name}", partial(_limited, kit, program, kind, value)


def _limited(kit: Kit, program: str, kind: int, value: int, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz", "data")
    return Call(
        program,
        _commands()[program],
        # Python itself cannot start in little memory, and the kernel ends what computes for too long.
        codes=(*range(13), -signal.SIGXCPU, -signal.SIGKILL),
        writes=WRITES if kind == resource.RLIMIT_CPU else WRITES[:-2],
        setup=partial(_limit, kind, value),
        signal=0,
        is_silent=True,
        check=partial(_explained, kind, value),
    )


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, value))


def _explained(kind: int, value: int, ended: Ended) -> str | None:
    if ended.code > 0 and "report it" in ended.err:
        return f"exit {ended.code}: {ended.err[-300:]!r}"
    return _whole(ended)


# --- variables and other users


def _variables(kit: Kit) -> Iterator[tuple[str, Prepare]]:
    variables: dict[str, dict[str, str | None]] = {
        "PYTHONOPTIMIZE": {"PYTHONOPTIMIZE": "2"},
        "PYTHONDEVMODE": {"PYTHONDEVMODE": "1"},
        "PYTHONWARNINGS": {"PYTHONWARNINGS": "error"},
        "PYTHONSAFEPATH": {"PYTHONSAFEPATH": "1"},
        "PYTHONUNBUFFERED": {"PYTHONUNBUFFERED": "1"},
        "no limit of digits": {"PYTHONINTMAXSTRDIGITS": "0"},
        "no colours": {"NO_COLOR": "1", "TERM": "dumb"},
        "an odd time zone": {"TZ": "\x1b[2J:../../etc/passwd"},
        "an odd language": {"LANG": "\x1b[2J", "LANGUAGE": "../../x"},
        "no PATH": {"PATH": None},
        "an empty PATH": {"PATH": ""},
        "10^9 threads": {"OMP_NUM_THREADS": "1000000000", "OPENBLAS_NUM_THREADS": "1000000000"},
        "a cache that is a device": {"XDG_CACHE_HOME": "/dev/null"},
        "a HOME that is no UTF-8": {"HOME": "/tmp/\udcff", "XDG_CACHE_HOME": None},
        "a TMPDIR that is no UTF-8": {"TMPDIR": "/tmp/\udcff"},
        "a place for torch that is a device": {"TORCHINDUCTOR_CACHE_DIR": "/dev/null", "TORCH_HOME": "/dev/null"},
        "odd logs of torch": {"TORCH_LOGS": "nonsense"},
        "odd GPUs": {"CUDA_VISIBLE_DEVICES": "\x1b[2J"},
        "a variable of a megabyte": {f"X{index}": "x" * 10**5 for index in range(10)},
    }
    for program in _commands():
        for name, values in variables.items():
            yield f"{program} with {name}", partial(_with_variables, kit, program, values)
        yield f"{program} where nothing can be written", partial(_read_only, kit, program)


def _with_variables(kit: Kit, program: str, values: dict[str, str | None], folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz", "data")
    return Call(program, _commands()[program], codes=(0, 2, 7), writes=WRITES[:-2], environment=values, signal=0)


def _read_only(kit: Kit, program: str, folder: Path) -> Call:
    """The folder, the home and the temporary folder can be read, but not written."""
    kit.copy(folder, "base.onnx", "good.npz", "data")
    for path in (folder, folder.parent / "home", folder.parent / "tmp"):
        path.chmod(0o555)
    return Call(program, _commands()[program], codes=(2, 7), setup=_give_up_rights, signal=0)


# --- clocks


def _clocks(kit: Kit) -> Iterator[tuple[str, Prepare]]:
    clocks = {
        "goes backwards": "lambda: next(turns) * -1e5 + 1e9",
        "jumps": "lambda: 1e9 + (next(turns) % 2) * 1e8",
        "stands still": "lambda: 1e9",
        "is before 1970": "lambda: -1e8",
        "is in the year 5000": "lambda: 95e9",
    }
    for program in _commands():
        for name, clock in clocks.items():
            yield f"{program} while the clock {name}", partial(_odd_clock, kit, program, clock)


def _odd_clock(kit: Kit, program: str, clock: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz", "data")
    site = folder.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(f"import itertools, time\nturns = itertools.count()\ntime.time = {clock}\n")
    environment = {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    return Call(
        program, _commands()[program], codes=(0, 2), writes=WRITES[:-2], environment=environment, signal=0, check=_whole
    )


# --- what another program has put where we look


KILL = """
import os, pathlib, signal
replace, count = pathlib.Path.replace, 0
def killing(self, target):
    global count
    done = replace(self, target)
    count += pathlib.Path(target).name in ("o.onnx", "o.json", "r.html")
    if count == {}:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
pathlib.Path.replace = killing
"""


def _planted(kit: Kit) -> Iterator[tuple[str, Prepare]]:
    for count in (1, 2, 3):
        yield f"a run was killed after it had renamed {count} of 3 files", partial(_killed, kit, count)
    for place in ("tmp", "work"):
        for what in ("a link to a folder", "a link to a file", "an old folder", "a pipe", "links inside"):
            if place == "work" or what not in ("a link to a file", "a pipe"):  # Those stay in sight in `tmp`.
                yield f"{what} among our hidden folders, {place}", partial(_leftover, kit, place, what)
    for what in ("a pipe", "a link", "a folder", "an escape", "10 MB", "a list", "no UTF-8"):
        yield f"a cache of latencies with {what}", partial(_cache, kit, what)
    for what in ("a loop of folders", "60 folders in one another", "names of control characters", "no UTF-8"):
        yield f"images with {what}", partial(_images, kit, what)
    for name in (".trp-train.lock", "state-1-0.pt", "last.pt", "history.jsonl"):
        yield f"{name} of a run is a pipe", partial(_piped_run, kit, name)


def _killed(kit: Kit, count: int, folder: Path) -> Call:
    """The next run makes all files anew, and removes what the killed one left where that is older than a day."""
    kit.copy_beside_old_outputs(folder)
    site = folder.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(KILL.format(count))
    arguments = ("base.onnx", *EXPORT, "-o", "o.onnx", "--report", "r.html")
    _start("trp-export", arguments, folder, f"{site}{os.pathsep}{ROOT}").communicate(timeout=300)
    left = list(folder.glob(".trp-export.*"))
    for path in left:
        os.utime(path, (0, 0))
    shutil.rmtree(folder.parent / "tmp")
    (folder.parent / "tmp").mkdir()
    return Call(
        "trp-export",
        arguments,
        codes=(0,),
        writes=("o.*", "r.html", ".trp-export.*", ".trp-export.*/*", "scratch/*"),
        signal=0,
        check=partial(_all_new, left),
    )


def _all_new(left: list[Path], ended: Ended) -> str | None:
    old = [name for name in ("o.onnx", "o.json", "r.html") if b"old" in (ended.folder / name).read_bytes()[:10]]
    stays = [path.name for path in left if path.exists()]
    return f"old {old}, {len(left)} left, of which stay {stays}" if old or stays or not left else None


def _leftover(kit: Kit, place: str, what: str, folder: Path) -> Call:
    """The next run removes what an own earlier run left, and follows no link."""
    kit.copy(folder, "base.onnx")
    victim = folder / "victim"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    at = folder.parent / "tmp" / "trp-export.x" if place == "tmp" else folder / ".trp-export.x"
    if what == "a link to a folder":
        at.symlink_to(victim)
    elif what == "a link to a file":
        at.symlink_to(victim / "kept")
    elif what == "a pipe":
        os.mkfifo(at)
    else:
        at.mkdir()
        (at / "inside").symlink_to(victim)
        (at / "file").write_text("old")
    os.utime(at, (0, 0), follow_symlinks=False)
    is_swept = what in ("an old folder", "links inside")
    writes = ("o.*", ".trp-export.*", ".trp-export.*/*") if is_swept else ("o.*",)
    return Call(
        "trp-export",
        ["base.onnx", *EXPORT, "-o", "o.onnx"],
        codes=(0,),
        writes=writes,
        signal=0,
        check=partial(_swept, at, is_swept),
    )


def _swept(at: Path, is_swept: bool, ended: Ended) -> str | None:
    kept = (ended.folder / "victim" / "kept").exists()
    there = os.path.lexists(at)
    if not is_swept and there and at.parent.name == "tmp":
        at.unlink()
    return None if kept and there != is_swept else f"kept {kept}, there {there}"


def _cache(kit: Kit, what: str, folder: Path) -> Call:
    """Every name where latencies may be kept is odd."""
    kit.copy(folder, "base.onnx")
    cache = folder.parent / "home" / ".cache" / "trp-bench"
    cache.mkdir(parents=True)
    victim = folder / "victim"
    victim.write_text("kept")
    at = cache / "latency"
    if what == "a pipe":
        os.mkfifo(at)
    elif what == "a link":
        at.symlink_to(victim)
    else:
        at.mkdir()
        content = {"an escape": f'"{ESCAPE}"', "10 MB": "[" * 10**7, "a list": "[1]", "no UTF-8": "\udcff"}.get(what)
        for index in range(3):
            if content is None:
                (at / f"{index}.json").mkdir()
            else:
                (at / f"{index}.json").write_text(content, errors="surrogateescape")
    arguments = ["base.onnx", "--speedup", "1.02", "--calib", "none", "--budget", "1", "-o", "o.onnx"]
    return Call(
        "trp-export", arguments, codes=(0, 2, 3, 6, 7), writes=("o.*",), signal=0, check=partial(_clear_cache, cache)
    )


def _clear_cache(cache: Path, ended: Ended) -> str | None:
    shutil.rmtree(cache, ignore_errors=True)
    return None


def _images(kit: Kit, what: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "images")
    images, name = folder / "images", "1.png"
    if what == "a loop of folders":
        (images / "loop").symlink_to(".")
    elif what == "60 folders in one another":
        here = Path.cwd()
        os.chdir(images)
        for _ in range(60):
            Path("a" * 50).mkdir()
            os.chdir("a" * 50)
        os.chdir(here)
    else:
        name = f"{ESCAPE}.png" if what.startswith("names") else "\udcff.png"
        with suppress(OSError):
            (images / name).write_bytes(b"no image")
    return Call("trp-export", ["base.onnx", *EXPORT, "--calib", "images", "-o", "o.onnx"], codes=(0, 2, 3), signal=0)


def _piped_run(kit: Kit, name: str, folder: Path) -> Call:
    kit.copy(folder, "data", "run")
    (folder / "run" / name).unlink(missing_ok=True)
    os.mkfifo(folder / "run" / name)
    return Call(
        "trp-train",
        ["--resume", "--states", "1", "-o", "run"],
        codes=(0, 2, 3, 7),
        writes=("run/*",),
        signal=0,
    )


# --- shards and folders of labelled images


def _shards(kit: Kit) -> Iterator[tuple[str, Prepare]]:
    for name in (
        "sound",
        "links",
        "devices",
        "a member of 4 TB",
        "a header of 8 GB",
        "names outside",
        "names of control characters",
        "labels of 5,000 digits",
        "labels below zero",
        "images that are no images",
        "a bomb",
        "half of it",
        "nothing",
    ):
        if find_spec("webdataset") is not None:
            yield f"a shard with {name}", partial(_shard, kit, name)
    for name in ("pipe:touch PWNED;.tar", "pipe:touch PWNED;{000..001}.tar", "file:shard-000.tar", "http:x.tar"):
        if find_spec("webdataset") is not None:
            yield f"a shard called {name}", partial(_shard_called, kit, name)
    for name in ("links to a device", "a pipe", "a link to itself"):
        yield f"classes with {name}", partial(_classes, kit, name)


def _shard(kit: Kit, what: str, folder: Path) -> Call:
    path = folder / "shard-000.tar"
    path.write_bytes(_members(what))
    _damage(path, what)
    (folder / "shard-001.tar").write_bytes(_members("sound"))
    arguments = ["--arch", "resnet20", "--data", "webdataset:shard-*.tar", "--batch", "32", "--validation", "16"]
    return Call(
        "trp-train",
        [*arguments, "--epochs", "1", "--workers", "1", "-o", "new"],
        codes=(0,) if what == "sound" else (0, 2, 3, 7),
        writes=("new", "new/*"),
        signal=0,
    )


def _shard_called(kit: Kit, name: str, folder: Path) -> Call:
    """A name that would be a command if the pattern held it."""
    for own in (name, "shard-001.tar"):
        (folder / own).write_bytes(_members("sound"))
    arguments = ["--arch", "resnet20", "--data", "webdataset:*.tar", "--batch", "32", "--validation", "16"]
    return Call(
        "trp-train",
        [*arguments, "--epochs", "1", "--workers", "1", "-o", "new"],
        codes=(2, 3),
        signal=0,
        check=lambda ended: "code was run" if (ended.folder / "PWNED").exists() else None,
    )


def _members(what: str) -> bytes:
    """An archive of 64 images and their labels, with something odd."""
    picture, whole = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(picture, "PNG")
    image = b"no image" if what == "images that are no images" else picture.getvalue()
    before = {"names of control characters": ESCAPE, "names outside": "../../"}.get(what, "")
    odd = {"labels of 5,000 digits": b"9" * 5000, "labels below zero": b"-3"}
    kinds = {
        "links": (tarfile.SYMTYPE, tarfile.LNKTYPE),
        "devices": (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
    }
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for index in range(64 if what != "nothing" else 0):
            for ending, content in (("png", image), ("cls", odd.get(what, b"%d" % (index % 4)))):
                info = tarfile.TarInfo(f"{before}{index:05}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        for kind in kinds.get(what, ()):
            info = tarfile.TarInfo("odd.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return whole.getvalue()


def _damage(path: Path, what: str) -> None:
    content = path.read_bytes()
    if what == "a member of 4 TB":
        info = tarfile.TarInfo("large.png")
        info.size = 4 * 10**12
        path.write_bytes(content[:-10240] + info.tobuf(tarfile.GNU_FORMAT))
    elif what == "a header of 8 GB":
        info = tarfile.TarInfo("././@PaxHeader")
        info.type, info.size = tarfile.XHDTYPE, 8 * 10**9
        with path.open("r+b") as file:
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.truncate(8 * 10**9)
    elif what == "a bomb":
        path.write_bytes(content[: len(content) // 2] + bytes(2 * 10**9))
    elif what == "half of it":
        path.write_bytes(content[: len(content) // 2 + 77])


def _classes(kit: Kit, what: str, folder: Path) -> Call:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (folder / "set" / part / name).mkdir(parents=True)
            for index in range(12):
                image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                image.save(folder / "set" / part / name / f"{index}.png")
    inside = folder / "set" / "train"
    if what == "links to a device":
        (inside / "a" / "z.png").symlink_to("/dev/zero")
    elif what == "a pipe":
        os.mkfifo(inside / "a" / "z.png")
    elif what == "a link to itself":
        (inside / "a" / "loop").symlink_to("..")
        (inside / "c").symlink_to(".")
    else:  # A name, if the file system can hold it.
        with suppress(OSError):
            (inside / "a").rename(inside / what)
    arguments = ["--arch", "resnet20", "--data", "imagefolder:set", "--batch", "8", "--shape", "1,3,32,32"]
    return Call(
        "trp-train",
        [*arguments, "--epochs", "1", "--workers", "1", "-o", "new"],
        codes=(0, 2, 3, 7),
        writes=("new", "new/*"),
        signal=0,
    )


# --- names


def _names(kit: Kit) -> Iterator[tuple[str, Prepare]]:
    for what, name in NAMES.items():
        path = f"./{name}" if name.startswith("-") else name
        yield f"trp-train -o {what}", partial(_called, kit, "trp-train", [*TRAIN, "-o", path])
        yield f"trp-search -o {what}", partial(_called, kit, "trp-search", [*SEARCH[:-1], f"{path}.json"])
        yield f"trp-bench --save {what}", partial(_called, kit, "trp-bench", [*BENCH, "--save", f"{path}.json"])
        yield f"--bundle {what}", partial(_called, kit, "trp-export", ["base.onnx", *EXPORT, "--bundle", path])
        yield (
            f"--report {what}",
            partial(_called, kit, "trp-export", ["base.onnx", *EXPORT, "-o", "o.onnx", "--report", f"{path}.html"]),
        )
        yield f"trp-bundle verify {what}", partial(_called, kit, "trp-bundle", ["verify", path])
        yield f"a model called {what}", partial(_read, kit, name, "base.onnx", "trp-export", ["{}", *EXPORT])
        yield f"a benchmark of {what}", partial(_read, kit, name, "base.onnx", "trp-bench", ["{}", *BENCH[1:]])
        calibrated = ["base.onnx", *EXPORT, "--calib", "{}", "-o", "o.onnx"]
        yield f"images called {what}", partial(_read, kit, name, "good.npz", "trp-export", calibrated)
        yield f"a folder of images called {what}", partial(_read, kit, name, "images", "trp-export", calibrated)
        yield f"a class called {what}", partial(_classes, kit, name)


def _called(kit: Kit, program: str, arguments: list[str], folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "data", "good.npz")
    codes = (2, 3) if program == "trp-bundle" else (0, 2, 7)
    return Call(program, arguments, codes=codes, writes=("*",), signal=0)


def _read(kit: Kit, name: str, source: str, program: str, arguments: list[str], folder: Path) -> Call:
    """A file of this name is read like any other, where the file system can hold it. Outputs are called in UTF-8."""
    kit.copy(folder, "base.onnx", source) if source != "base.onnx" else kit.copy(folder, source)
    name += Path(source).suffix
    codes: tuple[int, ...] = (0, 7) if name.startswith("\udcff") else (0,)
    try:
        (folder / source).rename(folder / name)
    except OSError:
        codes = (2, 3, 7)
    path = f"./{name}" if name.startswith("-") else name
    return Call(program, [part.format(path) for part in arguments], codes=codes, writes=("*",), signal=0)
