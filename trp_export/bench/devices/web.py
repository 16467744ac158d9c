"""WebAssembly: a page in a headless Chromium for each process, or Node for a smoke test where there is no browser.

No browser driver is needed: the page asks a server of ours on 127.0.0.1 for commands and posts its replies. The server
sends the headers that isolate the page, without which a browser has no threads and a clock of 0.1 ms.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trp_export.bench.devices.base import Device, Runner, Settings, Start, Turn, cached
from trp_export.bench.devices.local import ROUNDS, LocalDevice, PipeRunner, fetch_below
from trp_export.bench.devices.page_server import FILES, SCRIPT, Page, PageServer
from trp_export.bench.devices.pipe import Pipe, end_group, run_bounded
from trp_export.bench.devices.replies import (
    MOST_LINE_BYTES,
    decode,
    read_output_files,
    read_ready,
    read_reply,
    read_turn,
)
from trp_export.bench.devices.staging import copy_local, write_inputs
from trp_export.bench.environment import ROWS_AT_ONCE, Machine
from trp_export.bench.models import BenchModel
from trp_export.errors import DeviceError
from trp_export.system.processes import ending_with_us
from trp_export.system.scratch import Scratch

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


class PageRunner:
    """A browser of its own with one page. See base.Runner."""

    def __init__(self, browser: str, url: str, page: Page, profile: Path, start: Start, what: str) -> None:
        self._page, self._start, self._what = page, start, what
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        argv = [browser, *FLAGS, *(["--no-sandbox"] if root else []), f"--user-data-dir={profile}", url]
        quiet = subprocess.DEVNULL
        scratch = {**os.environ, "TMPDIR": str(profile.parent)}  # it is ended before it removes what it makes there
        self._process = subprocess.Popen(
            ending_with_us(argv), stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True, env=scratch
        )
        try:
            self.ready = read_ready(self._receive(), replace(start, provider="wasm"), what)
            if self.ready.threads != start.threads:
                raise DeviceError(f"{what} uses {self.ready.threads} threads although {start.threads} were asked for.")
        except BaseException:
            self.close()
            raise

    def run(self, samples: int, inner: int) -> Turn:
        """See base.Runner."""
        return read_turn(self.ask(f"run {samples} {inner}"), samples, self._what)

    def outputs(self, most_bytes: int) -> list[np.ndarray | None]:
        """See base.Runner."""
        files = read_output_files(self.ask("outputs"), most_bytes, self._what)
        return [None if file is None else decode(self._page.outputs.pop(file.name, b""), file) for file in files]

    def ask(self, command: str) -> dict[str, Any]:
        """See base.Runner."""
        self._page.commands.put(command)
        return self._receive()

    def close(self) -> None:
        """See base.Runner."""
        self._page.commands.put("quit")
        end_group(self._process)

    def _receive(self) -> dict[str, Any]:
        """The page's next reply; a browser that ends meanwhile is noticed within a second."""
        waited_s = 0.0
        while True:
            try:
                reply = self._page.replies.get(timeout=1.0)
                break
            except queue.Empty:
                waited_s += 1.0
            if self._process.poll() is not None:
                raise DeviceError(f"{self._what}: the browser ended with status {self._process.returncode}.")
            if waited_s >= self._start.timeout_s:
                self.close()
                raise DeviceError(f"{self._what} gave no answer for {waited_s:.0f} s and was ended.")
        return read_reply(reply, self._what)


class WebDevice:
    """See the module. `engine` is the browser's program, or node's."""

    unit = "ns"
    shortest_sample_ns = 1e6  # the clock of an isolated page has steps of 5000 ns
    warm_window_ns = 5e8  # the engine compiles twice, the better code comes some hundred ms later
    rounds = ROUNDS

    def __init__(self, engine: str, in_node: bool, files: Path, folder: Path) -> None:
        self.name = "web:node" if in_node else "web"
        self._engine, self._in_node, self._files, self._folder = engine, in_node, files, folder
        self._cases: tuple[BenchModel, ...] = ()
        self._started = 0
        self._server = PageServer(files)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()

    def probe(self) -> Machine:
        """See base.Device: this computer, in which a browser cannot be pinned to cores without slowing it."""
        done = run_bounded([self._engine, "--version"], what=self.name, timeout_s=60, most_bytes=MOST_LINE_BYTES)
        version = done.output.decode(errors="replace").strip().split(" built on")[0]
        machine = LocalDevice(self._folder).probe()
        engine = f"Node {version}" if self._in_node else version
        return replace(
            machine, system=f"{machine.system}, {engine}", can_pin=False, onnxruntime="web", block=ROWS_AT_ONCE
        )

    def stage(self, cases: Sequence[BenchModel]) -> None:
        """See base.Device."""
        self._cases = tuple(cases)
        for index, case in enumerate(cases):
            copy_local(case, self._folder / str(index))
            write_inputs(case, self._folder / str(index))

    def start(self, index: int, start: Start) -> Runner:
        """See base.Device."""
        if start.provider not in ("CPUExecutionProvider", "wasm"):
            raise DeviceError(f"{self.name} has the wasm provider only, not {start.provider}.")
        self._started += 1
        folder, what = self._folder / str(index), f"the page that runs {self._cases[index].label}"
        data = sorted(file.name for file in folder.glob("model*.data"))
        options = {"threads": start.threads, "data": data, "ort": str(self._files)}
        if self._in_node:
            return self._start_node(folder, options, start, what)
        page = Page(folder, options)
        self._server.pages[str(self._started)] = page
        profile = self._folder / f"profile{self._started}"
        return PageRunner(self._engine, self._server.url(str(self._started)), page, profile, start, what)

    def _start_node(self, folder: Path, options: dict[str, Any], start: Start, what: str) -> PipeRunner:
        if start.threads != 1:
            raise DeviceError("web:node runs one thread; for more use Chromium (--device web).")
        (folder / "options.json").write_text(json.dumps(options), encoding="utf-8")
        pipe = Pipe([self._engine, str(SCRIPT)], what=what, folder=folder)
        return PipeRunner(pipe, replace(start, provider="wasm"), fetch_below(folder))


def browser() -> str:
    """The first Chromium or Chrome found; $TRP_BENCH_BROWSER goes first. Empty where there is none."""
    names = (os.environ.get("TRP_BENCH_BROWSER", ""), *BROWSERS)
    mac = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    return next((found for name in (*names, mac) if name and (found := shutil.which(name))), "")


def missing_web(settings: Settings) -> str:
    """What to install before a browser, or at least Node, can be used."""
    if not browser() and not shutil.which("node"):
        return "no Chromium or Chrome; install one (apt-get install chromium), or name it in TRP_BENCH_BROWSER"
    files = settings.web or cached("web")
    absent = [name for name in FILES if not (files / name).is_file()]
    return (
        f"no {' and '.join(absent)} in {files}; run tools/setup_web.py, or name their folder: --web-files"
        if absent
        else ""
    )


@contextmanager
def open_web(argument: str, settings: Settings) -> Iterator[Device]:
    """Chromium, or Node where `argument` is `node`. Raises DeviceError."""
    if argument not in ("", "node"):
        raise DeviceError(f"the web device is web or web:node, not web:{argument}.")
    engine = shutil.which("node") if argument == "node" else browser()
    if not engine:
        other = "node; install it (apt-get install nodejs)" if argument else "Chromium or Chrome; web:node needs none"
        raise DeviceError(f"no {other}.")
    files = (settings.web or cached("web")).absolute()
    with Scratch() as scratch:
        device = WebDevice(engine, argument == "node", files, scratch.folder)
        try:
            yield device
        finally:
            device.close()
