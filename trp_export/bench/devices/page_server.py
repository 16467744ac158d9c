"""The server that pages of a headless browser load from, ask for commands, and post their replies to."""

from __future__ import annotations

import http.server
import json
import queue
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trp_export.bench.devices.local import MOST_OUTPUT_BYTES
from trp_export.bench.devices.replies import MOST_LINE_BYTES
from trp_export.bench.runners import python_runner

SCRIPT = Path(python_runner.__file__).with_name("web_runner.mjs")
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = (
    b'<!doctype html><meta charset="utf-8"><title>trp-bench</title><script type="module" src="../runner.mjs"></script>'
)
TYPES = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}


@dataclass(slots=True)
class Page:
    """One page's mailbox: commands on their way there, replies back, and the outputs it sent."""

    folder: Path
    options: dict[str, Any]
    commands: queue.Queue[str] = field(default_factory=queue.Queue)
    replies: queue.Queue[bytes] = field(default_factory=queue.Queue)
    outputs: dict[str, bytes] = field(default_factory=dict)


class PageServer(http.server.ThreadingHTTPServer):
    """Serves pages under a secret path, so that no other page in the user's browser can read or drive them."""

    daemon_threads = True

    def __init__(self, files: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.secret = files, secrets.token_urlsafe(16)
        self.pages: dict[str, Page] = {}

    def url(self, page: str) -> str:
        """Where a browser finds that page."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.secret}/{page}/page.html"

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that is ended drops its connections, which is not an error."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """GET /SECRET/PAGE/FILE for files and commands, POST for replies and outputs."""

    protocol_version = "HTTP/1.1"
    server: PageServer

    def do_GET(self) -> None:
        """Answer with a file, or for `next` with a command as soon as there is one."""
        page, name = self._target()
        data = self._content(page, name)
        if data is None:
            self.send_error(404)
            return
        self._answer(data, TYPES.get(Path(name).suffix, "application/octet-stream"))

    def do_POST(self) -> None:
        """Keep a reply, or the bytes of an output."""
        page, name = self._target()
        size, most = self.headers.get("Content-Length", ""), MOST_LINE_BYTES if name == "reply" else MOST_OUTPUT_BYTES
        if not size.isdecimal() or int(size) > most:
            self.send_error(413)
            return
        data = self.rfile.read(int(size))
        found = self.server.pages.get(page)
        if found is not None and name == "reply":
            found.replies.put(data)
        elif found is not None:
            found.outputs[name] = data
        self._answer(b"", "text/plain")

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def _target(self) -> tuple[str, str]:
        parts = self.path.split("?")[0].split("/")
        if parts[1] != self.server.secret or len(parts) not in (3, 4):
            return "", ""
        return ("", parts[2]) if len(parts) == 3 else (parts[2], parts[3])

    def _content(self, page: str, name: str) -> bytes | None:
        found = self.server.pages.get(page)
        if name == "runner.mjs":
            return SCRIPT.read_bytes()
        if page == "ort" and name in FILES:
            return (self.server.files / name).read_bytes()
        if found is None:
            return None
        if name == "page.html":
            return PAGE
        if name == "options.json":
            return json.dumps(found.options).encode()
        if name == "next":
            return found.commands.get().encode()
        return (found.folder / name).read_bytes() if name in {file.name for file in found.folder.iterdir()} else None

    def _answer(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)
