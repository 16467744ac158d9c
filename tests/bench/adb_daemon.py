"""The device side of adb over TCP, enough of it to test the real adb client without a phone. Standard library only.

    python adb_daemon.py FOLDER [--full-after BYTES]     prints its port; keep to 127.0.0.1, it asks for no key

Services: `shell:` and `shell,v2:` (exit status, separate stderr, stdin), and `sync:` with STAT, SEND and RECV.
FOLDER/bin comes first in the PATH of commands, so tests can put a `getprop` there. With --full-after, files beyond
that size fail as on a full disk. The protocol is in the Android sources: packages/modules/adb/protocol.txt, SYNC.TXT.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

MOST = 256 * 1024
VERSION = 0x01000001
BANNER = b"device::ro.product.name=test;ro.product.model=Test;ro.product.device=test;features=shell_v2"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class ClosedError(Exception):
    """The other side has ended the stream or the connection."""


class Stream:
    """One service's two-way stream inside a connection; a packet is sent when the one before was acknowledged."""

    def __init__(self, link: Link, own: int, theirs: int) -> None:
        self.link, self.own, self.theirs = link, own, theirs
        self.incoming: queue.Queue[bytes] = queue.Queue()
        self.acknowledged = threading.Semaphore(0)
        self.writing = threading.Lock()
        self.closed = False
        self.rest = b""

    def read(self, size: int) -> bytes:
        while len(self.rest) < size:
            data = self.incoming.get()
            if not data:
                raise ClosedError
            self.rest += data
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    def write(self, data: bytes) -> None:
        with self.writing:
            for start in range(0, len(data), self.link.most):
                if self.closed:
                    raise ClosedError
                self.link.send(b"WRTE", self.own, self.theirs, data[start : start + self.link.most])
                self.acknowledged.acquire()

    def hang_up(self) -> None:
        """The other side is gone: wake whoever waits."""
        self.closed = True
        self.incoming.put(b"")
        self.acknowledged.release()


class Link:
    """One connection from an adb server."""

    def __init__(self, connection: socket.socket, folder: Path, full_after: int) -> None:
        self.connection, self.folder, self.full_after = connection, folder, full_after
        self.streams: dict[int, Stream] = {}
        self.sending = threading.Lock()
        self.most = MOST
        self.count = 0

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        number = int.from_bytes(command, "little")
        header = struct.pack("<6I", number, first, second, len(data), sum(data) & 0xFFFFFFFF, number ^ 0xFFFFFFFF)
        with self.sending, contextlib.suppress(OSError):
            self.connection.sendall(header + data)

    def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                raise ClosedError
            data += part
        return data

    def serve(self) -> None:
        with contextlib.suppress(ClosedError, OSError):
            while True:
                number, first, second, size, _, _ = struct.unpack("<6I", self.receive(24))
                self.handle(number.to_bytes(4, "little"), first, second, self.receive(size))
        for stream in list(self.streams.values()):
            stream.hang_up()
        self.connection.close()

    def handle(self, command: bytes, first: int, second: int, data: bytes) -> None:
        stream = self.streams.get(second)
        if command == b"CNXN":
            self.most = min(second, MOST)
            self.send(b"CNXN", VERSION, MOST, BANNER)
        elif command == b"OPEN":
            self.count += 1
            stream = self.streams[self.count] = Stream(self, self.count, first)
            self.send(b"OKAY", stream.own, first)
            service = data.rstrip(b"\0").decode()
            threading.Thread(target=self.run, args=(stream, service), daemon=True).start()
        elif stream is None:
            self.send(b"CLSE", second, first)
        elif command == b"WRTE":
            stream.incoming.put(data)
            self.send(b"OKAY", second, first)
        elif command == b"OKAY":
            stream.acknowledged.release()
        elif command == b"CLSE":
            del self.streams[second]
            self.send(b"CLSE", second, first)
            stream.hang_up()

    def run(self, stream: Stream, service: str) -> None:
        kind, _, argument = service.partition(":")
        with contextlib.suppress(ClosedError):
            if kind == "sync":
                Sync(stream, self.full_after).serve()
            elif kind.split(",")[0] == "shell":
                shell(stream, argument, self.folder, framed="v2" in kind.split(","))
        if not stream.closed:
            stream.closed = True
            self.send(b"CLSE", stream.own, stream.theirs)
        self.streams.pop(stream.own, None)


def shell(stream: Stream, command: str, folder: Path, *, framed: bool) -> None:
    """Run `command` as adbd does; when the client goes away its process group gets a hang-up signal."""
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "TRP_BENCH_PARENT": str(folder)}
    process = subprocess.Popen(
        ["sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if framed else subprocess.STDOUT,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    readers = [threading.Thread(target=forward, args=(stream, process.stdout, STDOUT if framed else None), daemon=True)]
    if framed:
        readers.append(threading.Thread(target=forward, args=(stream, process.stderr, STDERR), daemon=True))
    for reader in readers:
        reader.start()
    threading.Thread(target=feed, args=(stream, process, framed), daemon=True).start()
    for reader in readers:
        reader.join()
    status = process.wait()
    if framed:
        stream.write(struct.pack("<BIB", EXIT, 1, status if status >= 0 else 128 - status))


def forward(stream: Stream, source: IO[bytes] | None, channel: int | None) -> None:
    assert source is not None
    with contextlib.suppress(ClosedError):
        while data := os.read(source.fileno(), 32768):
            stream.write(data if channel is None else struct.pack("<BI", channel, len(data)) + data)


def feed(stream: Stream, process: subprocess.Popen[bytes], framed: bool) -> None:
    """Pass stdin on until it ends; then, if the client itself is gone, hang up on the process."""
    assert process.stdin is not None
    with contextlib.suppress(ClosedError, OSError, ValueError):
        while True:
            kind, size = struct.unpack("<BI", stream.read(5)) if framed else (STDIN, 1)
            data = stream.read(size)
            if kind == CLOSE_STDIN:
                process.stdin.close()
            elif kind == STDIN:
                process.stdin.write(data)
                process.stdin.flush()
    with contextlib.suppress(OSError):
        process.stdin.close()
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGHUP)


class Sync:
    """The file transfer service."""

    def __init__(self, stream: Stream, full_after: int) -> None:
        self.stream, self.full_after = stream, full_after

    def serve(self) -> None:
        actions: dict[bytes, Callable[[str], None]] = {b"STAT": self.stat, b"SEND": self.send, b"RECV": self.recv}
        while True:
            command, size = struct.unpack("<4sI", self.stream.read(8))
            if command == b"QUIT":
                return
            actions[command](self.stream.read(size).decode())

    def fail(self, message: str) -> None:
        self.stream.write(b"FAIL" + struct.pack("<I", len(message)) + message.encode())

    def stat(self, path: str) -> None:
        try:
            facts = Path(path).stat()
            self.stream.write(b"STAT" + struct.pack("<3I", facts.st_mode, facts.st_size, int(facts.st_mtime)))
        except OSError:
            self.stream.write(b"STAT" + bytes(12))

    def send(self, argument: str) -> None:
        path, _, mode = argument.rpartition(",")
        data = bytearray()
        while True:
            command, size = struct.unpack("<4sI", self.stream.read(8))
            if command == b"DONE":
                break
            data += self.stream.read(size)
        try:
            if len(data) > self.full_after:
                raise OSError("No space left on device")
            Path(path).write_bytes(data)
            Path(path).chmod(int(mode) & 0o777)
            self.stream.write(b"OKAY" + bytes(4))
        except OSError as error:
            self.fail(str(error))

    def recv(self, path: str) -> None:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            self.fail(str(error))
            return
        for start in range(0, len(data), 65536):
            part = data[start : start + 65536]
            self.stream.write(b"DATA" + struct.pack("<I", len(part)) + part)
        self.stream.write(b"DONE" + bytes(4))


def main() -> None:
    parser = argparse.ArgumentParser(description="A test device for adb.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full-after", type=int, default=1 << 40)
    options = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(connection, options.folder, options.full_after)
        threading.Thread(target=link.serve, daemon=True).start()


if __name__ == "__main__":
    main()
