"""Pictures drawn by matplotlib: text is drawn as it is, and a file is written whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trp_export.errors import OptionError
from trp_export.system.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def literal_text() -> Iterator[None]:
    """Draw texts as they are: names come from files and may look like formulas, and LaTeX would carry out commands.

    Covers everything from the making of a figure until it is saved. The settings are matplotlib's own: it would also
    take those of a matplotlibrc in the current folder.
    """
    _import_with_any_backend()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        yield


def _import_with_any_backend() -> None:
    """Import matplotlib where MPLBACKEND names a backend that does not exist, too. It opens windows; none is needed.

    Raises OptionError where a matplotlibrc in the current folder is not a text.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    except UnicodeDecodeError as error:
        raise OptionError("matplotlib cannot read the file matplotlibrc in this folder. Remove it.") from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend is not None:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


def save_picture(figure: Figure, path: Path, *, dpi: int, remedy: str = "", **settings: Any) -> None:
    """Write the figure in the format that the name of `path` ends with. Raises OutputError."""
    with atomic_write(path, remedy=remedy) as part:
        figure.savefig(part, format=path.suffix.lower()[1:], dpi=dpi, **settings)
