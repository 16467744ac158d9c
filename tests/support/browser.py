"""A headless Chromium that tests drive as a user would, over the DevTools protocol on a pipe: no driver is needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trp_export.bench.devices.pipe import end_group
from trp_export.bench.devices.web import FLAGS, browser

CHROMIUM = browser()
MISSING = "needs Chromium: apt-get install chromium"


# Chromium reads commands from 3 and writes events to 4: puts the two ends there, then becomes the browser.
_MOVE = """
import os, sys
reads, writes, *argv = sys.argv[1:]
os.dup2(int(reads), 3), os.dup2(int(writes), 4), os.execvp(argv[0], argv)
"""


class Page:
    """One page. `problems` are errors that it logged or did not catch."""

    def __init__(self, chromium: Chromium) -> None:
        self._chromium = chromium
        target = chromium.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = chromium.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.problems = chromium.problems.setdefault(self._session, [])
        for domain in ("Page", "Runtime", "Log", "DOM", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol."""
        return self._chromium.call(method, self._session, **parameters)

    def resize(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """A window of that many CSS pixels, a phone's where it is narrow."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Go there and wait until everything is loaded."""
        self.call("Page.navigate", url=url)
        self.wait_for(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise's once it is there. Raises where it throws."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    def wait_for(self, condition: str, timeout_s: float = 120) -> None:
        """Until the expression is true."""
        end = time.monotonic() + timeout_s
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"{condition} did not come true; {self.evaluate('document.body.innerText')}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """What a reader sees of an element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def set_files(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files, as the dialog would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def click(self, selector: str) -> None:
        """Scroll there and click in the middle."""
        x, y = self.place(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y)

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of an element, in the window."""
        box = self.evaluate(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); "
            "one.scrollIntoView({block: 'center'}); const box = one.getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        return float(box[0]), float(box[1])

    def mouse(self, kind: str, x: float, y: float) -> None:
        """mousePressed, mouseMoved or mouseReleased, with the left button."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def press(self, key: str, text: str | None = None) -> None:
        """One key, by its name in JavaScript."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        code = {" ": "Space"}.get(key, key)
        parameters = {"key": key, "code": code, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **parameters, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **parameters)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the whole page, or of the window."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """As it prints."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"]))


class Chromium:
    """The browser at the other end of the pipe."""

    def __init__(self, profile: Path, scratch: str, flags: Sequence[str]) -> None:
        self.problems: dict[str, list[str]] = {}
        self._replies: queue.Queue[dict[str, Any]] = queue.Queue()
        self._number = 0
        commands, self._commands = os.pipe()
        self._events, events = os.pipe()
        # Not 3 or 4 themselves, which one would take from the other.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, events)]
        program = [sys.executable, "-ESc", _MOVE, *map(str, ends), CHROMIUM, *FLAGS]
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        fixed = ["--remote-debugging-pipe", "--hide-scrollbars", f"--user-data-dir={profile}"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [*program, *root, *fixed, *flags, "about:blank"],
            pass_fds=ends,
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
            env={**os.environ, "TMPDIR": scratch},
        )
        for end in (commands, events, *ends):
            os.close(end)
        threading.Thread(target=self._read, daemon=True).start()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._replies.get(timeout=120)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def close(self) -> None:
        """End it."""
        end_group(self._process)
        os.close(self._commands)

    def _read(self) -> None:
        rest = b""
        with os.fdopen(self._events, "rb", buffering=0) as events:
            while part := events.read(1 << 16):
                *messages, rest = (rest + part).split(b"\0")
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._replies.put(message)
                    else:
                        self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        kind, told = event["method"], event["params"]
        problems = self.problems.setdefault(event.get("sessionId", ""), [])
        if kind == "Runtime.exceptionThrown":
            problems.append(json.dumps(told["exceptionDetails"]))
        elif kind == "Log.entryAdded" and told["entry"]["level"] == "error":
            problems.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif kind == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            problems.append(json.dumps(told["args"]))


@contextmanager
def chromium(folder: Path, *flags: str) -> Iterator[Page]:
    """A page in a fresh browser whose profile lies in `folder`.

    What it makes elsewhere goes to a folder of its own, as it is killed before it could remove that; the path of a
    socket in it has to be short.
    """
    with tempfile.TemporaryDirectory(prefix="trp.", ignore_cleanup_errors=True) as scratch:
        one = Chromium(folder / "profile", scratch, flags)
        try:
            yield Page(one)
        finally:
            one.close()
