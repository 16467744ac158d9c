"""Programs that must not outlive this one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence


def ending_with_us(argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` and is killed when this process is killed, as far as the system can do that.

    On Linux util-linux's setpriv asks the kernel for it. Elsewhere the program itself has to notice.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *argv] if setpriv else list(argv)
