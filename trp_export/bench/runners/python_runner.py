"""The process that is measured: one model in onnxruntime, driven by lines on stdin, answering in JSON lines on stdout.

It travels alone to boards, so it needs nothing but Python 3.8, numpy and onnxruntime, and imports nothing of ours.

    python_runner.py probe                     facts about the machine, one line, then the end
    python_runner.py serve MODEL INPUTS ...    one `ready` line, then a reply for each of the commands below

    run SAMPLES INNER     SAMPLES times the duration of INNER inferences, divided by INNER
    outputs               one inference, its outputs written to the scratch folder
    profile               the profile written since the start, by its file name

End of input ends the process, even in the middle of an inference: a controller that dies leaves nothing behind.
`native_runner.c` and `web_runner.js` speak the same protocol.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported; on a board nothing else sets it

PROTOCOL = 1
CPU = "CPUExecutionProvider"
MARK = 0x5EED0000  # what getpriority() is asked for, to tell an emulator's instruction counter "an inference ends here"

# ONNX element types and their numpy names; the ones a C program can also read from a file of raw bytes.
ELEMENTS = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}


def read_text(path: str) -> str:
    """The text of a file under /proc or /sys, or an empty string where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - also runs on old boards
            return file.read().strip()
    except OSError:
        return ""


def memory_bytes() -> int:
    """Peak resident memory of this process so far, or 0 where the system does not tell.

    Not `ru_maxrss` on Linux: it survives exec, so a child of a big process starts with its parent's peak.
    """
    for line in read_text("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    except ImportError:
        return 0


def cpu_model() -> str:
    """The processor's name as a person would say it, as far as the system tells."""
    fields: dict[str, str] = {}
    for line in read_text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    board = read_text("/proc/device-tree/model").strip("\0")
    part = fields.get("CPU part", "")
    name = fields.get("model name") or (f"ARM part {part}" if part else "") or platform.processor()
    return f"{board}, {name}" if board else name or platform.machine()


def cpu_features() -> str:
    """The instruction sets that the processor offers, as far as the system tells."""
    for line in read_text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return " ".join(sorted(value.split()))
    return ""


def channel_block() -> int:
    """Output channels that onnxruntime's convs compute at once here.

    16 with AVX-512 and 8 on other x86 processors, whose convs have a blocked layout; 4, the rows of a matrix product,
    elsewhere.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return 4
    return 16 if "avx512f" in cpu_features().split() else 8


def digest(text: str) -> str:
    """A short name for a long text; empty for an empty one."""
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else ""


def core_facts() -> list[dict[str, Any]]:
    """For each core this process may use: number, siblings, relative capacity, governor, highest kHz."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    facts = []
    for core in allowed:
        folder = f"/sys/devices/system/cpu/cpu{core}"
        facts.append(
            {
                "core": core,
                "siblings": read_text(folder + "/topology/thread_siblings_list") or str(core),
                "capacity": int(read_text(folder + "/cpu_capacity") or 0),
                "governor": read_text(folder + "/cpufreq/scaling_governor"),
                "max_khz": int(read_text(folder + "/cpufreq/cpuinfo_max_freq") or 0),
            }
        )
    return facts


def probe() -> dict[str, Any]:
    """What the controller needs to know about this machine before it starts a runner."""
    facts: dict[str, Any] = {
        "protocol": PROTOCOL,
        "cpu": cpu_model(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "logical_cores": os.cpu_count() or 1,
        "cores": core_facts(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        "can_pin": hasattr(os, "sched_setaffinity"),
        "features": digest(cpu_features()),
        "block": channel_block(),
    }
    try:
        import onnxruntime

        facts["onnxruntime"] = onnxruntime.__version__
        facts["build"] = digest(onnxruntime.get_build_info() if hasattr(onnxruntime, "get_build_info") else "")
        facts["providers"] = onnxruntime.get_available_providers()
    except Exception as error:
        facts["unusable"] = f"its python3 cannot import onnxruntime: {error}"
    return facts


def load_inputs(manifest: str, names: list[str]) -> dict[str, Any]:
    """The inputs that `manifest` lists, one line each in the order of the model's: `ELEMENT FILE DIM DIM ...`."""
    import numpy as np

    feeds = {}
    with open(manifest, encoding="utf-8") as file:  # noqa: PTH123
        lines = file.read().splitlines()
    for name, line in zip(names, lines):  # noqa: B905 - Python 3.8
        element, file_name, *dims = line.split(" ")
        path = os.path.join(os.path.dirname(manifest), file_name)  # noqa: PTH118, PTH120
        values = np.fromfile(path, dtype=ELEMENTS[int(element)])
        feeds[name] = values.reshape([int(dim) for dim in dims])
    return feeds


def open_session(options: argparse.Namespace, profile: str) -> Any:
    """A session as users get it: all optimisations, the wanted threads and provider, nothing else changed.

    `profile` is a file prefix in the scratch folder for onnxruntime's profile, empty for none.
    """
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    if profile:
        settings.enable_profiling = True
        settings.profile_file_prefix = os.path.join(options.scratch, profile)  # noqa: PTH118
    return ort.InferenceSession(options.model, settings, providers=[options.provider])


def nodes_by_provider(options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """How many nodes of each operator each provider runs in one inference: those it lacks are left to the CPU."""
    session = open_session(options, "placement")
    session.run(None, load_inputs(options.inputs, [value.name for value in session.get_inputs()]))
    path = session.end_profiling()
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        events = json.load(file)
    os.remove(path)  # noqa: PTH107
    counts: dict[str, dict[str, int]] = {}
    for event in events:
        details = event.get("args", {})
        if str(event.get("name", "")).endswith("_kernel_time") and "provider" in details:
            operators = counts.setdefault(details["provider"], {})
            operator = details.get("op_name", "")
            operators[operator] = operators.get(operator, 0) + 1
    return counts


class Runner:
    """One loaded model and its inputs, and the commands on them."""

    def __init__(self, options: argparse.Namespace) -> None:
        import onnxruntime as ort

        if options.provider not in ort.get_available_providers():
            raise LookupError(
                f"{options.provider} is not in this onnxruntime, which has {ort.get_available_providers()}"
            )
        self.options = options
        self.nodes = nodes_by_provider(options) if options.provider != CPU else {}
        self.base_bytes = memory_bytes()
        start = time.perf_counter_ns()
        self.session = open_session(options, options.profile)
        self.load_ms = (time.perf_counter_ns() - start) / 1e6
        if self.session.get_providers()[0] != options.provider:
            raise LookupError(f"{options.provider} was asked for, onnxruntime chose {self.session.get_providers()}")
        self.feeds = load_inputs(options.inputs, [value.name for value in self.session.get_inputs()])
        self.values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self.feeds.items()}
        self.names = [value.name for value in self.session.get_outputs()]

    def ready(self) -> dict[str, Any]:
        import onnxruntime as ort

        affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        return {
            "protocol": PROTOCOL,
            "load_ms": self.load_ms,
            "base_bytes": self.base_bytes,
            "onnxruntime": ort.__version__,
            "provider": self.session.get_providers()[0],
            "affinity": affinity,
            "nodes": self.nodes,
        }

    def run(self, samples: str, inner: str) -> dict[str, Any]:
        session, names, values, repeat = self.session, self.names, self.values, range(int(inner))
        clock, times = time.perf_counter_ns, []
        if self.options.marks:
            mark()
        for _ in range(int(samples)):
            start = clock()
            for _ in repeat:
                session.run_with_ort_values(names, values)
            times.append((clock() - start) // len(repeat))
            if self.options.marks:
                mark()
        return {"samples": times, "peak_bytes": memory_bytes()}

    def outputs(self) -> dict[str, Any]:
        import numpy as np

        elements = {name: element for element, name in ELEMENTS.items()}
        described: list[dict[str, Any]] = []
        for index, value in enumerate(self.session.run(self.names, self.feeds)):
            if not isinstance(value, np.ndarray) or value.dtype.name not in elements:
                described.append({"skipped": type(value).__name__})
                continue
            file_name = f"output{index}.bin"
            # `tofile` of numpy does not report a full disk.
            with open(os.path.join(self.options.scratch, file_name), "wb") as file:  # noqa: PTH118, PTH123
                file.write(np.ascontiguousarray(value).tobytes())
            described.append({"file": file_name, "element": elements[value.dtype.name], "shape": list(value.shape)})
        return {"outputs": described, "peak_bytes": memory_bytes()}

    def profile(self) -> dict[str, Any]:
        return {"file": self.session.end_profiling()}


def mark() -> None:
    """Tell an instruction counter that one inference is over: a system call that fails and changes nothing."""
    try:  # noqa: SIM105 - the fewer instructions here, the better
        os.getpriority(os.PRIO_PROCESS, MARK)
    except OSError:
        pass


def read_commands(commands: queue.Queue[str]) -> None:
    """Pass lines on; at the end of input leave at once, since nobody is there to read an answer."""
    for line in sys.stdin:
        commands.put(line)
    os._exit(0)


def serve(options: argparse.Namespace, reply: Callable[[dict[str, Any]], None]) -> int:
    """Load, say ready, obey. Returns the exit status."""
    if options.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    commands: queue.Queue[str] = queue.Queue()
    threading.Thread(target=read_commands, args=(commands,), daemon=True).start()
    try:
        runner = Runner(options)
        reply(runner.ready())
        gc.disable()
        handlers: dict[str, Callable[..., dict[str, Any]]] = {
            "run": runner.run,
            "outputs": runner.outputs,
            "profile": runner.profile,
        }
        while True:
            command, *arguments = commands.get().split()
            if command == "quit":
                return 0
            reply(handlers[command](*arguments))
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        return 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs one model for trp-bench.")
    parser.add_argument("action", choices=["probe", "serve"])
    parser.add_argument("model", nargs="?")
    parser.add_argument("inputs", nargs="?")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", default="")
    parser.add_argument("--provider", default=CPU)
    parser.add_argument("--scratch", default=".")
    parser.add_argument("--profile", default="")
    parser.add_argument("--marks", action="store_true")
    options = parser.parse_args()
    # Replies go to the real stdout; whatever libraries print goes to stderr and cannot break the protocol.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    if options.action == "probe":
        reply(probe())
        return 0
    status = serve(options, reply)
    answers.flush()
    os._exit(status)  # the thread that waits on stdin must not hold the process


if __name__ == "__main__":
    sys.exit(main())
