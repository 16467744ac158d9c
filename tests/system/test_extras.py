"""Packages that a plain installation leaves out: what still works, and what the errors say."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from command import Command
from models import build, save

from trp_export.errors import OptionError
from trp_export.system import extras

ROOT = Path(__file__).parents[2]
NETWORK = ROOT / "models_zoo" / "weights" / "resnet20-cifar10.pt"
IMAGES = ROOT / "models_zoo" / "images" / "cifar10-256.npz"

# Python in which the packages of the extras cannot be found, as after `pip install .`; then a command runs.
WITHOUT_EXTRAS = """
import sys
from importlib.abc import MetaPathFinder

class Hide(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
from trp_export.cli.export import main
main()
"""


@pytest.fixture
def no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda package: package not in extras.EXTRAS)


def test_require_passes_installed_packages() -> None:
    extras.require("this", "torch", "matplotlib")


def test_require_names_the_missing_package_and_the_command_that_installs_it(no_extras: None) -> None:
    with pytest.raises(OptionError, match=r"--plot needs matplotlib.* pip install 'trp-export\[plot\]'"):
        extras.require("--plot", "matplotlib")


def test_every_extra_in_an_error_installs_its_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package, extra in extras.EXTRAS.items():
        assert any(entry.startswith(package) for entry in project["optional-dependencies"][extra])
        assert not any(entry.startswith(f"{package}>") for entry in project["dependencies"])


@pytest.mark.parametrize(
    ("model", "options", "feature"),
    [
        (NETWORK, (), "resnet20-cifar10.pt, which is not an ONNX file,"),
        ("model.onnx", ("--calib", IMAGES, "--tune", "1min"), "--tune"),
    ],
)
def test_export_without_torch_refuses_what_needs_it(
    no_extras: None, refuses: Command, tmp_path: Path, model: object, options: tuple[object, ...], feature: str
) -> None:
    save(build(), tmp_path / "model.onnx")
    error = refuses(2, model, "--macs", "1.2", *options, "--no-bench")
    assert error.startswith(f"error: {feature} needs torch, which is not installed: ")


def test_export_of_an_onnx_file_runs_without_the_extras(tmp_path: Path) -> None:
    save(build(), tmp_path / "model.onnx")
    program = WITHOUT_EXTRAS.format(hidden={*extras.EXTRAS, "safetensors"})
    arguments = ["model.onnx", "--energy", "0.9", "--no-bench", "--bundle", "bundle", "--calib", "synthetic"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bundle" / "manifest.json").is_file()
