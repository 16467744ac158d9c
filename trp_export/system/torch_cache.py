"""torch makes a cache folder in the temporary folder as soon as it is used. A command keeps its own and removes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from trp_export.errors import OutputError
from trp_export.system.scratch import Scratch

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def private_torch_cache() -> Iterator[None]:
    """Have torch put its cache into a scratch folder, also in processes started inside.

    A folder that the user names in the variable is left alone.
    """
    if _VARIABLE in os.environ:
        yield
        return
    with ExitStack() as stack:
        with suppress(OutputError):  # Without a temporary folder torch fails, if it is needed at all.
            os.environ[_VARIABLE] = str(stack.enter_context(Scratch()).folder / "torch")
            stack.callback(os.environ.pop, _VARIABLE, None)
        yield
