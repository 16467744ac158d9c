"""The packages that a plain installation leaves out, and the command that installs each."""

from __future__ import annotations

from importlib.util import find_spec

from trp_export.errors import OptionError

# Package -> the extra of this project that installs it (see pyproject.toml).
EXTRAS = {
    "torch": "torch",
    "torchvision": "torch",
    "onnxscript": "torch",
    "matplotlib": "plot",
    "webdataset": "data",
    "datasets": "data",
}


def is_installed(package: str) -> bool:
    """Look for a package without importing it."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # From an import hook that hides it.
        return False


def require(feature: str, *packages: str) -> None:
    """Raise OptionError, with the command that installs it, for the first of `packages` that is missing.

    `feature` names what needs them, as in "--tune" or "a PyTorch model".
    """
    for package in packages:
        if not is_installed(package):
            raise OptionError(
                f"{feature} needs {package}, which is not installed: run pip install 'trp-export[{EXTRAS[package]}]'."
            )
