"""A network whose process is killed in mid-epoch, once, for tests of restarts; `dying_networks:dies_once`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tiny_networks import Tiny
from torch import Tensor, nn

DEADLY_STEP = 6


class DiesOnce(Tiny):
    """Kills its process in training step 6 of a process, where the file named by DIES_AT does not exist yet.

    Where that is a folder it does so at every start. Of several processes only the last one dies.
    """

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__(num_classes, norm=False)
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        note, last = os.environ.get("DIES_AT"), int(os.environ.get("WORLD_SIZE", "1")) - 1
        if note and self.training and self.steps == DEADLY_STEP and int(os.environ.get("RANK", "0")) == last:
            place = Path(note)
            if not place.is_file():
                if not place.exists():
                    place.write_text("died")
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def dies_once(num_classes: int = 2) -> nn.Module:
    return DiesOnce(num_classes)
