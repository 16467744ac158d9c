"""Does the result compute what its factors say, and how far did truncation move the outputs?"""

from trp_export.runtime.distance import Distance
from trp_export.verify.calibration_images import Seen, compare_on_seen
from trp_export.verify.evidence import Deviation, Files, verify_export
from trp_export.verify.judge import Agreement, Judge, Score, open_judge

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
