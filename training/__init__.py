"""Training for low rank: a class for anyone's loop, networks cut into factors, and the trp-train command."""

from training.pairs import decompose, low_rank_copy
from training.ranks import MacsBudget
from training.settings import TRPSettings
from training.trp import TRP
from trp_export.planning.rules import Energy, Threshold

__all__ = ["TRP", "Energy", "MacsBudget", "TRPSettings", "Threshold", "decompose", "low_rank_copy"]
