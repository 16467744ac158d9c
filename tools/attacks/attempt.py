"""One attempt: a command runs in a child process, with limits, in a fresh folder, and how it ends is judged.

Held is a documented exit code with a line or two, without a traceback; within bounds of memory and time; inputs
unchanged; nothing left behind but the outputs of a success.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 60
# Other work may slow an attempt down: what it computes counts, and it is ended after longer.
_LONGEST_WAIT_S = 300
MOST_BYTES = 3 * 10**9
_MORE_ADDRESS_SPACE = 5 * 2**30
_LONGEST_FILE = 4 * 2**30
_MOST_LINES, _MOST_CHARACTERS = 4, 6000
DOCUMENTED = (*range(13), 130)
_SUCCESS = (0, 10, 11)
# Where matplotlib keeps its list of fonts and latencies are kept for the next run, and the way there.
_CACHES = tuple(f"home/{name}" for name in (".cache/matplotlib", ".config/matplotlib", ".cache/trp-bench/latency"))
# Control characters and marks of direction that would act on a terminal; line ends and tabs may stay.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and the folder where it ran."""

    code: int
    out: str
    err: str
    peak_bytes: int
    computed_s: float
    folder: Path

    @property
    def text(self) -> str:
        return self.out + self.err


Check = Callable[[Ended], str | None]


@dataclass(frozen=True, slots=True)
class Call:
    """What runs: a program and its arguments.

    `codes` are the exit codes that are right, any documented one if None. `writes` are patterns of files that the
    command may leave even where it fails. `check` may object to the outcome. `file_bytes` bounds each file, as a full
    disk would. A `signal` is sent to a process that starts from nothing, `delay` seconds after the file `after` exists,
    beside the folder of the attempt. `running` is made by the first line of the command's script. Signal 0 is none.
    `setup` runs in that process before it becomes the command; where it `is_silent`, no error can be printed.
    A variable that is None is removed.
    """

    program: str
    arguments: Sequence[str | Path]
    codes: Sequence[int] | None = None
    writes: Sequence[str] = ()
    check: Check | None = None
    environment: Mapping[str, str | None] = field(default_factory=dict)
    file_bytes: int = _LONGEST_FILE
    signal: int | None = None
    after: str = "running"
    delay: float = 0.0
    setup: Callable[[], object] | None = None
    is_silent: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """`prepare` fills an empty folder, from the kit of sound files, and says what runs there."""

    family: str
    name: str
    prepare: Callable[[Path], Call]


Family = Callable[[Path], Iterator[Attempt]]


def judge(attempt: Attempt, place: Path) -> str | None:
    """Run an attempt below `place`. None if it held, else what was wrong."""
    for name in ("work", "home", "tmp"):
        shutil.rmtree(place / name, ignore_errors=True)
        (place / name).mkdir(parents=True)
    call = attempt.prepare(place / "work")
    before = snapshot(place / "work")
    ended = run(call, place)
    after = snapshot(place / "work")
    complaint = _complaint(call, ended) or _changes(call, ended, before, after)
    left = [
        str(path.relative_to(place))
        for name in ("home", "tmp")
        for path in (place / name).rglob("*")
        if not path.is_dir()
    ]
    left = [name for name in left if not name.startswith(_CACHES)]
    if complaint is None and left:
        complaint = f"left {', '.join(left[:3])}"
    return complaint if complaint or call.check is None else call.check(ended)


def run(call: Call, place: Path) -> Ended:
    """Run a command in a copy of this process, in which everything slow is imported already."""
    if call.signal is not None:
        return _run_and_signal(call, place)
    out, err = place / "out", place / "err"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(call, place, out, err)
    status, usage, timed_out = _wait(child, started)
    with_code = os.waitstatus_to_exitcode(status)
    return Ended(
        -signal.SIGALRM if timed_out else with_code,
        _read(out),
        _read(err),
        usage.ru_maxrss * 1024,
        usage.ru_utime + usage.ru_stime,
        place / "work",
    )


def _run_and_signal(call: Call, place: Path) -> Ended:
    """Start the command as its own script does, and send the signal."""
    module, function = {
        "trp-export": ("trp_export.cli.start", "export"),
        "trp-bench": ("trp_export.cli.start", "bench"),
        "trp-bundle": ("trp_export.cli.start", "bundle"),
        "trp-train": ("training.start", "train"),
        "trp-search": ("training.start", "search"),
    }[call.program]
    running = place / "running"
    running.unlink(missing_ok=True)
    script = (
        f"open({str(running)!r}, 'w').close()\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
    )
    (place / call.program).write_text(script)
    without = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ORT_DISABLE_TELEMETRY"))
    variables = {**os.environ, **environment(place), "PYTHONPATH": str(ROOT), **without, **call.environment}
    process = subprocess.Popen(
        [sys.executable, str(place / call.program), *map(str, call.arguments)],
        stdin=subprocess.DEVNULL,
        stdout=(place / "out").open("wb"),
        stderr=(place / "err").open("wb"),
        cwd=place / "work",
        env={name: value for name, value in variables.items() if value is not None},
        preexec_fn=call.setup,
        start_new_session=True,
    )
    while not (place / call.after).exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(call.delay)
    process.send_signal(call.signal or 0)
    try:
        code = process.wait(_LONGEST_WAIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code = -signal.SIGALRM
    return Ended(code, _read(place / "out"), _read(place / "err"), 0, 0.0, place / "work")


def _wait(child: int, started: float) -> tuple[int, resource.struct_rusage, bool]:
    """The status of the child and what it used; it and its children are ended when their time is over."""
    timed_out = False
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() - started > _LONGEST_WAIT_S and not timed_out:
            timed_out = True
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)
    return status, usage, timed_out


def _become(call: Call, place: Path, out: Path, err: Path) -> None:
    """Turn this child process into the command. Never returns."""
    code = 255
    try:
        os.setpgid(0, 0)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_AS, (_address_space(),) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (call.file_bytes, call.file_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(place / "work")
        _set_variables({**environment(place), **call.environment})
        _forget(place)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = _main(call)
    except BaseException:  # What a fault of the command would show in a terminal.
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code & 255)


def _address_space() -> int:
    """What this process has mapped, and some gigabytes more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize() + _MORE_ADDRESS_SPACE


def _set_variables(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def environment(place: Path) -> dict[str, str | None]:
    """An empty home and an empty temporary folder."""
    return {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "XDG_CACHE_HOME": str(place / "home" / ".cache")}


def _forget(place: Path) -> None:
    """What libraries remember of the parent's environment."""
    import tempfile

    from trp_export.system.scratch import sweep

    tempfile.tempdir = None
    sweep.cache_clear()


def _main(call: Call) -> int:
    sys.argv = [call.program, *map(str, call.arguments)]
    try:
        entry_point(call.program)()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def entry_point(program: str) -> Callable[[], None]:
    from importlib import import_module

    module = {
        "trp-export": "trp_export.cli.export",
        "trp-bench": "trp_export.cli.bench",
        "trp-bundle": "trp_export.cli.bundle",
        "trp-train": "training.cli",
        "trp-search": "training.search.cli",
    }[program]
    return import_module(module).main  # type: ignore[no-any-return]


def snapshot(folder: Path) -> dict[str, str]:
    """What every entry below a folder is: its kind, and the digest of its content."""
    entries = {}
    for path in folder.rglob("*"):
        name = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
        with suppress(FileNotFoundError):  # Some attempts exchange files all the time.
            entries[name] = _content(path)
    return entries


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.fsencode(path.readlink())!r}"
    if path.is_file():
        return _digest(path)
    return "folder" if path.is_dir() else "special"


def _digest(path: Path) -> str:
    if path.stat().st_size > 2**28:  # Sparse.
        return f"{path.stat().st_size} bytes"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _complaint(call: Call, ended: Ended) -> str | None:
    message = ended.err
    if beyond := _beyond_bounds(ended):
        return beyond
    if ended.code < 0 and ended.code not in (call.codes or ()):
        return f"ended by signal {-ended.code}: {message[-300:]!r}"
    if ("Traceback" in message and not is_too_early(ended)) or "a fault of this program" in message:
        return f"exit {ended.code}: {message[-600:]!r}"
    if ended.code not in (call.codes if call.codes is not None else DOCUMENTED):
        return f"exit {ended.code} is not one of {tuple(call.codes or DOCUMENTED)}: {message[-300:]!r}"
    if call.codes is None and ended.code == 1:
        return f"exit 1 says nothing: {message[-300:]!r}"
    if UNSAFE.search(ended.text):
        return f"control characters in the output: {ended.text[-300:]!r}"
    failed = ended.code > 0 and ended.code not in (*_SUCCESS, 6, 130)
    lines = message.strip().splitlines()
    errors = [line for line in lines if line.startswith(("error: ", "Error: "))]
    if failed and not call.is_silent and (len(lines) > _MOST_LINES or not errors):
        return f"exit {ended.code} with {len(lines)} lines: {message[:300]!r}"
    if failed and len(message) > _MOST_CHARACTERS:
        return f"exit {ended.code} with {len(message):,} characters"
    return None


def is_too_early(ended: Ended) -> bool:
    """Whether Ctrl-C ended Python before it had read the first module of the command (docs/exit-codes.md)."""
    frames = re.findall(r'File "([^"]+)", line \d+, in (\S+)', ended.err)
    ours = {(Path(file).name, place) for file, place in frames if Path(file).is_relative_to(ROOT)}
    return ended.code == -signal.SIGINT and ours <= {("__init__.py", "<module>"), ("start.py", "<module>")}


def _beyond_bounds(ended: Ended) -> str | None:
    if ended.code == -signal.SIGALRM:
        return f"took more than {_LONGEST_WAIT_S} s"
    if ended.computed_s > MOST_SECONDS:
        return f"computed for {ended.computed_s:.0f} s"
    return f"took {ended.peak_bytes / 1e9:.1f} GB" if ended.peak_bytes > MOST_BYTES else None


def _changes(call: Call, ended: Ended, before: dict[str, str], after: dict[str, str]) -> str | None:
    changed = [name for name, what in before.items() if after.get(name) != what and not _may_write(name, call)]
    if changed:
        return f"exit {ended.code}, and changed {', '.join(changed[:3])}"
    new = [name for name in after if name not in before and not _may_write(name, call)]
    hidden = [name for name in new if any(part.startswith(".") for part in Path(name).parts)]
    if hidden:
        return f"exit {ended.code}, and left {', '.join(hidden[:3])}"
    if new and ended.code not in _SUCCESS:
        return f"exit {ended.code}, and wrote {', '.join(new[:3])}"
    return None


def _may_write(name: str, call: Call) -> bool:
    return any(Path(name).match(pattern) for pattern in call.writes)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(2_000_000).decode("utf-8", "backslashreplace")
