"""Does the result compute what its factors say, and how far did truncation move the outputs?"""

from trp_export.verify.compare import Distance
from trp_export.verify.evidence import Deviation, Files, verify_export
from trp_export.verify.judge import Agreement, Judge, Score, open_judge
from trp_export.verify.seen import Seen, compare_on_seen

__all__ = [
    "Agreement",
    "Deviation",
    "Distance",
    "Files",
    "Judge",
    "Score",
    "Seen",
    "compare_on_seen",
    "open_judge",
    "verify_export",
]
