"""Outputs onto inputs and onto each other, onto what is no plain file, and disks that are full."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from attempt import Attempt, Call, Ended
from kit import EXPORT, TRAIN, Kit

Make = Callable[[Path], Any]
CALIB = ("--calib", "good.npz")
# Outputs of the export: the option, a name that fits it, and what else it needs.
OUTPUTS = {
    "-o": ("o.onnx", ()),
    "--report": ("r.html", ()),
    "--calib-stats": ("s.npz", CALIB),
    "--bundle": ("b", ()),
}
NAMES = (
    "o" * 250 + ".onnx",
    "o" * 300 + ".onnx",
    "\udcff.onnx",
    "o\n.onnx",
    ".onnx",
    "-o.onnx",
    "absent/o.onnx",
    "o.txt",
)
TO_A_FULL_DISK = (
    ("-o", "o.onnx", "--report", "r.html"),
    ("--bundle", "b"),
    (*CALIB, "--calib-stats", "s.npz", "-o", "o.onnx"),
)
INPUTS = ("apart.onnx", "apart.data", "good.npz", "labelled.npz", "images/3.png", "plan.json", "input.npz")


# Files that an option names within a text, or finds in a folder: what is read, and what else the export needs.
NAMED = {
    "alphabet.txt": ("--eval", "images", "--metric", "sequences:alphabet.txt"),
    "measure.py": ("--eval", "images", "--metric", "measure.py:measure"),
    "batches.py": ("--calib", "batches.py:batches"),
    "module.py": ("--calib", "module:batches"),
    "arrays/1.npy": ("--calib", "arrays"),
    "images/0.txt": ("--calib", "images"),
    "images/inner/0.png": ("--calib", "images"),
    "images/0.label.png": ("--eval", "images"),
}
BATCHES = """
import numpy as np
def batches():
    for seed in range(4):
        yield {"image": np.random.default_rng(seed).standard_normal((4, 3, 12, 12)).astype(np.float32)}
"""


def attempts(kit: Kit) -> Iterator[Attempt]:
    """Each output option with each input, each odd place, and each size of the disk."""
    for name, prepare in (*_of_export(kit), *_of_others(kit)):
        yield Attempt("outputs", name, prepare)


def _of_export(kit: Kit) -> Iterator[tuple[str, Make]]:
    ways = ("directly", "a link", "a hard link", "through a linked folder")
    for option, target, way, more in product(OUTPUTS, INPUTS, ways, ((), ("--dry-run",))):
        yield f"{option} onto {target}, {way} {' '.join(more)}", partial(_onto, kit, option, target, way, more)
    for option, (place, make) in product(OUTPUTS, _places().items()):
        yield f"{option} {place}", partial(_odd, kit, option, make)
    for option, (target, needs), way in product(("--report", "--calib-stats"), NAMED.items(), ("directly", "a link")):
        yield f"{option} onto {target} that is read, {way}", partial(_onto_named, kit, option, target, needs, way)
    for second in ("o.onnx", "o.json", "o.onnx.data", "./x/../o.json"):
        yield f"-o o.onnx and --report {second}", partial(_both, kit, "o.onnx", second)
    for name in NAMES:
        yield f"-o {name[:20]!r}", partial(_named, kit, name)
    for limit, options in product((0, 100, 1000, 5000, 8000, 12_000, 20_000), TO_A_FULL_DISK):
        yield f"a disk with room for {limit} bytes, {options[0]}", partial(_full, kit, limit, options)


def _of_others(kit: Kit) -> Iterator[tuple[str, Make]]:
    for option, target in product(
        ("--save", "--plot", "--against"), ("base.onnx", "small.onnx", "samples.json", "input.npz")
    ):
        yield f"trp-bench {option} {target}", partial(_bench, kit, option, target)
    for limit, option in product((100, 1000, 10_000), ("--save", "--plot")):
        yield f"trp-bench, a disk with room for {limit} bytes, {option}", partial(_full_of_bench, kit, limit, option)
    for place, make in _places().items():
        yield f"trp-bench --save {place}", partial(_bench_odd, kit, make)
        yield f"trp-train -o {place}", partial(_train_odd, kit, make)
    for target in ("data", "data/train.npz", "run/model.pt", "."):
        yield f"trp-train -o {target}", partial(_train, kit, target)
    for name in ("last.pt", "model.pt", "history.jsonl", "history.png", "odd-images.txt", "state-1-0.pt"):
        yield f"a run whose {name} is a link to another file", partial(_linked_run, kit, name)
    for limit in (100, 5_000, 200_000, 1_000_000):
        yield f"trp-train, a disk with room for {limit} bytes", partial(_full_of_training, kit, limit)


def _onto(kit: Kit, option: str, target: str, way: str, more: tuple[str, ...], folder: Path) -> Call:
    kit.copy(folder, "apart.onnx", "apart.data", "good.npz", "labelled.npz", "images", "plan.json", "input.npz")
    place = target
    if way == "a link":
        place = "way" + Path(target).suffix
        (folder / place).symlink_to(target)
    elif way == "a hard link":
        place = "way" + Path(target).suffix
        os.link(folder / target, folder / place)
    elif way == "through a linked folder":
        (folder / "linked").symlink_to(".")
        place = f"linked/{target}"
    calib = "images" if target.startswith("images") else "good.npz"
    arguments = ["apart.onnx", "--plan", "plan.json", "--no-bench", "--quiet", "--calib", calib, *more]
    arguments += ["--eval", "labelled.npz", "--input", "input.npz", option, place]
    # Another name of an image outside the folder is replaced; the image stays.
    second_name = way == "a hard link" and target.startswith("images")
    codes = (0, 2, 3, 7) if more or second_name else (2, 3, 7)
    return Call("trp-export", arguments, codes=codes, writes=(place,) if second_name else ())


def _onto_named(kit: Kit, option: str, target: str, needs: tuple[str, ...], way: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "images", "good.npz")
    (folder / "images" / "inner").mkdir()
    for name in ("0.label.png", "inner/0.png"):
        shutil.copyfile(kit["images"] / "0.png", folder / "images" / name)
    (folder / "images" / "0.txt").write_text("0 0.5 0.5 1 1")
    (folder / "alphabet.txt").write_text("a\nb\n")
    (folder / "measure.py").write_text("def measure(name, outputs): return 1.0\n")
    for name in ("batches.py", "module.py"):
        (folder / name).write_text(BATCHES)
    (folder / "arrays").mkdir()
    for index in range(4):
        np.save(folder / "arrays" / f"{index}.npy", np.full((3, 12, 12), index, np.float32))
    place = target
    if way == "a link":
        place = f"way{Path(target).suffix}"
        (folder / place).symlink_to(target)
    calib = () if "--calib" in needs else CALIB
    return Call("trp-export", ["base.onnx", *EXPORT, *needs, *calib, "-o", "o.onnx", option, place], codes=(2, 7))


def _places() -> dict[str, Make]:
    """What may lie where an output should go. Links to pipes stand for /dev/stdout."""

    def link_to_pipe(path: Path) -> None:
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")

    def link_to_file(path: Path) -> None:
        path.with_name("kept").write_text("kept")
        path.symlink_to("kept")

    return {
        "a link to a file": link_to_file,
        "a link to a pipe": link_to_pipe,
        "a link to nothing": lambda path: path.symlink_to("absent"),
        "a loop of links": lambda path: path.symlink_to(path.name),
        "a link to /dev/null": lambda path: path.symlink_to("/dev/null"),
        "a link to /dev/full": lambda path: path.symlink_to("/dev/full"),
        "a pipe": os.mkfifo,
        "a folder with a file": lambda path: (path.mkdir(), (path / "kept").write_text("kept")),
    }


def _odd(kit: Kit, option: str, make: Make, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "good.npz")
    name, needs = OUTPUTS[option]
    make(folder / name)
    extra = ("-o", "o.onnx") if option not in ("-o", "--bundle") else ()
    return Call("trp-export", ["base.onnx", *EXPORT, *needs, *extra, option, name], codes=(2, 3, 7))


def _both(kit: Kit, first: str, second: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    (folder / "x").mkdir()
    return Call("trp-export", ["base.onnx", *EXPORT, "-o", first, "--report", second], codes=(2,))


def _named(kit: Kit, name: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    return Call("trp-export", ["base.onnx", *EXPORT, f"-o{name}"], codes=(0, 2, 7))


def _full(kit: Kit, limit: int, options: tuple[str, ...], folder: Path) -> Call:
    kit.copy_beside_old_outputs(folder)
    return Call(
        "trp-export",
        ["base.onnx", *EXPORT, *options],
        codes=(0, 7),
        file_bytes=limit,
        check=_all_or_none,
        writes=("o.*", "r.html"),
        is_silent=limit == 0,  # Its messages go to such a file, too.
    )


def _all_or_none(ended: Ended) -> str | None:
    """Outputs of a failure are the old ones."""
    old = [
        name
        for name in ("o.onnx", "o.json", "r.html")
        if (ended.folder / name).read_text(errors="replace") == f"old {name}"
    ]
    return f"exit {ended.code}, and only {', '.join(old)} are old" if ended.code and len(old) < 3 else None


def _bench(kit: Kit, option: str, target: str, folder: Path) -> Call:
    kit.copy(folder, "base.onnx", "small.onnx", "samples.json", "input.npz")
    arguments = ["base.onnx", "small.onnx", "--budget", "0.1", "--processes", "1", "--input", "input.npz"]
    if target == "samples.json":
        arguments[1:2] = ["--against", "samples.json"]
    reads = option == "--against"
    return Call("trp-bench", [*arguments, option, target], codes=(0, 3, 9) if reads else (2, 7))


def _bench_odd(kit: Kit, make: Make, folder: Path) -> Call:
    kit.copy(folder, "base.onnx")
    make(folder / "s.json")
    return Call("trp-bench", ["base.onnx", "--budget", "0.1", "--processes", "1", "--save", "s.json"], codes=(2, 7))


def _train_odd(kit: Kit, make: Make, folder: Path) -> Call:
    kit.copy(folder, "data")
    make(folder / "run")
    return Call("trp-train", [*TRAIN, "-o", "run"], codes=(2, 3, 7))


def _train(kit: Kit, place: str, folder: Path) -> Call:
    kit.copy(folder, "data", "run")
    return Call("trp-train", [*TRAIN, "-o", place], codes=(2, 3, 7))


def _linked_run(kit: Kit, name: str, folder: Path) -> Call:
    """A folder from somebody else: its links lead to a file that must stay."""
    kit.copy(folder, "data", "run")
    (folder / "victim").write_text("victim")
    (folder / "run" / name).unlink(missing_ok=True)
    (folder / "run" / name).symlink_to("../victim")
    arguments = ["--resume", "--states", "1", "-o", "run"]
    return Call("trp-train", arguments, codes=(0, 2, 3, 7), writes=("run/*",))


def _full_of_training(kit: Kit, limit: int, folder: Path) -> Call:
    kit.copy(folder, "data")
    return Call("trp-train", [*TRAIN, "-o", "run"], codes=(0, 7), writes=("run", "run/*"), file_bytes=limit)


def _full_of_bench(kit: Kit, limit: int, option: str, folder: Path) -> Call:
    """Enough room or none: the file is whole or absent."""
    kit.copy(folder, "base.onnx")
    name = "s.json" if option == "--save" else "p.png"
    arguments = ["base.onnx", "--budget", "0.1", "--processes", "1", option, name]
    return Call("trp-bench", arguments, codes=(0, 7), file_bytes=limit)
