"""The families of attempts, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import bad_days
import bundles
import damage
import devices
import images
import injection
import interrupts
import models
import outputs
import privacy
import surroundings
import trainings
import tricks
from attempt import Attempt
from kit import Kit

Maker = Callable[[Kit], Iterator[Attempt]]


def _of(family: str, make: Maker) -> Maker:
    return lambda kit: (attempt for attempt in make(kit) if attempt.family == family)


FAMILIES: Mapping[str, Maker] = {
    "ONNX files": models.attempts,
    **{family: _of(family, damage.attempts) for family in ("damaged files", "documents", "arrays", "saved states")},
    "images": images.attempts,
    "injection": injection.attempts,
    "private paths": privacy.attempts,
    "bundles": bundles.attempts,
    "outputs": outputs.attempts,
    **{
        family: _of(family, interrupts.attempts)
        for family in ("Ctrl-C while starting", "stopped exports", "killed exports")
    },
    "stopped trainings": trainings.attempts,
    "surroundings": surroundings.attempts,
    "tricks": tricks.attempts,
    "bad days": bad_days.attempts,
    "hostile boards": devices.attempts,
}
