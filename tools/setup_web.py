"""Fetch the two files of onnxruntime-web that `trp-bench --device web` needs.

    python tools/setup_web.py [FOLDER] [--version 1.30.0]

They come from the npm registry through npm, 33 MB for a moment, 14 MB in FOLDER (default: where trp-bench looks).
Run again, it does nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from trp_export.bench.devices.cache import cached
from trp_export.bench.devices.web import FILES
from trp_export.errors import DeviceError

VERSION = "1.30.0"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=cached("web"))
    parser.add_argument("--version", default=VERSION)
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    if all((folder / name).is_file() for name in FILES):
        print(f"{folder} is ready")
        return 0
    try:
        fetch(folder, options.version)
    except DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder} is ready: onnxruntime-web {options.version}")
    return 0


def fetch(folder: Path, version: str = VERSION) -> None:
    """Put the two files of that version in `folder`. Raises DeviceError."""
    npm = shutil.which("npm")
    if not npm:
        raise DeviceError("install npm first: apt-get install npm")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        command = [npm, "pack", "--json", f"onnxruntime-web@{version}"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        if done.returncode:
            raise DeviceError(f"npm cannot fetch onnxruntime-web {version}: {done.stderr[-300:]}")
        said = json.loads(done.stdout)
        packed = next(iter(said.values())) if isinstance(said, dict) else said[0]
        with tarfile.open(Path(place) / packed["filename"]) as archive:
            for name in FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                (folder / name).write_bytes(member.read())


if __name__ == "__main__":
    sys.exit(main())
