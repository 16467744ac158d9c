"""Damages files at random and runs the command on each, in this process: a program for test_fuzz.py to watch.

    python tests/support/fuzz.py KIND FIRST COUNT FOLDER [option ...]

KIND is onnx, pt, legacy, safetensors or plan; damage number FIRST and COUNT - 1 more are tried. Ends with 1 and
says what happened at the first run that does anything but succeed or fail with a line and a documented exit code.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import numpy as np

MEMORY_BYTES = 8 * 2**30
LONGEST_S = 60  # of this process; test_fuzz.py watches the clock
DOCUMENTED = (0, 2, 3, 4, 5, 7)


def main() -> None:
    kind, first, count, folder, *options = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    source = sorted(Path(folder).glob("sound.*"))[0]
    sound = source.read_bytes()
    damage = {"onnx": damage_onnx, "plan": damage_text}.get(kind, damage_bytes)
    for number in range(int(first), int(first) + int(count)):
        path = source.with_name(f"damaged{source.suffix}")
        path.write_bytes(damage(sound, np.random.default_rng(number)))
        arguments = [str(path), *options]
        if kind == "plan":
            arguments = [str(source.with_name("model.onnx")), "--plan", str(path), *options]
        complaint = run(arguments)
        if complaint:
            sys.exit(f"{kind} {number}: {complaint}")


def run(arguments: list[str], documented: tuple[int, ...] = DOCUMENTED) -> str | None:
    """What was wrong with the way the command ended, None where nothing was."""
    from trp_export.cli import export as cli

    sys.argv = ["trp-export", *arguments]
    out, err, code, start = io.StringIO(), io.StringIO(), None, time.process_time()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    message = err.getvalue()
    if code not in documented or "Traceback" in message:
        return f"exit {code}: {message}"
    if code and not (message.startswith("error: ") and len(message.splitlines()) <= 4):
        return f"exit {code} with more than a line or two: {message}"
    if time.process_time() - start > LONGEST_S:
        return f"computed for {time.process_time() - start:.0f} s"
    return None


def damage_bytes(sound: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, with bits turned over, or with a piece repeated, removed or replaced."""
    data = bytearray(sound)
    start, end = np.sort(rng.integers(0, len(data), 2))
    choice = rng.integers(5)
    if choice == 0:
        return bytes(data[:end])
    if choice == 1:
        for place in rng.integers(0, len(data), rng.integers(1, 20)):
            data[place] ^= 1 << int(rng.integers(8))
    elif choice == 2:
        data[start:start] = data[start : min(end, start + 500)]
    elif choice == 3:
        del data[start : min(end, start + 100)]
    else:
        # Headers are short and lie at either end: hit them as often as the weights.
        near = rng.choice([0, max(0, len(data) - 600)])
        place = int(near + rng.integers(0, min(600, len(data))))
        data[place : place + 4] = rng.bytes(4)
    return bytes(data)


def damage_text(sound: bytes, rng: np.random.Generator) -> bytes:
    """A JSON document with one value replaced; now and then with its bytes damaged."""
    if rng.random() < 0.3:
        return damage_bytes(sound, rng)
    document = json.loads(sound)
    places = list(walk(document))
    holder, key = places[rng.integers(len(places))]
    odd = (None, True, -1, 0, 10**30, 1e308, "", "x" * 1000, [], {}, [[]], {"name": 1}, "matrix")
    holder[key] = odd[rng.integers(len(odd))]
    return json.dumps(document).encode()


def walk(value: object) -> Iterator[tuple[dict | list, object]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from walk(inner)


def damage_onnx(sound: bytes, rng: np.random.Generator) -> bytes:
    """Bytes damaged, or fields of the message changed so that it still parses."""
    import onnx

    if rng.random() < 0.3:
        return damage_bytes(sound, rng)
    proto = onnx.load_model_from_string(sound)
    for _ in range(rng.integers(1, 4)):
        messages = list(walk_messages(proto))
        with suppress(ValueError):  # protobuf itself refuses some values.
            change_field(messages[rng.integers(len(messages))], rng)
    return proto.SerializeToString()


def walk_messages(message: object) -> Iterator[object]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from walk_messages(inner)


NUMBERS = (0, 1, -1, 2, 3, 7, 17, 255, 2**31 - 1, -(2**31))


def change_field(message: object, rng: np.random.Generator) -> None:
    fields = message.ListFields()
    if not fields:
        return
    field, value = fields[rng.integers(len(fields))]
    if rng.random() < 0.2:
        message.ClearField(field.name)
    elif field.is_repeated:
        change_repeated(value, field, rng)
    elif field.message_type is None:
        setattr(message, field.name, changed(value, rng))


def change_repeated(values: object, field: object, rng: np.random.Generator) -> None:
    index = int(rng.integers(len(values)))
    choice = rng.integers(3)
    if choice == 0:
        del values[index]
    elif choice == 1:
        values.append(values[index])
    elif field.message_type is None:
        values[index] = changed(values[index], rng)


def changed(value: object, rng: np.random.Generator) -> object:
    if isinstance(value, bytes):
        return damage_bytes(value, rng) if value else b"x"
    if isinstance(value, str):
        return str(rng.choice(["", "x", "Conv", "a", "image", "logits", "conv1.weight", value + "2", value * 100]))
    if isinstance(value, float):
        return float(rng.choice([0.0, -1.0, np.nan, np.inf, 1e30]))
    return int(rng.choice(NUMBERS))


if __name__ == "__main__":
    main()
