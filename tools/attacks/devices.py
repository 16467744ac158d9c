"""Boards and phones that answer anything at all. Scripts named ssh and adb stand for them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from attempt import Attempt, Call, Ended
from kit import Kit

# The board runs each command in a shell of its own, but answers at one stage as the attempt says.
SSH = """#!{python}
import os, re, subprocess, sys, time
command, stage, answer = sys.argv[-1], {stage!r}, {answer!r}
stages = {{"lease": "mktemp", "probe": "probe", "serve": "serve", "put": "cat >", "get": "cat /", "mkdir": "mkdir"}}
here = next((name for name, mark in stages.items() if mark in command), "")
def flood(text):
    try:
        while True: sys.stdout.write(text); sys.stdout.flush()
    except OSError: pass
def say():
    if answer == "@flood": flood("a" * 65536)
    elif answer == "@lines": flood("x\\n" * 30000)
    elif answer == "@replies": flood('{{"a": 1}}\\n' * 5000)
    elif answer == "@silent": time.sleep(100)
    elif answer == "@errors":
        while True: sys.stderr.write("e" * 65536)
    elif answer == "@fail": sys.stderr.write("\\x1b]0;PWNED\\x07 no\\nerror: forged\\n" * 500); sys.exit(7)
    elif answer == "@close": os.close(1); time.sleep(30)
    else: sys.stdout.write(answer + "\\n"); sys.stdout.flush(); sys.stdin.read()
if here == stage and not stage.startswith("serve"):
    say(); sys.exit(0)
child = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE if here == "serve" else None)
if here != "serve":
    sys.exit(child.wait())
wanted = {{"serve": 0, "serve run": 1, "serve outputs": 2}}.get(stage)
count = 0
for line in child.stdout:
    kind = 2 if b'"outputs"' in line else 1 if b'"samples"' in line else 0
    if kind == wanted:
        child.kill(); say(); sys.exit(0)
    sys.stdout.buffer.write(line); sys.stdout.flush()
sys.exit(child.wait())
"""
ADB = """#!{python}
import sys, time
answer = {answer!r}
if answer == "@flood":
    while True: sys.stdout.write("a" * 65536)
if answer == "@silent": time.sleep(100)
if answer == "@fail": sys.stderr.write("\\x1b[2J no\\n" * 1000); sys.exit(1)
sys.stdout.write(answer)
"""
ANSWERS = (
    *(
        "[1,2]",
        "5",
        "null",
        '"error"',
        "[" * 10_000,
        "{",
        "{}",
        "",
        "hello",
        '{"a": NaN}',
        '{"error": "\\u001b]0;X\\u0007"}',
    ),
    *(
        '{"error": {"a": 1}}',
        '{"error": "' + "x" * 900_000 + '"}',
        '{"error": "a\\nerror: forged\\nb"}',
        "\x1b[2J",
        "9" * 5000,
    ),
    *("@flood", "@lines", "@replies", "@silent", "@errors", "@fail", "@close"),
)
READY: dict[str, Any] = {
    "protocol": 1,
    "load_ms": 1.5,
    "base_bytes": 10,
    "onnxruntime": "1.30",
    "provider": "CPUExecutionProvider",
    "affinity": [0],
}
TURN: dict[str, Any] = {"samples": [5, 6], "peak_bytes": 7}
OUTPUTS: dict[str, Any] = {"outputs": [{"file": "output0.bin", "element": 1, "shape": [1, 10]}]}
FOLDER: dict[str, Any] = {"folder": "/tmp/trp-bench.x"}
ODD: tuple[Any, ...] = (
    None,
    "abc",
    [],
    {},
    -1,
    float("1e308"),
    10**40,
    True,
    "\x1b]0;X\x07",
    [[]],
    [None],
    "../../x",
    "x; touch PWNED",
)
STAGES = ("lease", "put", "probe", "mkdir", "serve", "serve run", "serve outputs")


def attempts(kit: Kit) -> Iterator[Attempt]:
    """Each answer at each stage, fields of replies replaced, phones."""
    for stage in STAGES:
        for answer in ANSWERS:
            if stage in ("put", "mkdir") and not answer.startswith("@"):
                continue  # What these print is not read.
            yield Attempt("hostile boards", f"{stage}: {answer[:40]!r}", partial(_board, kit, stage, answer))
    for stage, reply in {"lease": FOLDER, "serve": READY, "serve run": TURN, "serve outputs": OUTPUTS}.items():
        for field in reply:
            for value in ODD:
                answer = json.dumps({**reply, field: value})
                yield Attempt(
                    "hostile boards", f"{stage}: {field} = {value!r}"[:80], partial(_board, kit, stage, answer)
                )
    for name in (
        "-oProxyCommand=touch PWNED",
        "a b",
        "$(touch PWNED)",
        "`touch PWNED`",
        "a;touch PWNED",
        "\x1b[2J",
        "x" * 5000,
        "@",
        "",
    ):
        yield Attempt("hostile boards", f"host {name[:30]!r}", partial(_host, kit, name))
    lists = (
        "",
        "\n" * 10**5,
        "x\tdevice\n" * 200_000,
        "\x1b]0;X\x07\tdevice\n",
        "a\tunauthorized\n",
        "@flood",
        "@silent",
        "@fail",
    )
    for answer in lists:
        yield Attempt("hostile boards", f"adb: {answer[:30]!r}", partial(_phone, kit, answer))


def _program(folder: Path, name: str, text: str) -> dict[str, str]:
    bin_folder = folder.parent / "bin"
    bin_folder.mkdir(exist_ok=True)
    (bin_folder / name).write_text(text)
    (bin_folder / name).chmod(0o755)
    return {"PATH": f"{bin_folder}:{os.environ['PATH']}"}


def _board(kit: Kit, stage: str, answer: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    environment = _program(folder, "ssh", SSH.format(python=sys.executable, stage=stage, answer=answer))
    return _bench(environment, "ssh:board")


def _bench(environment: Mapping[str, str], device: str, codes: tuple[int, ...] = (2, 5, 8)) -> Call:
    arguments = ["base.onnx", "--device", device, "--budget", "0.1", "--processes", "1", "--timeout", "4"]
    arguments += ["--remote-python", sys.executable]
    return Call("trp-bench", arguments, codes=codes, environment=environment, check=_clean)


def _host(kit: Kit, name: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    environment = _program(folder, "ssh", "#!/bin/sh\nexit 255\n")
    return _bench(environment, f"ssh:{name}")


def _phone(kit: Kit, answer: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    native = folder.parent / "native"
    native.mkdir(exist_ok=True)
    for name in ("trp-runner", "libonnxruntime.so"):
        (native / name).write_bytes(b"\x7fELF" + bytes(100))
    environment = _program(folder, "adb", ADB.format(python=sys.executable, answer=answer))
    call = _bench(environment, "adb:")
    return Call(call.program, [*call.arguments, "--native", str(native)], call.codes, (), _clean, environment)


def _clean(ended: Ended) -> str | None:
    """Nothing was run by a name or a reply, and no line passes for another."""
    if (ended.folder / "PWNED").exists():
        return "a command of the board's was run here"
    return "a forged line" if "\nerror: forged" in ended.err else None
