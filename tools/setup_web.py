"""Fetch the two files of onnxruntime-web that `trp-bench --device web` needs.

    python tools/setup_web.py [FOLDER] [--version 1.30.0]

They come from the npm registry through npm, 33 MB for a moment, 14 MB in FOLDER (default: where trp-bench looks).
Run again, it does nothing, unless another version is asked for.
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
from trp_export.bench.devices.page_server import FILES
from trp_export.errors import DeviceError, TrpError
from trp_export.system.files import atomic_write

VERSION = "1.30.0"
# Beside the files: the version that they are of. It is written last, so that it vouches for them.
NOTED = "version.txt"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=cached("web"))
    parser.add_argument("--version", default=VERSION)
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    try:
        if version_in(folder) != options.version:
            (folder / NOTED).unlink(missing_ok=True)
            fetch(folder, options.version)
            (folder / NOTED).write_text(options.version)
    except (TrpError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder} is ready: onnxruntime-web {options.version}")
    return 0


def version_in(folder: Path) -> str | None:
    """The version whose files lie in `folder`; None where they are not all there, or not known to be whole."""
    noted = folder / NOTED
    return noted.read_text() if all(path.is_file() for path in (noted, *(folder / name for name in FILES))) else None


def fetch(folder: Path, version: str = VERSION) -> None:
    """Put the two files of that version in `folder`, each whole. Raises DeviceError, OutputError."""
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
            found = {name: _read(archive, name, version) for name in FILES}
    for name, content in found.items():
        with atomic_write(folder / name) as part:
            part.write_bytes(content)


def _read(archive: tarfile.TarFile, name: str, version: str) -> bytes:
    try:
        member = archive.extractfile(f"package/dist/{name}")
    except KeyError as error:
        raise DeviceError(f"onnxruntime-web {version} holds no {name}; choose another --version") from error
    assert member is not None
    return member.read()


if __name__ == "__main__":
    sys.exit(main())
