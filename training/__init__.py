"""Training for low rank: a class for anyone's loop, networks cut into factors, and the trp-train command.

Names are imported when they are used, so that commands in this package answer before torch is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.pairs import decompose, low_rank_copy
    from training.ranks import MacsBudget
    from training.settings import TRPSettings
    from training.trp import TRP
    from trp_export.rules import Energy, Threshold

__all__ = ["TRP", "Energy", "MacsBudget", "TRPSettings", "Threshold", "decompose", "low_rank_copy"]

_HOMES = {
    "TRP": "training.trp",
    "Energy": "trp_export.planning.rules",
    "MacsBudget": "training.ranks",
    "TRPSettings": "training.settings",
    "Threshold": "trp_export.planning.rules",
    "decompose": "training.pairs",
    "low_rank_copy": "training.pairs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
