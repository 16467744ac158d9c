"""Programs that must not outlive this one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache


def ending_with_us(argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` and is killed when this process is killed, as far as the system can do that.

    On Linux util-linux's setpriv asks the kernel for it. Elsewhere the program itself has to notice.
    """
    setpriv = shutil.which("setpriv")
    return [*_killed_with_us(setpriv), *argv] if setpriv and _works(setpriv) else list(argv)


def _killed_with_us(setpriv: str) -> list[str]:
    return [setpriv, "--pdeathsig", "KILL", "--"]


@cache
def _works(setpriv: str) -> bool:
    """Whether this setpriv can do it: that of util-linux before 2.33 and that of busybox do not know the option."""
    try:
        return subprocess.run([*_killed_with_us(setpriv), "true"], capture_output=True).returncode == 0
    except OSError:
        return False
