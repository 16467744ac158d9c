"""Set up what `trp-bench --device arm` needs: ARM64 Python and onnxruntime for qemu-user, and the counting plugin.

    python tools/setup_arm.py [FOLDER]

Takes under a minute and about 200 MB, from the distribution's and Python's package registries; needs apt (Debian or
Ubuntu), qemu-user and gcc. No foreign architecture is added to the system: apt keeps its state inside FOLDER (default:
where trp-bench looks). A second call does nothing; --force starts over. The onnxruntime version is that of this Python,
so counts and outputs come from the same code on both sides.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import click

from trp_export.bench.devices.arm import CPUS, PLUGIN, guest_python, qemu_command
from trp_export.bench.devices.base import cached
from trp_export.bench.runners import python_runner

PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")
NEEDED = {"qemu-aarch64": "qemu-user", "gcc": "gcc libc6-dev", "apt-get": "a Debian or Ubuntu system", "dpkg": "dpkg"}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=cached("arm"))
@click.option("--force", is_flag=True, help="Start over.")
def main(folder: Path, force: bool) -> None:
    """Set up what `trp-bench --device arm` needs in FOLDER (default: where trp-bench looks)."""
    if missing := [package for program, package in NEEDED.items() if not shutil.which(program)]:
        raise click.ClickException(f"install first: apt-get install {' '.join(missing)}")
    folder = folder.absolute()
    if force:
        shutil.rmtree(folder, ignore_errors=True)
    if (folder / "ready").is_file():
        click.echo(f"{folder} is ready: {(folder / 'ready').read_text().strip()}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        version = fetch_python(folder)
        fetch_wheels(folder, version)
        build_plugin(folder)
        for cpu, part in CPUS.items():
            make_root(folder, cpu, part)
        versions = check(folder)
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        raise click.ClickException(f"{command}\n{(error.stderr or '').strip()[-2000:]}") from error
    (folder / "ready").write_text(versions + "\n")
    click.echo(f"{folder} is ready: {versions}")


def step(*command: str | Path) -> str:
    """Print a command, run it, and return its output."""
    print("+", " ".join(map(str, command))[:150], flush=True)
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def fetch_python(folder: Path) -> str:
    """Unpack the distribution's ARM64 Python with the libraries it and onnxruntime need. Returns its version."""
    apt = folder / "apt"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    places = {"State": "state", "State::status": "status", "Cache": "cache"}
    options = [f"-oDir::{key}={apt / place}" for key, place in places.items()]
    options += ["-oAPT::Architecture=arm64", "-oAPT::Architectures=arm64", "-oAPT::Sandbox::User=root"]
    step("apt-get", *options, "-qq", "update")
    shown = step("apt-cache", *options, "show", "python3-minimal")
    found = re.search(r"\bpython(3\.\d+)-minimal", shown)
    if not found:
        raise SystemExit("error: this distribution has no python3-minimal for arm64")
    version = found.group(1)
    packages = [f"python{version}-minimal", f"libpython{version}-stdlib", "libstdc++6", "libgcc-s1"]
    step("apt-get", *options, "-qq", "-y", "--no-install-recommends", "--download-only", "install", *packages)
    for package in sorted((apt / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, folder / "root"], check=True, capture_output=True)
    shutil.rmtree(apt)
    return version


def fetch_wheels(folder: Path, version: str) -> None:
    """Unpack onnxruntime and numpy for ARM64, in the versions of this Python where they exist for that one."""
    pinned = f"onnxruntime=={importlib.metadata.version('onnxruntime')}"
    wheels = folder / "wheels"
    tags = [f"--platform={platform}" for platform in PLATFORMS]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "-d", str(wheels)]
    step(*command, "--only-binary=:all:", f"--python-version={version}", *tags, pinned, "numpy")
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder / "site")
    shutil.rmtree(wheels)


def build_plugin(folder: Path) -> None:
    """Compile the instruction counter."""
    source = Path(python_runner.__file__).with_name("icount.c")
    step("gcc", "-O2", "-shared", "-fPIC", source, "-o", folder / PLUGIN)


def make_root(folder: Path, cpu: str, part: str) -> None:
    """A root folder for one processor: the common files, and a /proc/cpuinfo of its own.

    onnxruntime picks kernels by the part number there, and without the file reads the host's, finds no ARM core and
    crashes (github.com/pytorch/pytorch/issues/188255).
    """
    root = folder / "roots" / cpu
    (root / "proc").mkdir(parents=True, exist_ok=True)
    for entry in (folder / "root").iterdir():
        link = root / entry.name
        if not link.is_symlink():
            link.symlink_to(Path("../../root") / entry.name)
    fields = {"CPU implementer": "0x41", "CPU architecture": "8", "CPU variant": "0x0", "CPU part": part}
    lines = ["processor\t: 0", *(f"{key}\t: {value}" for key, value in fields.items()), "CPU revision\t: 1"]
    (root / "proc" / "cpuinfo").write_text("\n".join(lines) + "\n\n")


def check(folder: Path) -> str:
    """Start onnxruntime on each processor. Returns the versions."""
    program = "import onnxruntime, numpy; print('onnxruntime', onnxruntime.__version__, 'numpy', numpy.__version__)"
    for cpu in CPUS:
        output = step(*qemu_command(folder, cpu, None), guest_python(folder, cpu), "-c", program)
    qemu = subprocess.run(["qemu-aarch64", "--version"], check=True, capture_output=True, text=True).stdout
    return f"{output.strip()}, {qemu.splitlines()[0].strip()}"


if __name__ == "__main__":
    main()
