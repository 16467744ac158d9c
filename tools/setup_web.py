"""Fetch the two files of onnxruntime-web that `trp-bench --device web` needs.

    python tools/setup_web.py [FOLDER] [--version 1.30.0]

They come from the npm registry through npm: 33 MB to download, 14 MB in FOLDER (default: where trp-bench looks). A
second call does nothing unless --version differs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import click

from trp_export.bench.devices.base import cached
from trp_export.bench.devices.page_server import FILES
from trp_export.errors import DeviceError, TrpError
from trp_export.system.files import atomic_write

VERSION = "1.30.0"
# The version of the files. It is written last, so the files are complete where it exists.
NOTED = "version.txt"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=cached("web"))
@click.option("--version", default=VERSION, show_default=True)
def main(folder: Path, version: str) -> None:
    """Fetch what `trp-bench --device web` needs into FOLDER (default: where trp-bench looks)."""
    folder = folder.absolute()
    try:
        if version_in(folder) != version:
            (folder / NOTED).unlink(missing_ok=True)
            fetch(folder, version)
            (folder / NOTED).write_text(version)
    except (TrpError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{folder} is ready: onnxruntime-web {version}")


def version_in(folder: Path) -> str | None:
    """The version of the files in `folder`; None if they are not all there, or may be incomplete."""
    noted = folder / NOTED
    return noted.read_text() if all(path.is_file() for path in (noted, *(folder / name for name in FILES))) else None


def fetch(folder: Path, version: str = VERSION) -> None:
    """Write the two files of that version to `folder`. Raises DeviceError, OutputError."""
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
    main()
