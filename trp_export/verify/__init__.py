"""Does the result compute what its factors say, and how far did truncation move the outputs?"""

from trp_export.runtime.distance import Distance
from trp_export.verify.calibration_images import CalibrationAgreement, compare_on_calibration_images, run_both
from trp_export.verify.evidence import Deviation, Files
from trp_export.verify.export import verify_export

__all__ = [
    "CalibrationAgreement",
    "Deviation",
    "Distance",
    "Files",
    "compare_on_calibration_images",
    "run_both",
    "verify_export",
]
