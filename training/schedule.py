"""The learning rate over a run."""

from __future__ import annotations

from math import cos, pi

_WARM_UP = 0.05


def learning_rate(schedule: str, peak: float, progress: float) -> float:
    """The rate at `progress` in [0, 1) of the run.

    `step`: a tenth of the peak from 81/164 on and a hundredth from 122/164, as the TRP authors train. `cosine`: linear
    warm-up over the first 5 %, then half a cosine down to zero.
    """
    if schedule == "step":
        return peak * (1.0 if progress < 81 / 164 else 0.1 if progress < 122 / 164 else 0.01)
    if progress < _WARM_UP:
        return peak * progress / _WARM_UP
    return peak * 0.5 * (1 + cos(pi * (progress - _WARM_UP) / (1 - _WARM_UP)))
