"""Does the result compute what its factors say, and how far did truncation move the outputs?"""

from trp_export.verify.compare import Distance
from trp_export.verify.evidence import Agreement, Deviation, Files, verify_export

__all__ = ["Agreement", "Deviation", "Distance", "Files", "verify_export"]
