"""Training for low rank or fewer channels: classes for any training loop, and the commands that use them.

Names are imported on first use, so that the help of the commands does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # As in typing, whose import would delay the moment from which Ctrl-C is handled.

if TYPE_CHECKING:
    from typing import Any

    from training.channels.csgd import CSGD
    from training.channels.dagger import Dagger
    from training.channels.magnitude import Magnitude
    from training.channels.settings import CSGDSettings, DaggerSettings, MagnitudeSettings, Widths
    from training.cut import decompose, low_rank_copy
    from training.settings import ByName, TRPSettings
    from training.trp import TRP
    from trp_export.rules import Energy, Macs, Rank, Threshold

__all__ = [
    "CSGD",
    "TRP",
    "ByName",
    "CSGDSettings",
    "Dagger",
    "DaggerSettings",
    "Energy",
    "Macs",
    "Magnitude",
    "MagnitudeSettings",
    "Rank",
    "TRPSettings",
    "Threshold",
    "Widths",
    "decompose",
    "low_rank_copy",
]

_HOMES = {
    "CSGD": "training.channels.csgd",
    "CSGDSettings": "training.channels.settings",
    "Dagger": "training.channels.dagger",
    "DaggerSettings": "training.channels.settings",
    "Magnitude": "training.channels.magnitude",
    "MagnitudeSettings": "training.channels.settings",
    "TRP": "training.trp",
    "ByName": "training.settings",
    "Energy": "trp_export.rules",
    "Macs": "trp_export.rules",
    "Rank": "trp_export.rules",
    "TRPSettings": "training.settings",
    "Threshold": "trp_export.rules",
    "Widths": "training.channels.settings",
    "decompose": "training.cut",
    "low_rank_copy": "training.cut",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
