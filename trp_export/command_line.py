"""The command line that makes the same export again."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from trp_export.flags import arguments
from trp_export.options import Options

if TYPE_CHECKING:
    from trp_export.load.source import Source


def command_line(source: Source, options: Options) -> str:
    """`trp-export` with every option that is not at its default. Files by name only: folders are the user's own.

    A model that did not come from an ONNX file is called MODEL.
    """
    model = source.path.name if source.path else "MODEL"
    return shlex.join(["trp-export", model, *arguments(options)])
